"Laws of the method's parts, by exact small numbers; fast, and what `make mutants` runs"

import math
from types import SimpleNamespace as NS

import pytest
import torch
from helpers import FEATURES, one_sentence
from torch import nn
from torch.testing import assert_close

from lopa import PromptConfig
from lopa.factorize import LowRankHeads, PHMLinear, count_parameters, head, low_rank
from lopa.gating import GATES, register_gate
from lopa.layout import POSITIONS, inner_order, insert_prompt, insertion_point, outer_order
from lopa.prompts import METHODS, register_method, start_vectors


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def ints(*numbers):
    return torch.tensor(numbers)


def spread(tensor):
    return tensor.detach().std().item()


# --- factorize ---


def test_low_rank_is_a_sum_of_outer_products():
    u, v = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    by_hand = sum(u[:, :, None, k] * v[:, None, :, k] for k in range(4))
    assert_close(low_rank(u, v), by_hand)
    assert torch.linalg.matrix_rank(low_rank(u[..., :1], v[..., :1])).tolist() == [1, 1]


def test_head_is_dropout_linear_tanh_linear():
    layers = head(200, 150, 100)
    assert [type(layer) for layer in layers] == [nn.Dropout, nn.Linear, nn.Tanh, nn.Linear]
    assert layers[0].p == 0.1 and head(2, 2, 2, 0.4)[0].p == 0.4
    assert layers[1].weight.shape == (150, 200) and layers[3].weight.shape == (100, 150)
    for layer in layers[1], layers[3]:
        assert 0.0195 < spread(layer.weight) < 0.0205
        assert not layer.bias.any()


def test_head_by_hand():
    layers, x = head(3, 4, 5), torch.randn(2, 3)
    layers[3].bias.data.fill_(1.0)
    (w, _), (v, b) = ((layers[i].weight, layers[i].bias) for i in (1, 3))
    assert_close(layers.eval()(x), (x @ w.T).tanh() @ v.T + b)


def test_heads_begin_at_zero_logits_that_learn():
    "V is zero, U is not: UVᵀ is zero and its gradient for V is not"
    heads = LowRankHeads(6, 300, 10, 4, 8)
    (u, v), h = heads.eval()(torch.randn(2, 6)), torch.randn(2, 6)
    assert u.shape == (2, 300, 4) and v.shape == (2, 10, 4) and heads.rank == 4
    assert not v.any() and not heads.v[3].bias.any() and not heads.v[3].weight.any()
    assert 0.9 < spread(heads.u[3].bias) < 1.1 and 0.015 < spread(heads.u[3].weight) < 0.025
    low_rank(*heads(h)).sum().backward()
    assert heads.v[3].weight.grad.any() and not heads.u[3].weight.grad.any()


def test_factors_are_what_the_heads_say_row_by_row():
    heads, h = LowRankHeads(6, 3, 5, 2, 8).eval(), torch.randn(2, 6)
    heads.v[3].weight.data.normal_()
    u, v = heads(h)
    assert torch.equal(u, heads.u(h).reshape(2, 3, 2))
    assert torch.equal(v, heads.v(h).reshape(2, 5, 2))


def test_only_what_is_trained_is_counted():
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    module[0].requires_grad_(False)
    assert count_parameters(module) == 4 * 5 + 5


def test_phm_is_a_sum_of_kronecker_products():
    layer, x = PHMLinear(6, 4, 2), torch.randn(3, 6)
    layer.bias.data.normal_()
    matrix = sum(torch.kron(a, b) for a, b in zip(layer.A, layer.B, strict=True))
    assert_close(layer(x), x @ matrix + layer.bias)


def test_phm_begins_small():
    layer = PHMLinear(80, 160, 8)
    assert layer.A.shape == (8, 8, 8) and layer.B.shape == (8, 10, 20)
    assert layer.bias.shape == (160,) and not layer.bias.any()
    assert 0.11 < spread(layer.A) < 0.14 and 0.0185 < spread(layer.B) < 0.0215


