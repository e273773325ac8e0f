import os

os.environ.setdefault('HF_HUB_OFFLINE', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import pytest
import torch
from helpers import FEATURES, prompted, tiny
from transformers import BertConfig, BertModel

from lopa.gating import GATES

torch.set_num_threads(1)  # tiny models are slower on several threads


def pytest_configure(config):
    config.addinivalue_line('markers', 'cuda: needs a GPU that torch can use; skipped without one')


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available() or os.environ.get('LOPA_TEST_DEVICE') == 'cpu':
        return
    for item in items:
        if item.get_closest_marker('cuda'):
            item.add_marker(pytest.mark.skip(reason='torch finds no GPU here'))


@pytest.fixture(scope='session')
def bases():
    return {kind: tiny(kind) for kind in ('llama', 'gpt2')}


@pytest.fixture(scope='session')
def llama(bases):
    return bases['llama']


@pytest.fixture(scope='session', params=['llama', 'gpt2'])
def base(request, bases):
    "Rotary positions, and absolute ones that are learned"
    return bases[request.param]


@pytest.fixture(scope='session', params=sorted(GATES))
def gate(request):
    return request.param


@pytest.fixture(scope='session', params=[*sorted(GATES), 'pt'])
def model(request, llama):
    "LoPA with every gate, and prompt tuning; read it, do not train it"
    return prompted(llama, 'pt') if request.param == 'pt' else prompted(llama, gate=request.param)


@pytest.fixture(scope='session')
def encoder_folder(tmp_path_factory):
    "A random BERT with strong dropout, in a folder"
    folder = tmp_path_factory.mktemp('encoder')
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=50,
        hidden_size=FEATURES,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        hidden_dropout_prob=0.5,
        attention_probs_dropout_prob=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def gpu_memory(request, record_property):
    "Peak memory of a test that needs a GPU, for the report of `make test-gpu`"
    if not request.node.get_closest_marker('cuda') or not torch.cuda.is_available():
        yield
        return
    torch.cuda.reset_peak_memory_stats()
    yield
    record_property('gpu_peak_mb', torch.cuda.max_memory_allocated() >> 20)
