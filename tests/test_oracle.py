"The equations of the papers, written once more in 64 bits and from nothing but weights"

import numpy as np
import pytest
import torch
from helpers import PROMPT, WIDTH, prompted, rows, tiny


def numbers(model):
    return {k: v.detach().double().numpy() for k, v in model.generator.state_dict().items()}


def two_layers(h, w, name):
    "Linear, tanh, linear"
    hidden = np.tanh(np.einsum('be,we->bw', h, w[f'{name}.1.weight']) + w[f'{name}.1.bias'])
    return np.einsum('bw,ow->bo', hidden, w[f'{name}.3.weight']) + w[f'{name}.3.bias']


def close(prompt, expected):
    np.testing.assert_allclose(prompt.detach().double().numpy(), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    'gate,join',
    {
        'sigmoid': lambda z_s, z_i: z_s / (1 + np.exp(-z_i)),
        'tanh': lambda z_s, z_i: z_s * np.tanh(z_i),
        'add': lambda z_s, z_i: z_s + z_i,
        'max': lambda z_s, z_i: np.maximum(z_s, z_i),
        'concat': lambda z_s, z_i: np.concatenate([z_s + 0 * z_i, z_i], 1),
        'shared': lambda z_s, z_i: z_s + 0 * z_i,
        'instance': lambda z_s, z_i: z_i,
    }.items(),
    ids=lambda x: x if isinstance(x, str) else '',
)
def test_lopa(gate, join):
    "σ(UVᵀ) ∘ Z_S, and the other ways to join"
    model = prompted(tiny(), gate=gate)
    _, h = rows((1,) * 5)
    w = numbers(model)
    x = h.double().numpy()
    U, V = (
        two_layers(x, w, f'heads.{n}').reshape(5, size, 2)
        for n, size in (('u', PROMPT), ('v', WIDTH))
    )
    close(model.prompt(5, h), join(w['prompt'][None], np.einsum('bmr,bdr->bmd', U, V)))


def test_idpg():
    model = prompted(tiny(), 'idpg')
    _, h = rows((1,) * 5)
    close(
        model.prompt(5, h),
        two_layers(h.double().numpy(), numbers(model), 'head').reshape(5, PROMPT, WIDTH),
    )


@pytest.mark.parametrize('n', [2, 4, 8])
def test_idpg_phm(n):
    "Each matrix is a sum of n Kronecker products"
    model = prompted(tiny(), 'idpg-phm', phm_blocks=n)
    _, h = rows((1,) * 5)
    w = numbers(model)

    def matrix(layer):
        pairs = zip(w[f'head.{layer}.A'], w[f'head.{layer}.B'], strict=True)
        return sum(np.kron(a, b) for a, b in pairs)

    hidden = np.tanh(h.double().numpy() @ matrix(1) + w['head.1.bias'])
    close(model.prompt(5, h), (hidden @ matrix(3) + w['head.3.bias']).reshape(5, PROMPT, WIDTH))


@pytest.mark.parametrize('side', ['left', 'right'])
def test_dept(side):
    "A short prompt, and row i of A B added to the i-th word; nothing further on or to padding"
    model = prompted(tiny(), 'dept', update_length=4)
    w = numbers(model)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    table = model.base_model.get_input_embeddings().weight.detach().double().numpy()
    change = np.zeros((6, WIDTH))
    change[:4] = np.einsum('lr,rd->ld', w['A'], w['B'])
    filler = torch.zeros(1, 2, dtype=torch.long)
    parts = [filler, ids] if side == 'left' else [ids, filler]
    x = model.prompt_embeds(
        torch.cat(parts, 1), torch.cat([torch.full_like(p, int(p is ids)) for p in parts], 1)
    )[0]
    real = x[2:] if side == 'left' else x[:-2]
    close(real, np.concatenate([w['prompt'], table[ids[0]] + change]))


def test_dept_leaves_the_answer_alone():
    "What is generated cannot be changed, so what is learned from is not changed either"
    model = prompted(tiny(), 'dept')
    ids = torch.tensor([[5, 6, 7, 8]])
    x, _, labels, _ = model.lay_out(ids, labels=torch.tensor([[-100, -100, 7, 8]]))
    table = model.base_model.get_input_embeddings().weight
    assert (
        torch.equal(x[0, -2:], table[ids[0, -2:]]) and not torch.isclose(x[0, -3], table[6]).all()
    )
    assert labels.tolist() == [[-100] * (PROMPT + 2) + [7, 8]]
