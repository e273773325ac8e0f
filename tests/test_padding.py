"A padded example in a batch is treated as the same example alone"

import pytest
import torch
from helpers import PROMPT, few, padded, prompted, rows
from hypothesis import given
from hypothesis import strategies as st

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=4)
sides = st.sampled_from(['left', 'right'])
seeds = st.integers(0, 999)


@few
@given(lengths=lengths, side=sides, seed=seeds)
@torch.no_grad()
def test_logits(base, lengths, side, seed):
    "Prompt and text of a padded row get the logits that they get alone"
    model = prompted(base)
    ids, h = rows(lengths, seed)
    together = model(**padded(ids, side), instance_features=h).logits
    for i, n in enumerate(lengths):
        alone = model(ids[i][None], instance_features=h[i : i + 1]).logits[0]
        there = slice(-n - PROMPT, None) if side == 'left' else slice(n + PROMPT)
        torch.testing.assert_close(together[i, there], alone, atol=1e-4, rtol=1e-3)


@few
@given(lengths=lengths, side=sides, seed=seeds)
@torch.no_grad()
def test_loss(base, lengths, side, seed):
    "The loss of a batch is the mean of its rows' losses when each has one label"
    model = prompted(base)
    ids, h = rows(lengths, seed)
    labels = [torch.full_like(i, -100) for i in ids]
    for row, i in zip(labels, ids, strict=True):
        row[-1] = i[-1]
    together = model(
        **padded(ids, side), labels=padded(labels, side, -100)['input_ids'], instance_features=h
    ).loss
    alone = [
        model(i[None], labels=l[None], instance_features=h[k : k + 1]).loss
        for k, (i, l) in enumerate(zip(ids, labels, strict=True))
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-4, rtol=1e-3)


@few
@given(lengths=lengths, side=sides, seed=seeds)
def test_generate(base, lengths, side, seed):
    "A padded row continues with the tokens with which it continues alone"
    model = prompted(base)
    ids, h = rows(lengths, seed)
    kwargs = dict(max_new_tokens=3, do_sample=False, pad_token_id=0)
    together = model.generate(**padded(ids, side), instance_features=h, **kwargs)
    for i, row in enumerate(ids):
        assert (
            together[i].tolist()
            == model.generate(row[None], instance_features=h[i : i + 1], **kwargs)[0].tolist()
        )


@pytest.mark.parametrize('side', ['left', 'right'])
@torch.no_grad()
def test_every_method(model, side):
    "Padding is as harmless for every gate, those with longer prompts too"
    ids, h = rows((2, 6), 3)
    h = h if model.generator.uses_instance else None
    x = model(**padded(ids, side), instance_features=h).logits
    alone = model(ids[0][None], instance_features=None if h is None else h[:1]).logits[0]
    n = len(alone)
    torch.testing.assert_close(
        x[0, -n:] if side == 'left' else x[0, :n], alone, atol=1e-4, rtol=1e-3
    )


@torch.no_grad()
def test_position_matters(base):
    "The other tests would pass by accident on a model that cannot tell positions apart"
    model = prompted(base)
    ids, h = rows([6])
    turned = ids[0].flip(0)
    turned[-1] = ids[0][-1]
    a, b = (model(i[None], instance_features=h).logits[0, -1] for i in (ids[0], turned))
    assert (a - b).abs().max() > 1e-2