@pytest.mark.parametrize('inputs,outputs', [(7, 4), (4, 7), (7, 7)])
def test_phm_wants_blocks_that_divide(inputs, outputs):
    with pytest.raises(ValueError) as e:
        PHMLinear(inputs, outputs, 2)
    one_sentence(e.value, inputs, outputs, 2)


# --- gating ---

Z_S = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
Z_I = torch.tensor([[[0.0, math.log(3)], [-math.log(3), 2.0]]])
BY_HAND = {
    'sigmoid': [[0.5, -1.5], [0.75, 0.5 / (1 + math.exp(-2))]],
    'tanh': [[0.0, -1.6], [-2.4, 0.5 * math.tanh(2)]],
    'add': [[1.0, -2 + math.log(3)], [3 - math.log(3), 2.5]],
    'max': [[1.0, math.log(3)], [3.0, 2.0]],
    'concat': [[1.0, -2.0], [3.0, 0.5], [0.0, math.log(3)], [-math.log(3), 2.0]],
    'shared': [[1.0, -2.0], [3.0, 0.5]],
    'instance': [[0.0, math.log(3)], [-math.log(3), 2.0]],
}


def test_all_gates_are_known():
    assert GATES.keys() == BY_HAND.keys()


@pytest.mark.parametrize('name', BY_HAND)
def test_gate_by_hand(name):
    z = GATES[name](Z_S, Z_I.expand(2, 2, 2))
    assert_close(z, torch.tensor(BY_HAND[name]).expand(2, -1, -1))


def test_registers_hand_back_what_they_file(monkeypatch):
    "A decorator that forgets to return would leave None in the module"
    for register, known in (register_gate, GATES), (register_method, METHODS):
        monkeypatch.delitem(known, 'mine', raising=False)
        assert register('mine')(len) is len and known.pop('mine') is len


# --- layout ---

MASK = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [1, 0, 1, 0, 1]])


def test_insertion_points():
    labels = torch.full_like(MASK, -100)
    labels[0, 3:], labels[1, 0] = 7, 0
    assert POSITIONS == ['prefix', 'after_start', 'suffix']
    assert insertion_point(MASK, 'prefix').tolist() == [2, 0, 1, 0]
    assert insertion_point(MASK, 'after_start').tolist() == [3, 1, 2, 1]
    assert insertion_point(MASK, 'suffix').tolist() == [5, 3, 3, 5]
    assert insertion_point(MASK, 'suffix', labels).tolist() == [3, 0, 3, 5]
    for position in 'prefix', 'after_start':  # labels do not matter
        there = insertion_point(MASK, position, labels)
        assert torch.equal(there, insertion_point(MASK, position))


INNER = {  # padding → order of the columns of two rows (0, 1 are the prompt's), and their mask
    'keep': (
        [[2, 3, 0, 1, 4, 5, 6], [2, 0, 1, 3, 4, 5, 6]],
        [[0, 0, 1, 1, 1, 1, 1], [1] * 5 + [0, 0]],
    ),
    'left': (
        [[2, 3, 0, 1, 4, 5, 6], [5, 6, 2, 0, 1, 3, 4]],
        [[0, 0, 1, 1, 1, 1, 1], [0, 0] + [1] * 5],
    ),
    'right': ([[0, 1, 4, 5, 6, 2, 3], [2, 0, 1, 3, 4, 5, 6]], [[1] * 5 + [0, 0], [1] * 5 + [0, 0]]),
}


@pytest.mark.parametrize('padding', INNER)
def test_inner_order_by_hand(padding):
    "The first row is padded on the left, its prompt is a prefix; the second row's stands second"
    order, wide = inner_order(MASK[:2], ints(2, 1), 2, padding)
    assert (order.tolist(), wide.tolist()) == INNER[padding]
    assert order.dtype == torch.long and wide.dtype == MASK.dtype


def test_padding_is_kept_unless_asked():
    found = inner_order(MASK, ints(2, 0, 1, 0), 2)
    expected = inner_order(MASK, ints(2, 0, 1, 0), 2, 'keep')
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_holes_in_a_row_stay_or_move():
    "Only `keep` leaves a masked column between tokens where it is"
    mask = ints([1, 0, 1])
    assert inner_order(mask, ints(2), 1, 'keep')[0].tolist() == [[1, 2, 0, 3]]
    assert inner_order(mask, ints(2), 1, 'left')[0].tolist() == [[2, 1, 0, 3]]
    assert inner_order(mask, ints(2), 1, 'right')[0].tolist() == [[1, 0, 3, 2]]


