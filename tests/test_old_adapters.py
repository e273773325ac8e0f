"Adapters that version 0.1 wrote load today and give the logits that they gave then"

import json
from pathlib import Path

import pytest
import torch
from helpers import example, tiny
from safetensors.torch import load_file

from lopa import PromptModel
from lopa.adapter import CONFIG_FILE

kept = Path(__file__).parent / 'data' / 'adapter-v0.1'


@pytest.mark.parametrize('method', ['lopa', 'pt'])
@torch.no_grad()
def test_same_logits(method):
    model = PromptModel.from_pretrained(tiny(), kept / method)
    found = model(**example(model, (3, 6))).logits[:, -1]
    torch.testing.assert_close(found, load_file(kept / 'logits.safetensors')[method])


@pytest.mark.parametrize('method', ['lopa', 'pt'])
def test_same_words(method, tmp_path):
    "What is written today says more of the foundation model, and no other word differs"
    model = PromptModel.from_pretrained(tiny(), kept / method)
    model.save_pretrained(tmp_path)
    old = json.loads((kept / method / CONFIG_FILE).read_text())
    old['config']['encoder_max_length'] = 256  # came later
    new = json.loads((tmp_path / CONFIG_FILE).read_text())
    more = {name: new['base_model'].pop(name) for name in ('stored', 'linear', 'others')}
    assert new == old and all(more.values())
