"""A small run that one process or several may do (see test_processes.py)

accelerate launch --cpu --num_processes 2 processes.py FOLDER METHOD PASSES
"""

import os
import sys
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'
sys.path.insert(0, str(Path(__file__).parent))

import torch

torch.set_num_threads(1)

from datasets import disable_progress_bars
from helpers import one_tokenizer, tiny, word_task
from transformers import set_seed

from lopa.baselines import BASELINES, BaselineConfig, adapt_model
from lopa.prompts import PromptConfig
from lopa.train import Execution, Recipe, train

disable_progress_bars()
TOKENIZER = one_tokenizer()


def main(folder, method, passes):
    set_seed(3)
    base = tiny(vocab_size=len(TOKENIZER), max_position_embeddings=80)
    size = dict(num_virtual_tokens=3, head_width=8)
    if method in BASELINES:
        config = BaselineConfig(method, rank=2, dropout=0.0, **size)
    else:
        encoder = None if method == 'pt' else 'self'
        reads = dict(encoder_name_or_path=encoder, train_encoder=method == 'lopa')
        config = PromptConfig(method, rank=2, **reads, **size)
    model = adapt_model(base, config)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # masks are drawn for each process, and are another thing
    rates = dict(prompt_lr=0.05, head_lr=0.01, encoder_lr=1e-3)
    plan = Recipe(config, **rates, steps=12, eval_steps=6, eval_batch_size=8)
    how = Execution(save_steps=4, gradient_accumulation_steps=int(passes))
    result = train(model, word_task(), plan, folder, seed=5, progress=False, execution=how)
    print('process', os.environ.get('RANK', 0), 'test', result['test']['accuracy'])


if __name__ == '__main__':
    main(*sys.argv[1:])
