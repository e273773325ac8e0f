"Laws that hold for all sizes and numbers"

import pytest
import torch
import transformers as tf
from helpers import FEATURES, few, prompted
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from lopa import PromptConfig
from lopa.factorize import LowRankHeads, count_parameters, low_rank
from lopa.gating import GATES, gate_sigmoid
from lopa.layout import POSITIONS, insert_prompt, insertion_point
from lopa.logits import wanted_positions
from lopa.prompts import METHODS
from lopa.tasks import Collator, Task, tokenize

size = st.integers(1, 7)
seeds = st.integers(0, 9999)
masks = (
    st.integers(1, 8)
    .flatmap(
        lambda t: st.lists(
            st.lists(st.integers(0, 1), min_size=t, max_size=t), min_size=1, max_size=4
        )
    )
    .map(torch.tensor)
)


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@few
@given(b=size, m=size, d=size, r=size, seed=seeds)
def test_rank(b, m, d, r, seed):
    "U V^T has at most rank r"
    logits = low_rank(normal(b, m, r, seed=seed), normal(b, d, r, seed=seed + 1))
    assert logits.shape == (b, m, d)
    assert torch.linalg.matrix_rank(logits).max() <= min(m, d, r)


@few
@given(b=size, m=size, d=size, scale=st.floats(0.1, 50), seed=seeds)
def test_sigmoid_gate_only_turns_down(b, m, d, scale, seed):
    "It keeps the sign of every entry, and never exceeds it"
    z_s = normal(m, d, seed=seed)
    z = gate_sigmoid(normal(m, d, seed=seed), scale * normal(b, m, d, seed=seed + 1))
    assert (z.abs() <= z_s.abs()).all() and (z * z_s >= 0).all()


@few
@given(name=st.sampled_from(sorted(GATES)), b=size, m=size, d=size, seed=seeds)
def test_gates_treat_instances_alone(name, b, m, d, seed):
    "A gate gives each instance what it would get without the others"
    z_s = normal(m, d, seed=seed)
    z_i = normal(b, m, d, seed=seed + 1)
    z = GATES[name](z_s, z_i)
    assert z.shape == (b, 2 * m if name == 'concat' else m, d)
    alone = torch.cat([GATES[name](z_s, z_i[i : i + 1]) for i in range(b)])
    # the last bit depends on how many numbers the processor takes at once
    torch.testing.assert_close(z, alone, rtol=1e-14, atol=1e-15)


def tagged(b, t, m):
    "A prompt and an input whose vectors say what they are: -1, -2, … and 1, 2, …"
    prompt = -torch.arange(1, m + 1)
    words = torch.arange(1, t + 1)
    return prompt[None, :, None].expand(b, m, 1), words[None, :, None].expand(b, t, 1)


@few
@given(
    mask=masks,
    m=st.integers(0, 5),
    padding=st.sampled_from(['keep', 'left', 'right']),
    position=st.sampled_from(POSITIONS),
)
def test_insert_prompt(mask, m, padding, position):
    "A permutation that keeps the order of prompt, words and padding, and sees as many words"
    b, t = mask.shape
    prompt, words = tagged(b, t, m)
    at = insertion_point(mask, position)
    x, wide, labels, q = insert_prompt(prompt, words, mask, at, words[..., 0], padding)
    assert q == 0
    for row, seen, label, was, a in zip(x[..., 0], wide, labels, mask, at, strict=True):
        assert sorted(row.tolist()) == sorted(torch.cat([prompt[0], words[0]]).flatten().tolist())
        kept = row[seen == 1]
        real = words[0, :, 0][was == 1].tolist()
        assert (
            kept[kept < 0].tolist() == prompt[0, :, 0].tolist() and kept[kept > 0].tolist() == real
        )
        assert row[seen == 0].tolist() == words[0, :, 0][was == 0].tolist()
        assert (
            label.tolist() == torch.where((seen == 1) & (row > 0), row, -100).tolist()
        )  # labels move with their words
        before = [w for w in real if w <= a]
        assert kept.tolist() == before + prompt[0, :, 0].tolist() + real[len(before) :]
        if padding == 'left':
            assert sorted(seen.tolist()) == seen.tolist()
        if padding == 'right':
            assert sorted(seen.tolist(), reverse=True) == seen.tolist()


