"Gradient checkpointing: less memory, and the same numbers to the last bit"

import pytest
import torch
import torch.utils.checkpoint as recomputation
from helpers import (
    ARCHITECTURES,
    CAUSAL,
    MASKED,
    SEQ2SEQ,
    adapted,
    features,
    one_sentence,
    padded,
    rows,
    tiny,
)

from lopa.recompute import recompute_layers

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
CASES = [
    (kind, method)
    for kind in ARCHITECTURES
    for method in ('lopa', 'pt', 'dept', 'lora', 'p-tuning', 'full')
]
TUNED = dict(encoder_name_or_path='self', encoder_pooling='mean', train_encoder=True)


def given(model, kind, lengths=(3, 6)):
    "A batch with two labels per row"
    ids, h = rows(lengths)
    text = padded(ids, 'left')
    labels = (
        torch.tensor([[5, 7], [6, 7]])
        if kind in SEQ2SEQ
        else torch.where(torch.arange(6) >= 4, text['input_ids'], -100)
    )
    return (
        text
        | dict(labels=labels)
        | ({f'instance_{k}': v for k, v in text.items()} if model.encoder else features(model, h))
    )


def learn(model, kind):
    "Loss and gradients of a batch; dropout draws from the same seed"
    torch.manual_seed(0)
    model.zero_grad()
    loss = model.train()(**given(model, kind)).loss
    loss.backward()
    return {'loss': loss.detach()} | {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def tokens(model, kind):
    "What the model writes"
    if kind in MASKED:
        return torch.zeros(0)
    return model.eval().generate(
        **{k: v for k, v in given(model, kind).items() if k != 'labels'},
        max_new_tokens=4,
        do_sample=False,
        pad_token_id=0,
    )


def modes(model):
    return {n: m.training for n, m in model.named_modules()}


def counted(model, monkeypatch):
    "From now on, count how often layers are run in a way that can be repeated"
    runs = []
    real = recomputation.checkpoint
    monkeypatch.setattr(
        recomputation,
        'checkpoint',
        lambda *args, **kwargs: (runs.append(1), real(*args, **kwargs))[1],
    )
    return runs


def check(model, kind, monkeypatch, equal=torch.equal):
    kept = learn(model, kind)
    text = tokens(model, kind)
    mode = modes(model)
    model.gradient_checkpointing_enable()
    assert modes(model) == mode
    runs = counted(model, monkeypatch)
    again = learn(model, kind)
    layers = sum(getattr(m, 'recomputed', False) for m in model.modules())
    assert layers >= 2 and len(runs) == layers  # none is left out
    assert (
        kept.keys() == again.keys()
        and len(kept) > 1
        and all(equal(kept[k], again[k]) for k in kept)
    )
    assert (
        torch.equal(tokens(model, kind), text) and len(runs) == layers
    )  # and none of it in generation
    return again


@pytest.mark.parametrize('kind,method', CASES)
def test_the_same_to_the_last_bit(kind, method, monkeypatch):
    check(adapted(kind, method), kind, monkeypatch)


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'roberta', 't5'])
def test_with_a_tuned_encoder(kind, monkeypatch):
    "The encoder's layers, too; they drop the same both times"
    model = adapted(kind, 'lopa', **TUNED)
    assert any(n.startswith('encoder.') for n in check(model, kind, monkeypatch)) and any(
        getattr(m, 'recomputed', False) for m in model.encoder.modules()
    )


@pytest.mark.parametrize('kind', CAUSAL)
def test_behind_the_text(kind, monkeypatch):
    "A suffix reads its text in the same pass, not beforehand into a cache: equal up to rounding"
    close = lambda a, b: torch.allclose(a, b, atol=1e-4, rtol=1e-3)
    check(adapted(kind, 'pt', position='suffix'), kind, monkeypatch, close)


@pytest.mark.parametrize('position', ['prefix', 'suffix'])
def test_twice_is_once(position, monkeypatch):
    model = adapted('llama', 'lopa', position=position)
    model.gradient_checkpointing_enable()
    once = learn(model, 'llama')
    model.gradient_checkpointing_enable()
    recompute_layers(model)
    runs = counted(model, monkeypatch)
    twice = learn(model, 'llama')
    assert all(torch.equal(once[k], twice[k]) for k in once) and len(runs) == 2


@pytest.mark.parametrize('kind', ['llama', 't5'])
def test_prefix_tuning_is_refused(kind):
    model = adapted(kind, 'prefix')
    with pytest.raises(ValueError) as e:
        model.gradient_checkpointing_enable()
    one_sentence(e.value, 'gradient_checkpointing', 'prefix')
    assert not model.recomputes and not any(
        getattr(m, 'recomputed', False) for m in model.modules()
    )
    learn(model, kind)


def test_a_model_without_such_layers_is_refused():
    with pytest.raises(ValueError) as e:
        recompute_layers(torch.nn.Linear(2, 2))
    one_sentence(e.value, 'gradient_checkpointing', 'Linear')


@pytest.mark.parametrize(
    'kind,method',
    [(k, m) for k in ('llama', 'gpt2', 'bloom') for m in ('suffix', 'prefix')] + [('t5', 'prefix')],
)
def test_the_next_adapter_of_the_same_model(kind, method):
    "A foundation model that once recomputed serves adapters that use a cache as a fresh one does"
    make = lambda base: (
        adapted(base, 'prefix') if method == 'prefix' else adapted(base, 'pt', position='suffix')
    )
    used = tiny(kind)
    first = adapted(used, 'lopa')
    first.gradient_checkpointing_enable()
    learn(first, kind)
    fresh = make(tiny(kind))
    model = make(used)
    a = learn(fresh, kind)
    b = learn(model, kind)
    assert (
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) for k in a)
        and torch.equal(tokens(fresh, kind), tokens(model, kind))
    )


def test_it_saves_memory():
    "What is kept for the backward pass, counted once per piece of memory"

    def kept():
        seen = {}
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def note(t):
            if (where := t.untyped_storage()).data_ptr() not in own:
                seen[where.data_ptr()] = where.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            model(**given(model, 'llama'))
        return sum(seen.values())

    model = adapted(tiny(num_hidden_layers=6), 'pt')
    before = kept()
    model.gradient_checkpointing_enable()
    assert kept() < before / 2
