"Devices: no tensor is made where the model does not lie, with any method and architecture"

import importlib

import pytest
import torch
from fakes import ask_only, batch, fake_gpu, on, step
from helpers import CAUSAL, FEATURES, PAIRS, PROMPT

from lopa.baselines import BASELINES
from lopa.gating import GATES
from lopa.prompts import METHODS

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
FULL = (
    'llama',
    'roberta',
    't5',
)  # every method on one architecture of each family, one on all others
gates = pytest.mark.parametrize('gate', sorted(GATES))
ENCODERS = [
    ('a-name', 'mean', False),
    ('a-name', 'cls', True),
    ('self', 'last', False),
    ('self', 'last', True),
    ('embeddings', 'attention', False),
    ('self', 'attention', False),
]
wrong = pytest.raises((RuntimeError, AssertionError), match='[Dd]evice')


@pytest.mark.parametrize(
    'kind,method',
    [
        p
        for p in PAIRS
        if p[0] in FULL or p == ('gpt2', 'prefix') or p[0] in CAUSAL and p[1] == 'lopa'
    ],
)
def test_training_step(kind, method):
    with fake_gpu() as device:
        model = on(device, kind, method)
        step(model, batch(model, device))


@gates
def test_gates(gate):
    with fake_gpu() as device:
        model = on(device, gate=gate)
        step(model, batch(model, device))
        given = {
            k: v for k, v in batch(model, device).items() if k in ('input_ids', 'instance_features')
        }
        logits = model(**given).logits  # without labels and mask
        assert logits.device == device and logits.shape[1] == 7 + (
            2 * PROMPT if gate == 'concat' else PROMPT
        )


@pytest.mark.parametrize('init', ['vocab', 'normal', 'zeros'])
def test_first_vectors(init):
    with fake_gpu() as device:
        model = on(device, method='pt', init=init)
        step(model, batch(model, device))


@pytest.mark.parametrize(
    'kind,position',
    [(k, p) for k in FULL for p in ('after_start', 'suffix')]
    + [('gpt2', 'suffix'), ('bloom', 'suffix')],
)
def test_positions(kind, position):
    with fake_gpu() as device:
        model = on(device, kind, position=position)
        step(model, batch(model, device))


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'opt'])
def test_text_first(kind):
    "Eager attention: a causal model reads the text before a suffix first, into a cache"
    with fake_gpu() as device:
        model = on(device, kind, position='suffix')
        model.base_model.set_attn_implementation('eager')
        assert model.reads_text_first()
        step(model, batch(model, device))


@pytest.mark.parametrize(
    'kind,name,pooling,tuned',
    [(k, *e) for k in FULL for e in ENCODERS if k == 'llama' or e[0] != 'a-name'],
)
def test_encoders(kind, name, pooling, tuned):
    with fake_gpu() as device:
        model = on(
            device, kind, encoder_name_or_path=name, encoder_pooling=pooling, train_encoder=tuned
        )
        step(model, batch(model, device))
        assert (
            any(
                n.startswith('encoder.') and p.grad is not None for n, p in model.named_parameters()
            )
            == model.encoder.trainable
        )


@pytest.mark.parametrize(
    'kind,method',
    [('llama', m) for m in ('lopa', 'dept', 'lora', 'p-tuning', 'full')]
    + [('roberta', 'lopa'), ('t5', 'lopa'), ('gpt2', 'lora')],
)
def test_gradient_checkpointing(kind, method):
    with fake_gpu() as device:
        model = on(device, kind, method)
        model.gradient_checkpointing_enable()
        step(model, batch(model, device))


@pytest.mark.parametrize(
    'kind,method',
    [p for p in PAIRS if p[0] == 'llama']
    + [('t5', m) for m in ('lopa', 'lora', 'prefix', 'p-tuning')],
)
def test_generation(kind, method, monkeypatch):
    "Fake tensors cannot generate, but all that `generate` is given lies on the device"
    with fake_gpu() as device:
        model = on(device, kind, method)
        asked = ask_only(model, monkeypatch)
        given = {k: v for k, v in batch(model, device).items() if k != 'labels'}
        assert model.eval().generate(**given, max_new_tokens=2).device == device and len(asked) == 1


# --- the tests above fail when one tensor lies on the CPU ---


def planted(model, device, monkeypatch, name):
    "Leave one parameter or buffer on the CPU"
    owner, _, leaf = name.rpartition('.')
    owner = model.get_submodule(owner)
    monkeypatch.setitem(
        owner._parameters,
        leaf,
        torch.nn.Parameter(torch.zeros(owner._parameters[leaf].shape, device='cpu')),
    )
    with wrong:
        step(model, batch(model, device))


