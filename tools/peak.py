"""Train for a few steps on the CPU and print how much memory that took, to compare with lopa.plan

    python -m tools.peak METHOD ROWS LENGTH CHECKPOINTING [STEPS]     # e.g. lopa 8 64 0

Linux only. Weights are those of SmolLM2-135M in 32 bits, tokens are random, the last one of a row
is the answer. Prints one JSON object.
"""

import json
import re
import sys
from pathlib import Path

import torch
from transformers import Trainer  # noqa: F401 (as in training, for the memory that it takes)

from lopa.assets import load_foundation_model
from lopa.baselines import adapt_model
from lopa.train import parameter_groups, recipe


def resident(key):
    "`VmRSS` (now) or `VmHWM` (highest), in bytes"
    status = Path('/proc/self/status').read_text()
    return 1024 * int(re.search(rf'^{key}:\s+(\d+) kB', status, re.M)[1])


def main(method, rows, length, checkpointing, steps=3):
    plan = recipe('rotten_tomatoes', method)
    model = adapt_model(load_foundation_model(device='cpu', dtype=torch.float32), plan.config)
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = torch.randint(5, 40000, (rows, length))
    batch = {
        'input_ids': ids,
        'attention_mask': torch.ones_like(ids),
        'labels': ids.where(torch.arange(length) == length - 1, -100),
    }
    if model.encoder:
        features = model.encoder(ids % 30000, batch['attention_mask'])
        batch['instance_features'] = features  # read once, as before training
    optimiser = torch.optim.AdamW(parameter_groups(model, plan), weight_decay=0.0, fused=True)
    Path('/proc/self/clear_refs').write_text('5')  # forget the peak of loading
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    print(json.dumps({'peak': resident('VmHWM'), 'now': resident('VmRSS')}))


if __name__ == '__main__':
    main(sys.argv[1], *map(int, sys.argv[2:]))