def test_outer_order_by_hand():
    "Two texts of two and one tokens, answers of one and two; two columns of prompt"
    mask = ints([0, 0, 1, 1, 1], [1, 1, 1, 0, 0])
    order, wide, q = outer_order(mask, ints(4, 1), 2)
    assert q == 2
    assert order.tolist()[0] == [4, 5, 0, 1, 6, 2] and wide[0].tolist() == [1, 1, 1, 1, 1, 0]
    assert order.tolist()[1][1:] == [2, 0, 1, 3, 4] and wide[1].tolist() == [0, 1, 1, 1, 1, 1]
    assert wide.dtype == mask.dtype


@pytest.mark.parametrize('at,q', [([0, 0], 0), ([5, 5], 3)])
def test_outer_order_without_text_or_answers(at, q):
    order, wide, found = outer_order(MASK[:2], ints(*at), 2)
    assert found == q and order.shape == wide.shape == (2, 5) and wide.all()


def placed(align=False, labels=True, padding='keep'):
    "A prompt of -1, -2 before words 1 to 5 of two rows"
    prompt = -ints(1, 2)[None, :, None].expand(2, 2, 3)
    words = ints(1, 2, 3, 4, 5)[None, :, None].expand(2, 5, 3)
    given = words[..., 0] if labels else None
    return insert_prompt(prompt, words, MASK[:2], ints(2, 1), given, padding, align)


def test_insert_prompt_by_hand():
    x, wide, labels, q = placed()
    assert x[..., 0].tolist() == [[1, 2, -1, -2, 3, 4, 5], [1, -1, -2, 2, 3, 4, 5]]
    assert torch.equal(x[..., 0], x[..., 1]) and torch.equal(x[..., 0], x[..., 2]) and q == 0
    assert wide.tolist() == [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]
    assert labels.tolist() == [
        [-100, -100, -100, -100, 3, 4, 5],
        [1, -100, -100, 2, 3, -100, -100],
    ]


def test_insert_prompt_aligned_and_without_labels():
    x, wide, labels, q = placed(align=True, labels=False)
    assert labels is None and q == 1
    assert x[:, q : q + 2, 0].tolist() == [[-1, -2]] * 2
    assert x[0, wide[0] == 1, 0].tolist() == [-1, -2, 3, 4, 5]
    assert placed(padding='left')[1].tolist() == [[0, 0, 1, 1, 1, 1, 1]] * 2


