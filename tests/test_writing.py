"Generation, padding, answers and gradients: as a call says it, or refused in one sentence"

import pytest
import torch
from architectures import make
from helpers import one_sentence

from lopa import PromptConfig, get_prompt_model
from lopa.adapter import signature
from lopa.baselines import BaselineConfig, BaselineModel
from lopa.encoders import make_encoder
from lopa.layout import insertion_point
from lopa.support import WRITES, check_gradient

HOW = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
TEXT = torch.tensor([[5, 9, 31, 44, 12, 6]])
LEFT = dict(
    input_ids=torch.tensor([[5, 9, 31, 44], [17, 17, 8, 22]]),
    attention_mask=torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]]),
)
RIGHT = {name: rows.roll(-2, 1) for name, rows in LEFT.items()}


def prompted(name, m=2):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = PromptConfig('pt', num_virtual_tokens=m, init='normal')
        return get_prompt_model(make(name), config)


def refused(call, *mentions):
    with pytest.raises(ValueError) as e:
        call()
    one_sentence(e.value, *mentions)


# --- generation ---


@pytest.mark.parametrize(
    'name',
    'OpenAI GPT,CTRL,Falcon-H1,Bamba,Zamba,Reformer,XLM,ProphetNet'.split(','),
)
def test_a_model_that_does_not_write_from_embeddings(name):
    model = prompted(name)
    refused(lambda: model.generate(TEXT, **HOW), 'generate', type(model.base_model).__name__)


@pytest.mark.parametrize('name', ['RoBERTa as a decoder', 'BART as a decoder', 'MiniMax'])
@torch.no_grad()
def test_a_model_that_writes_what_it_says(name):
    "Also a RoBERTa, which counts from another number than transformers' `generate`"
    model = prompted(name)
    new = model.generate(TEXT, **HOW)[0]
    for i, token in enumerate(new):
        row = torch.cat([TEXT[0], new[:i]])[None]
        assert model(row).logits[0, -1].argmax() == token


@pytest.mark.parametrize('name', ['MiniMax', 'BART as a decoder', 'RoFormer as a decoder'])
def test_a_model_that_writes_otherwise_behind_padding(name):
    model = prompted(name)
    refused(lambda: model.generate(**LEFT, **HOW), 'generate', 'one length')


def test_a_model_is_asked_once_and_only_what_is_needed():
    model = prompted('Llama')
    model.generate(TEXT, **HOW)
    assert WRITES[model.base_model] == {(True, False): True}
    model.generate(**LEFT, **HOW)
    assert WRITES[model.base_model] == {(True, False): True, (True, True): True}
    model.base_model.generate = None  # asked no more
    with pytest.raises(TypeError):
        model.generate(TEXT, **HOW)


# --- padding ---


@pytest.mark.parametrize('name', ['BART as a decoder', 'RoFormer as a decoder', 'XLM'])
@torch.no_grad()
def test_padding_that_is_counted(name):
    "Without labels and behind padding: a sentence; before padding, and with labels: right"
    model = prompted(name)
    refused(lambda: model(**LEFT), 'padding', type(model.base_model).__name__)
    alone = model(LEFT['input_ids'][1:, 2:]).logits
    before = dict(input_ids=RIGHT['input_ids'][1:], attention_mask=RIGHT['attention_mask'][1:])
    assert torch.allclose(model(**before).logits[:, : alone.shape[1]], alone, atol=1e-4)
    labels = LEFT['input_ids'].masked_fill(torch.arange(4) < 3, -100)
    asked = model(**LEFT, labels=labels).logits[1]
    assert torch.allclose(asked, alone[0, -2:-1], atol=1e-4)


ENCODERS = 'MobileBERT', 'FNet', 'ConvBERT', 'Nystromformer', 'YOSO', 'CPM-Ant', 'Funnel'


@pytest.mark.parametrize('name', ENCODERS)
def test_an_encoder_that_lets_padding_in(name, tmp_path):
    make(name).base_model.save_pretrained(tmp_path)
    for named, base in ((str(tmp_path), 'Llama'), ('self', name)):
        refused(lambda named=named, base=base: make_encoder(named, make(base)), 'encoder: ')


@pytest.mark.parametrize('name', ['FSMT', 'Perceiver'])
def test_an_encoder_that_cannot_be_asked(name, tmp_path):
    make(name).base_model.save_pretrained(tmp_path)
    refused(lambda: make_encoder(str(tmp_path), make('Llama')), 'encoder: ', 'cannot read')


def test_no_column():
    empty = torch.zeros(1, 0, dtype=torch.long)
    refused(lambda: insertion_point(empty, 'prefix'), '(1, 0)')
    for model in prompted('Llama'), BaselineModel(make('Llama'), BaselineConfig('lora')):
        refused(lambda model=model: model(empty), 'input_ids', 'no tokens')


# --- answers ---


@pytest.mark.parametrize(
    'name,most', [('BART', 64), ('LED', 64), ('Marian', 64), ('ProphetNet', 62)]
)
@pytest.mark.parametrize('method', ['pt', 'lora'])
@torch.no_grad()
def test_an_answer_fills_the_decoder_and_no_more(name, most, method):
    if method == 'lora':
        model = BaselineModel(make(name), BaselineConfig('lora'))
    else:
        model = prompted(name)
    label = torch.full((1, most + 1), 7)
    assert model(TEXT, labels=label[:, 1:]).logits.shape[1] == most
    refused(lambda: model(TEXT, labels=label), 'labels', most + 1, most)
    for how in dict(max_new_tokens=most + 1), dict(max_length=most + 2):
        refused(lambda how=how: model.generate(TEXT, **how), *how, most + 1, most)


@torch.no_grad()
def test_a_prefix_takes_places_of_the_decoder():
    model = BaselineModel(make('BART'), BaselineConfig('prefix', num_virtual_tokens=2))
    label = torch.full((1, 63), 7)
    assert model(TEXT, labels=label[:, 1:]).logits.shape[1] == 62
    refused(lambda: model(TEXT, labels=label), 'labels', 65, 64)


@pytest.mark.parametrize('name', ['Llama', 'GPT-2'])
def test_an_answer_of_a_causal_model_is_part_of_its_row(name):
    label = torch.full((1, 63), 7)
    refused(lambda: prompted(name)(label, labels=label), 65, 64)


# --- training, and what is kept ---


@pytest.mark.parametrize('method', ['pt', 'lora', 'full', 'p-tuning'])
def test_a_model_without_a_gradient(method):
    if method == 'pt':
        model = prompted('Reformer')
    else:
        model = BaselineModel(make('Reformer'), BaselineConfig(method))
    refused(model.train, 'no gradient')
    assert not model.training


def test_a_gradient_is_asked_for_and_leaves_none():
    base = make('GPT-2')
    check_gradient(base)
    assert all(p.grad is None for p in base.parameters())


def test_layers_of_a_model_whose_halves_are_configured_apart():
    assert signature(make('T5Gemma'))['layers'] == 2