@few
@given(mask=masks, m=st.integers(0, 5), seed=seeds)
def test_aligned_prompts(mask, m, seed):
    "All prompts stand in the same columns, words keep their side of them, nothing is lost"
    b, t = mask.shape
    at = torch.randint(0, t + 1, (b,), generator=torch.Generator().manual_seed(seed))
    prompt, words = tagged(b, t, m)
    x, wide, _, q = insert_prompt(prompt, words, mask, at, align=True)
    for row, seen, was, a in zip(x[..., 0], wide, mask, at.tolist(), strict=True):
        real = words[0, :, 0][was == 1].tolist()
        assert row[q : q + m].tolist() == prompt[0, :, 0].tolist() and seen[q : q + m].all()
        assert row[:q][seen[:q] == 1].tolist() == [w for w in real if w <= a]
        assert row[q + m :][seen[q + m :] == 1].tolist() == [w for w in real if w > a]
        assert (
            sorted(seen[:q].tolist()) == seen[:q].tolist()
            and sorted(seen[q:].tolist(), reverse=True) == seen[q:].tolist()
        )


@few
@given(b=size, t=size, shift=st.integers(0, 1), seed=seeds)
def test_wanted_positions(b, t, shift, seed):
    "Every label that has a position for it is asked for exactly there, and nothing else is"
    g = torch.Generator().manual_seed(seed)
    labels = torch.where(
        torch.rand(b, t, generator=g) < 0.3, torch.randint(0, 50, (b, t), generator=g), -100
    )
    where, targets = wanted_positions(labels, shift)
    found = {
        (i, where[i, j].item() + shift): targets[i, j].item()
        for i in range(b)
        for j in range(where.shape[1])
        if targets[i, j] != -100
    }
    assert found == {
        (i, j): labels[i, j].item()
        for i in range(b)
        for j in range(t)
        if labels[i, j] != -100 and j >= shift
    }
    assert targets.shape == where.shape and (targets != -100).any(0).all()


@few
@given(e=size, w=size, m=size, d=size, r=size)
def test_parameter_count(e, w, m, d, r):
    "The formula of the paper"
    heads = 2 * (e * w + w) + (w * m * r + m * r) + (w * d * r + d * r)
    assert count_parameters(LowRankHeads(e, m, d, r, w)) == heads
    config = PromptConfig(num_virtual_tokens=m, rank=r, head_width=w, feature_width=e)
    assert count_parameters(METHODS['lopa'](config, torch.zeros(m, d), e)) == heads + m * d
    assert count_parameters(METHODS['pt'](config, torch.zeros(m, d))) == m * d


def test_published_count():
    "RoBERTa-large with m 10, r 4, w 256: the paper's 1.60 M"
    assert (
        round(
            count_parameters(
                METHODS['lopa'](
                    PromptConfig(num_virtual_tokens=10, rank=4, head_width=256),
                    torch.zeros(10, 1024),
                    1024,
                )
            )
            / 1e6,
            2,
        )
        == 1.6
    )


@few
@given(
    gate=st.sampled_from(['sigmoid', 'add', 'shared']),
    training=st.booleans(),
    scale=st.floats(0, 100),
    seed=seeds,
)
@torch.no_grad()
def test_begins_at_the_start_vectors(llama, gate, training, scale, seed):
    "Before training the prompt is rows of the embedding table, the same for every instance"
    model = prompted(llama, gate=gate, shaken=False, seed=seed).train(training)
    z = model.prompt(4, instance_features=scale * normal(4, FEATURES, seed=seed).float())
    assert torch.equal(z, z[:1].expand_as(z))
    table = llama.get_input_embeddings().weight
    assert (z[0, :, None] - table).abs().amax(2).amin(1).max() < 1e-6
    assert len(torch.unique(z[0], dim=0)) == len(z[0])


SCALED = {  # families that multiply a word's row on the way in
    'Gemma3': dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    ),
    'Bart': dict(
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        scale_embedding=True,
        decoder_start_token_id=2,
    ),
    'XGLM': dict(d_model=32, num_layers=2, attention_heads=2, ffn_dim=64, scale_embedding=True),
}