def test_insert_prompt_keeps_padding_and_does_not_align_unless_asked():
    prompt, words = torch.ones(2, 1, 3), torch.zeros(2, 5, 3)
    x, wide, labels, q = insert_prompt(prompt, words, MASK[:2], ints(2, 1))
    assert wide.tolist() == [[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert labels is None and q == 0
    assert x[..., 0].tolist() == [[0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]


# --- prompts ---

START = torch.tensor([[1.0, -2.0, 3.0, 4.0], [-5.0, 6.0, 7.0, 8.0]])


def generator(method='lopa', start=START, **config):
    usual = dict(rank=2, head_width=8, phm_blocks=4, update_length=3)
    made = METHODS[method](PromptConfig(method, **(usual | config)), start, 8)
    return made.eval()


def test_methods_and_what_they_look_at():
    looks = {'pt': False, 'lopa': True, 'idpg': True, 'idpg-phm': True, 'dept': False}
    assert {name: cls.uses_instance for name, cls in METHODS.items()} == looks


@pytest.mark.parametrize('method', METHODS)
def test_the_part_of_the_task_is_a_parameter_and_begins_at_the_start(method):
    made = generator(method)
    part = dict(made.named_parameters())[made.task_part]
    scale = 2 if method == 'lopa' else 1
    assert_close(part.detach().reshape(2, 4), scale * START)


@pytest.mark.parametrize('method', ['pt', 'dept'])
def test_a_shared_prompt_is_a_copy_of_its_start(method):
    made = generator(method)
    assert made(None).shape == (1, 2, 4) and torch.equal(made()[0], START)
    made.prompt.data.zero_()
    assert START.any()


@pytest.mark.parametrize('method', ['lopa', 'idpg', 'idpg-phm'])
def test_first_vectors(method):
    "Without features the prompt is the start; with them, near it (LoPA: at it)"
    made = generator(method)
    assert_close(made(torch.zeros(3, 8)), START.expand(3, 2, 4))
    z = made(torch.randn(3, 8))
    assert_close(z, START.expand(3, 2, 4), atol=0.1, rtol=0)
    assert torch.equal(z[0], z[1]) == (method == 'lopa')


FIRST = {  # gate → (Z_S at the start, Z there)
    'sigmoid': (2 * START, START),
    'tanh': (START, 0 * START),
    'add': (START, START),
    'max': (START, START.clamp(min=0)),
    'concat': (START, torch.cat([START, 0 * START])),
    'shared': (START, START),
    'instance': (START, 0 * START),
}


@pytest.mark.parametrize('gate', FIRST)
def test_first_vectors_of_each_gate(gate):
    "Z_S is scaled so that Z begins at the start; a gate that would begin at zero is given a push"
    made, (prompt, z) = generator(gate=gate), FIRST[gate]
    assert_close(made.prompt.detach(), prompt)
    pushed = gate in ('tanh', 'concat', 'instance')
    assert made.heads.v[-1].weight.any() == pushed
    if pushed:
        assert 0.014 < spread(made.heads.v[-1].weight) < 0.026
        made.heads.v[-1].weight.data.zero_()
    assert_close(made(torch.randn(1, 8))[0], z)


def test_random_vectors_are_not_scaled():
    "The paper's recipe: Z_S itself is drawn from the normal distribution"
    assert torch.equal(generator(init='normal').prompt.data, START)


def test_lopa_by_hand():
    made, h = generator(), torch.randn(3, 8)
    made.heads.v[-1].weight.data.normal_()
    u, v = made.heads(h)
    assert u.shape == (3, 2, 2) and v.shape == (3, 4, 2) and made.heads.u[1].out_features == 8
    assert torch.equal(made.logits(h), u @ v.mT)
    assert_close(made(h), made.prompt * (u @ v.mT).sigmoid())


@pytest.mark.parametrize('method', ['idpg', 'idpg-phm'])
def test_idpg_by_hand(method):
    made, h = generator(method, head_width=12), torch.randn(3, 8)
    assert torch.equal(made(h), made.head(h).reshape(3, 2, 4))
    assert [type(m) for m in made.head[::2]] == [nn.Dropout, nn.Tanh] and made.head[0].p == 0.1
    assert made.head[1](h).shape == (3, 12)
    assert isinstance(made.head[1], PHMLinear) == (method == 'idpg-phm')


def test_phm_heads_have_the_asked_number_of_products():
    made = generator('idpg-phm', phm_blocks=2)
    assert made.head[1].A.shape == made.head[3].A.shape == (2, 2, 2)


def test_dept_changes_the_first_words_only():
    made = generator('dept', rank=5)
    assert made.A.shape == (3, 5) and 0.6 < spread(made.A) < 1.4
    place = ints([-1, 0, 1, 2, 3, 9])
    assert made.B.shape == (5, 4) and not made.update(place).any()
    made.B.data.normal_()
    change = made.update(place)[0].detach()
    assert_close(change[1:4], (made.A @ made.B).detach())
    assert not change[[0, 4, 5]].any()


WRONG = [
    *(dict([(k, -1)]) for k in ('num_virtual_tokens',)),
    *(dict([(k, 0)]) for k in ('rank', 'head_width', 'feature_width', 'phm_blocks')),
    *(dict([(k, 2.0)]) for k in ('num_virtual_tokens', 'rank', 'feature_width')),
    *(dict([(k, None)]) for k in ('num_virtual_tokens', 'rank', 'head_width', 'phm_blocks')),
    *(dict([(k, True)]) for k in ('rank', 'update_length')),
    *(dict([(k, 'nothing')]) for k in ('method', 'gate', 'encoder_pooling', 'position', 'init')),
    *(dict([(k, None)]) for k in ('method', 'gate', 'encoder_pooling', 'position', 'init')),
    dict(update_length=0),
    dict(train_encoder=1),
    dict(init='text:'),
]


@pytest.mark.parametrize('config', WRONG, ids=str)
def test_wrong_values(config):
    with pytest.raises(ValueError) as e:
        PromptConfig(**config)
    ((key, value),) = config.items()
    one_sentence(e.value, key, repr(value))


LEAST = [
    dict(num_virtual_tokens=0),
    dict(rank=1, head_width=1, feature_width=1, phm_blocks=1, update_length=1),
    dict(init='text:a'),
    dict(init='zeros', position='after_start', encoder_pooling='pooler'),
    dict(train_encoder=True, encoder_name_or_path='self'),
]


@pytest.mark.parametrize('config', LEAST, ids=str)
def test_least_values(config):
    made = PromptConfig(**config)
    assert all(getattr(made, k) == v for k, v in config.items())


def test_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'sigmoid'"):
        PromptConfig(gate='sigmoyd')
    with pytest.raises(ValueError, match="did you mean 'sigmoid'"):
        PromptConfig(gate='si')
    with pytest.raises(ValueError, match="known are 'prefix', 'after_start', 'suffix'"):
        PromptConfig(position='###')
    with pytest.raises(ValueError, match="'ranks': did you mean 'rank'"):
        PromptConfig(ranks=3)
    with pytest.raises(ValueError, match='train_encoder=True needs an encoder'):
        PromptConfig(train_encoder=True)


TABLE = torch.randn(50, 6, dtype=torch.bfloat16)


def first(init, m=5, tokenizer=None, table=TABLE):
    config = PromptConfig(num_virtual_tokens=m, init=init)
    vectors = start_vectors(config, table.__getitem__, len(table), tokenizer)
    assert vectors.shape == (m, table.shape[1]) and vectors.dtype == torch.float32
    return vectors


def test_words_of_the_vocabulary_each_once():
    rows = first('vocab', 50)
    found = (rows[:, None] == TABLE.float()).all(2)
    assert (found.sum(0) == 1).all() and (found.sum(1) == 1).all()
    assert not torch.equal(rows, TABLE.float()) and not torch.equal(first('vocab', 50), rows)


def test_normal_and_zeros():
    table = torch.zeros(400, 20)
    assert not first('zeros').any()
    assert 0.97 < spread(first('normal', 400, table=table)) < 1.03


def test_words_of_a_text_again_and_again():
    from transformers import BatchEncoding

    def tokenizer(text, add_special_tokens):
        assert text == 'so text: it' and add_special_tokens is False
        return BatchEncoding({'input_ids': [7, 3, 9]})

    assert torch.equal(first('text:so text: it', 5, tokenizer), TABLE[[7, 3, 9, 7, 3]].float())
    assert first('text:so text: it', 0, tokenizer).shape == (0, 6)


def test_more_vectors_than_words():
    with pytest.raises(ValueError) as e:
        first('vocab', 51)
    one_sentence(e.value, 'num_virtual_tokens', 51, 50)


@pytest.mark.parametrize('init', ['normal', 'zeros'])
def test_more_vectors_than_words_that_are_none(init):
    assert len(first(init, 51)) == 51


def test_a_sample_leaves_out_the_padding_row():
    table = torch.cat([torch.zeros(1, 6), torch.randn(9, 6)])
    for _ in range(20):
        assert first('vocab', 9, table=table).any(1).all()
    assert first('vocab', 10, table=table).any(1).tolist() == 9 * [True] + [False]


@pytest.mark.parametrize(('ids', 'found'), [([], 'no token'), ([7, 50], 'token 50')])
def test_a_text_without_words_of_the_model(ids, found):
    with pytest.raises(ValueError) as e:
        first('text: ', 5, lambda *_, **__: NS(input_ids=ids))
    one_sentence(e.value, "'text: '", found)


def test_features_are_the_width_of_the_heads():
    assert METHODS['lopa'](PromptConfig(), START, FEATURES).heads.u[1].in_features == FEATURES
