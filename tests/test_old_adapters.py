"Adapters that version 0.1 wrote load today and give the logits that they gave then"

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from helpers import example, tiny
from safetensors.torch import load_file

from lopa import PromptModel
from lopa.adapter import CONFIG_FILE

pytestmark = pytest.mark.filterwarnings('ignore:.*without a hash')

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
    assert len(new.pop('tensors')['sha256']) == 64  # came later, too
    assert new == old and all(more.values())


def test_one_warning_for_each_folder(tmp_path):
    "They have no hash, and that is said once"
    shutil.copytree(kept / 'pt', tmp_path / 'pt')
    with pytest.warns(UserWarning, match='without a hash'):
        PromptModel.from_pretrained(tiny(), tmp_path / 'pt')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        PromptModel.from_pretrained(tiny(), tmp_path / 'pt').save_pretrained(tmp_path / 'new')
        PromptModel.from_pretrained(tiny(), tmp_path / 'new')