@pytest.mark.parametrize('family', SCALED)
def test_begins_where_the_model_sees_words(family):
    "And not at the bare rows of the table, which are too short by the root of the width"
    kind = 'TextConfig' if family == 'Gemma3' else 'Config'
    config = getattr(tf, family + kind)(vocab_size=100, **SCALED[family])
    of = 'ForConditionalGeneration' if family == 'Bart' else 'ForCausalLM'
    base = getattr(tf, family + of)(config)
    seen = base.get_input_embeddings()(torch.arange(100)[None])[0]
    rows = base.get_input_embeddings().weight
    assert seen.norm() / rows.norm() > 5
    model = prompted(base, 'pt', shaken=False)
    near = (model.prompt(1)[0, :, None] - seen).abs().amax(2).amin(1)
    assert near.max() < 1e-6


@few
@given(seed=seeds, gate=st.sampled_from(sorted(GATES)))
def test_no_gate_begins_at_a_saddle(llama, seed, gate):
    "From the first step on, the loss reaches the heads of every gate that uses them"
    generator = prompted(llama, gate=gate, shaken=False, seed=seed).generator
    generator(normal(2, FEATURES, seed=seed).float()).pow(3).sum().add(
        generator(torch.ones(2, FEATURES)).sum()
    ).backward()
    grad = generator.heads.v[-1].weight.grad
    assert (grad is not None and bool(grad.any())) == (gate != 'shared')


class Words:
    "A tokenizer that knows each character as its code"

    pad_token_id = 0
    padding_side = 'left'

    def __call__(
        self,
        text,
        add_special_tokens=True,
        return_offsets_mapping=False,
        truncation=False,
        max_length=None,
    ):
        from transformers import BatchEncoding

        if isinstance(text, list):
            return BatchEncoding(
                {'input_ids': [self(t, max_length=max_length).input_ids for t in text]}
            )
        ids = [ord(c) % 97 + 1 for c in text][:max_length]
        return BatchEncoding(
            {'input_ids': ids}
            | (
                {'offset_mapping': [(i, i + 1) for i in range(len(ids))]}
                if return_offsets_mapping
                else {}
            )
        )


@few
@given(
    texts=st.lists(st.text(max_size=20), min_size=1, max_size=4),
    max_length=st.integers(1, 12),
    own=st.booleans(),
    seed=seeds,
)
def test_labels_align(texts, max_length, own, seed):
    "The only label of a row stands on its last token, and is it; the mask counts the tokens"
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    task = Task('mine', {}, '{text}: ', ('no', 'yes'))
    data = Dataset.from_dict({'text': texts, 'label': [(seed >> i) % 2 for i in range(len(texts))]})
    words = Words()
    own_words = words if own else None
    done = tokenize(task, data, words, own_words, max_length, encoder_max_length=max_length)
    batch = Collator(words, words if own else None)([done[i] for i in range(len(done))])
    answers = torch.tensor([words('ny'[l]).input_ids[0] for l in data['label']])
    last = batch['attention_mask'].sum(1, keepdim=True) - 1
    for name in 'labels', 'input_ids':
        assert torch.equal(batch[name].gather(1, last)[:, 0], answers)
    assert ((batch['labels'] != -100).sum(1) == 1).all() and (
        batch['attention_mask'].diff() <= 0
    ).all()
    assert (
        batch['attention_mask'].sum(1).tolist()
        == list(done['length'])
        == [max(min(len(t), max_length - 2), 0) + 3 for t in texts]
    )  # the text is shortened, not the ': ' behind it
    if own:
        assert batch['instance_attention_mask'].sum(1).tolist() == [
            min(len(t), max_length) for t in texts
        ]
    assert ('instance_input_ids' in batch) == own


@few
@given(seed=seeds, n=st.integers(1, 6))
def test_features_stay_with_their_row(seed, n):
    "Collating keeps features and text of an instance together"
    h = normal(n, 5, seed=seed)
    made = [
        dict(
            input_ids=[1] * (i + 1),
            labels=[-100] * (i + 1),
            length=i + 1,
            instance_features=h[i].tolist(),
        )
        for i in range(n)
    ]
    batch = Collator(Words())(made)
    assert_close(batch['instance_features'], h.float())
    assert batch['attention_mask'].sum(1).tolist() == list(range(1, n + 1))
