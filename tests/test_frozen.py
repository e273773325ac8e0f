"What is frozen stays as it is, and what should learn learns"

import math

import pytest
import torch
from helpers import FEATURES, PROMPT, example, prompted, rows, tiny

from lopa.gating import GATES


def copy(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def same(module, before):
    return all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def with_encoder(base, encoder_folder, tuned):
    "A model that runs its encoder, and a batch for it"
    model = prompted(base, encoder_name_or_path=encoder_folder, train_encoder=tuned)
    ids = torch.stack(rows((5, 5, 5))[0])
    return model, dict(
        input_ids=ids,
        labels=ids,
        instance_input_ids=ids % 50,
        instance_attention_mask=torch.ones_like(ids),
    )


def fit(model, batch, steps=3, lr=1e-2):
    "Losses of some optimiser steps on one batch"
    optimiser = torch.optim.AdamW(trainable(model), lr=lr, weight_decay=0.1)
    losses = []
    model.train()
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize('kind', ['llama', 'gpt2'])
def test_foundation_model_is_untouched(kind):
    base = tiny(kind)
    before = copy(base)
    model = prompted(base)
    generator = copy(model.generator)
    batch = example(model)
    fit(model, batch | {'labels': batch['input_ids']})
    assert same(base, before)
    assert not any(p.requires_grad or p.grad is not None for p in base.parameters())
    assert not same(model.generator, generator)


@pytest.mark.parametrize('tuned', [False, True])
def test_encoder_learns_only_if_asked(llama, encoder_folder, tuned):
    model, batch = with_encoder(llama, encoder_folder, tuned)
    before = copy(model.encoder)
    generator = copy(model.generator)
    fit(model, batch)
    assert same(model.encoder, before) != tuned
    assert any(p.grad is not None for p in model.encoder.parameters()) == tuned
    assert not same(model.generator, generator)


@pytest.mark.parametrize('tuned', [False, True])
def test_modes(llama, encoder_folder, tuned):
    "`train` wakes what is trained and nothing else; `eval` silences all"
    model, _ = with_encoder(llama, encoder_folder, tuned)
    assert not any(m.training for m in model.modules())
    model.train()
    assert model.training and all(m.training for m in model.generator.modules())
    assert not any(m.training for m in model.base_model.modules())
    assert {m.training for m in model.encoder.modules()} == {tuned}
    model.eval()
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize('tuned', [False, True])
@torch.no_grad()
def test_dropout_of_the_encoder(llama, encoder_folder, tuned):
    "A frozen encoder's dropout never fires; a tuned one's does"
    model, batch = with_encoder(llama, encoder_folder, tuned)
    model.train()
    a, b = (
        model.encoder(batch['instance_input_ids'], batch['instance_attention_mask'])
        for _ in range(2)
    )
    assert torch.equal(a, b) != tuned


@torch.no_grad()
def test_dropout_of_the_foundation_model():
    "GPT-2 has dropout of its own: silent in training (the heads' dropout is zero here)"
    model = prompted(tiny('gpt2', resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5))
    batch = example(model)
    expected = model(**batch).logits
    model.train().generator.eval()
    assert torch.equal(model(**batch).logits, expected)


@pytest.mark.parametrize('method', [*sorted(GATES), 'pt'])
def test_loss_falls(llama, method):
    "Two instances, the same words, two answers: without the instance none gets below ln 2"
    looks = method not in ('pt', 'shared')
    torch.manual_seed(0)
    model = (
        prompted(llama, 'pt', shaken=False, num_virtual_tokens=6)
        if method == 'pt'
        else prompted(llama, shaken=False, num_virtual_tokens=6, gate=method)
    )
    ids = torch.tensor([[5, 6, 7, 11], [5, 6, 7, 12]])
    batch = dict(input_ids=ids, labels=torch.where(torch.arange(4) == 3, ids, -100))
    if method != 'pt':
        batch['instance_features'] = torch.tensor([[1.0], [-1.0]]).expand(2, FEATURES)
    losses = fit(model, batch, steps=150, lr=3e-2)
    chance = math.log(2)
    assert losses[-1] < losses[0] / 2
    if not looks:
        assert losses[-1] > chance - 0.01
    elif method != 'instance':
        assert losses[-1] < chance  # without a task prompt it gets there too, but slowly


def test_only_what_the_gate_uses_gets_a_gradient(llama, gate):
    "Task prompt and heads both learn, unless the gate leaves one of them out"
    model = prompted(llama, gate=gate)
    batch = example(model)
    model(**batch, labels=batch['input_ids']).loss.backward()
    got = {
        name: p.grad is not None and bool(p.grad.any())
        for name, p in model.generator.named_parameters()
    }
    assert got.pop('prompt') == (gate != 'instance')
    assert set(got.values()) == {gate != 'shared'}


def test_accumulation(llama):
    "Two uneven halves, divided by the labels of both, add up to the gradient of the whole batch"
    model = prompted(llama)
    batch = example(model, (3, 8, 5))
    batch['labels'] = torch.where(batch['attention_mask'] == 1, batch['input_ids'], -100)
    count = (batch['labels'] != -100).sum()
    model(**batch).loss.backward()
    whole = [p.grad.clone() for p in trainable(model)]
    model.zero_grad()
    for part in slice(0, 1), slice(1, 3):
        model(**{k: v[part] for k, v in batch.items()}, num_items_in_batch=count).loss.backward()
    for p, expected in zip(trainable(model), whole, strict=True):
        torch.testing.assert_close(p.grad, expected, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_labels_restrict_the_head_to_where_it_is_needed(base):
    "Logits are computed at the labelled positions only, and the loss is that of all logits"
    model = prompted(base)
    batch = example(model, (3, 6))
    labels = torch.full_like(batch['input_ids'], -100)
    labels[:, -2:] = batch['input_ids'][:, -2:]
    few = model(**batch, labels=labels)
    full = model(**batch).logits
    assert few.logits.shape[1] == 2 and full.shape[1] == PROMPT + 6
    expected = torch.nn.functional.cross_entropy(
        full[:, -3:-1].flatten(0, 1), labels[:, -2:].flatten()
    )
    torch.testing.assert_close(few.loss, expected, atol=1e-5, rtol=1e-5)