@pytest.mark.parametrize(
    'kind,method', [('llama', m) for m in [*METHODS, *BASELINES]] + [(k, 'lopa') for k in FULL[1:]]
)
def test_a_planted_parameter_is_found(kind, method, monkeypatch):
    with fake_gpu() as device:
        model = on(device, kind, method)
        planted(
            model,
            device,
            monkeypatch,
            [n for n, p in model.named_parameters() if p.requires_grad][-1],
        )


@pytest.mark.parametrize('name,pooling,tuned', [e for e in ENCODERS if e[2] or e[1] == 'attention'])
def test_a_planted_encoder_is_found(name, pooling, tuned, monkeypatch):
    with fake_gpu() as device:
        model = on(device, encoder_name_or_path=name, encoder_pooling=pooling, train_encoder=tuned)
        planted(
            model,
            device,
            monkeypatch,
            [
                n
                for n, p in model.named_parameters()
                if n.startswith('encoder.') and p.requires_grad
            ][0],
        )


@pytest.mark.parametrize('method', ['lopa', 'pt'])
def test_a_prompt_that_was_never_moved_is_found(method, monkeypatch):
    "`get_prompt_model` puts what it makes beside the foundation model"
    with fake_gpu() as device:
        with monkeypatch.context() as m:
            if method == 'lopa':
                m.setattr(torch.nn.Module, 'to', lambda self, *_, **__: self)
            else:
                m.setattr('lopa.model.start_vectors', lambda *_: torch.zeros(PROMPT, 32))
                m.setattr(torch.nn.Module, 'to', lambda self, *_, **__: self)
            model = on(device, method=method)
        with wrong:
            step(model, batch(model, device))


def on_the_cpu(function):
    "The same function, with its first result on the CPU"

    def planted(*args, **kwargs):
        out = function(*args, **kwargs)
        return (out[0].cpu(), *out[1:]) if isinstance(out, tuple) else out.cpu()

    return planted


PLACES = {
    'lopa.layout.inner_order': {},
    'lopa.layout.outer_order': dict(position='suffix'),
    'lopa.model.insertion_point': dict(position='after_start'),
    'lopa.logits.wanted_positions': {},
    'lopa.prompts.low_rank': {},
    'lopa.encoders.pool_last': dict(encoder_name_or_path='self', encoder_pooling='last'),
    'lopa.gating.gate_sigmoid': {},
}


@pytest.mark.parametrize('place', PLACES)
def test_a_planted_result_is_found(place, monkeypatch):
    "One function whose result lies on the CPU"
    module, _, name = place.rpartition('.')
    found = on_the_cpu(getattr(importlib.import_module(module), name))
    monkeypatch.setattr(place, found)
    if name == 'pool_last':
        monkeypatch.setitem(importlib.import_module(module).POOLINGS, 'last', found)
    if name == 'gate_sigmoid':
        monkeypatch.setitem(GATES, 'sigmoid', found)
    with fake_gpu() as device, wrong:
        model = on(device, **PLACES[place])
        if name == 'outer_order':
            model.base_model.set_attn_implementation('eager')
        step(model, batch(model, device))


@pytest.mark.parametrize('method', ['lopa', 'full'])
def test_a_planted_layer_is_found(method):
    "Also behind gradient checkpointing"
    with fake_gpu() as device:
        model = on(device, method=method)
        model.base_model.model.layers[0].mlp.register_forward_pre_hook(
            lambda _, args: args[0] + torch.zeros(32)
        )
        model.gradient_checkpointing_enable()
        with wrong:
            step(model, batch(model, device))


@pytest.mark.parametrize('kind,method', [('llama', 'lopa'), ('llama', 'lora'), ('t5', 'pt')])
def test_a_planted_mask_is_found(kind, method, monkeypatch):
    "Generation is given a mask on the CPU"
    with fake_gpu() as device:
        model = on(device, kind, method)
        ask_only(model, monkeypatch)
        stub = model.base_model.generate
        monkeypatch.setattr(
            model.base_model,
            'generate',
            lambda attention_mask, **given: stub(attention_mask=attention_mask.cpu(), **given),
        )
        with wrong:
            model.generate(
                **{k: v for k, v in batch(model, device).items() if k != 'labels'}, max_new_tokens=2
            )


def test_features_on_the_cpu_are_moved():
    with fake_gpu() as device:
        model = on(device)
        step(model, batch(model, device) | {'instance_features': torch.zeros(2, FEATURES)})
