"""What attention is asked for in training: no mask for causal models, a key for every query,
and never cuDNN's kernel beside a mask (`nbs/05_attention.ipynb` says why)"""

from unittest.mock import patch

import pytest
import torch
import transformers as tf
from helpers import (
    CAUSAL,
    MASKED,
    PAIRS,
    SEQ2SEQ,
    adapted,
    features,
    one_sentence,
    padded,
    prompted,
    rows,
    tiny,
)
from torch.nn import functional as F

from lopa.attention import looks_ahead
from lopa.logits import ask
from lopa.support import check_gradient

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
LENGTHS = range(2, 141)  # tokens of the longest row, the prompt on top; one has nothing to predict
ROOM = {'gpt2': 'n_positions', 'bloom': None, 't5': None}
ONE_LAYER = {'gpt2': 'n_layer', 'bloom': 'n_layer', 't5': 'num_layers'}
PROMPTS = ['pt', 'lopa', 'idpg', 'idpg-phm', 'dept']
attend = F.scaled_dot_product_attention


def long_base(kind):
    "One layer, with positions for long rows, and torch's fused attention"
    room = ROOM.get(kind, 'max_position_embeddings')
    sizes = {ONE_LAYER.get(kind, 'num_hidden_layers'): 1} | ({room: 256} if room else {})
    base = tiny(kind, **sizes)
    check_gradient(base)  # asked once, before anybody watches
    return base


class Watch:
    "In place of torch's attention: complain about what must not be asked for, and count"

    def __init__(self, causal):
        self.causal = causal
        self.calls = 0
        self.sixty_four = 0

    def __call__(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **more):
        self.calls += 1
        t = query.shape[2]
        s = key.shape[2]
        if self.causal:
            assert attn_mask is None, f'a causal model was handed a mask, {t} × {s}'
            assert is_causal or t == s == 1, f'not by rule, {t} × {s}'
            assert t == s, f'{t} queries on {s} keys: the rule would count from the wrong corner'
        if attn_mask is not None:
            self.check(attn_mask, t, s)
        return attend(query, key, value, attn_mask, dropout_p, is_causal, **more)

    def check(self, mask, t, s):
        "Every query has a key, and cuDNN's kernel is left out"
        allowed = mask if mask.dtype == torch.bool else mask > -1e9
        assert allowed.any(-1).all(), f'a query sees nothing, {t} × {s}'
        self.sixty_four += 64 in (t % 128, s % 128)
        assert not torch.backends.cuda.cudnn_sdp_enabled(), f'a mask, and cuDNN, {t} × {s}'

    def watching(self):
        return patch.object(F, 'scaled_dot_product_attention', self)


def batch_of(model, kind, longest):
    "Rows of three lengths, labels at the end of each (in the middle for a masked model)"
    ids, h = rows((longest, longest // 2 + 1, 1))
    if kind in SEQ2SEQ:
        labels = torch.tensor([[5, 6, 7]] * 3)
    else:
        at = [(len(i) - 1) // 2 if kind in MASKED else len(i) - 1 for i in ids]
        labels = [
            torch.where(torch.arange(len(i)) == a, i, -100) for i, a in zip(ids, at, strict=True)
        ]
        labels = padded(labels, 'right', -100)['input_ids']
    return padded(ids, 'right') | {'labels': labels} | features(model, h)


def train_on(model, kind, longest):
    "Forward and backward"
    loss = model.train()(**batch_of(model, kind, longest)).loss
    assert loss.isfinite(), longest
    if loss.requires_grad:
        loss.backward()
    model.zero_grad()


def watch_all_lengths(model, kind):
    watch = Watch(kind in CAUSAL)
    with watch.watching():
        for longest in LENGTHS:
            train_on(model, kind, longest)
    assert watch.calls >= len(LENGTHS)
    assert kind in CAUSAL or watch.sixty_four  # the length in question was there


@pytest.mark.parametrize(
    'kind,method', [p for p in PAIRS if p[0] in ('llama', 'gpt2', 'roberta', 't5')]
)
def test_every_method_and_family(kind, method):
    watch_all_lengths(adapted(long_base(kind), method), kind)


@pytest.mark.parametrize('position', ['after_start', 'suffix'])
@pytest.mark.parametrize('method', PROMPTS)
@pytest.mark.parametrize('kind', ['llama', 'roberta', 't5'])
def test_every_position(kind, method, position):
    watch_all_lengths(prompted(long_base(kind), method, position=position), kind)


@pytest.mark.parametrize('method', ['lopa', 'lora', 'prefix'])
@pytest.mark.parametrize('kind', ['qwen2', 'phi', 'gpt-neox', 'opt'])
def test_other_causal_models(kind, method):
    model = adapted(long_base(kind), method)
    watch = Watch(causal=True)
    with watch.watching():
        for longest in 2, 61, 64, 125:
            train_on(model, kind, longest)
    assert watch.calls


def test_a_mask_is_noticed(monkeypatch):
    "The rows on the right, but with a mask"
    model = prompted(long_base('llama'))

    def masked(call, base, *args, **inputs):
        mask = torch.ones(inputs['inputs_embeds'].shape[:2], dtype=torch.long)
        mask[-1, -1] = 0
        return ask(call, base, *args, attention_mask=mask, **inputs)

    monkeypatch.setattr('lopa.model.ask', masked)
    with Watch(causal=True).watching(), pytest.raises(AssertionError, match='handed a mask'):
        train_on(model, 'llama', 9)


@pytest.mark.parametrize('method', ['lopa', 'pt'])
def test_the_old_layout_is_noticed(method):
    "Rows on the left: a mask, and queries that see nothing"
    model = adapted(long_base('llama'), method)
    ids, h = rows((9, 4))
    given = padded(ids, 'left') | features(model, h)
    for causal, complaint in (True, 'handed a mask'), (False, 'sees nothing'):
        with Watch(causal).watching(), pytest.raises(AssertionError, match=complaint):
            model(**given)


@pytest.mark.parametrize('method', ['lora', 'full'])
def test_baselines_leave_the_old_layout(method):
    "Rows on the left are moved: no mask, and the logits of each row in its own columns"
    model = adapted(long_base('llama'), method)
    ids, _ = rows((9, 4))
    alone = [model(row[None]).logits[0] for row in ids]
    watch = Watch(causal=True)
    with watch.watching():
        together = model(**padded(ids, 'left')).logits
    assert watch.calls
    for logits, own in zip(together, alone, strict=True):
        torch.testing.assert_close(logits[-len(own) :], own, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('kind', ['roberta', 't5'])
def test_cudnn_beside_a_mask_is_noticed(kind, monkeypatch):
    model = adapted(long_base(kind), 'pt')
    monkeypatch.setattr('lopa.attention.faulty_cudnn', lambda: False)
    with Watch(causal=False).watching(), pytest.raises(AssertionError, match='and cuDNN'):
        train_on(model, kind, 60)


@pytest.mark.parametrize('kind', ['roberta', 't5'])
def test_recomputed_layers_leave_cudnn_out_as_well(kind):
    "They run in the backward pass, when the context of the call has ended"
    model = prompted(long_base(kind))
    watch = Watch(causal=False)
    model.gradient_checkpointing_enable()
    with watch.watching():
        loss = model.train()(**batch_of(model, kind, 61)).loss
        once = watch.calls
        loss.backward()
    assert watch.calls > once and torch.backends.cuda.cudnn_sdp_enabled()


# --- the numbers are those of the old layout ---


def old_loss(model, ids, h):
    "Rows padded on the left, with a mask and position numbers, and logits everywhere"
    given = padded(ids, 'left')
    logits = model(**given, **features(model, h)).logits[:, -2]
    return F.cross_entropy(logits.float(), given['input_ids'][:, -1])


def gradients(model, loss):
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize('attention', ['eager', 'sdpa'])
@pytest.mark.parametrize('kind', CAUSAL)
@pytest.mark.parametrize('method', [*PROMPTS, 'lora', 'full'])
def test_right_padding_changes_no_number(kind, method, attention):
    "Loss and gradients of a step, dropout off; prefix and P-tuning were padded on the right before"
    if (kind, attention) == ('bloom', 'sdpa'):
        pytest.skip('Bloom has an attention of its own')
    model = adapted(tiny(kind), method)
    model.base_model.set_attn_implementation(attention)
    ids, h = rows((7, 3, 5))
    labels = [torch.where(torch.arange(len(i)) == len(i) - 1, i, -100) for i in ids]
    before = old_loss(model, ids, h)
    theirs = gradients(model, before)
    for side in 'left', 'right':  # whatever side the caller pads
        given = padded(ids, side) | {'labels': padded(labels, side, -100)['input_ids']}
        loss = model(**given, **features(model, h)).loss
        torch.testing.assert_close(loss, before, atol=1e-4, rtol=0)
        ours = gradients(model, loss)
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)


SIZES = dict(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    initializer_range=0.2,
    max_position_embeddings=64,
)
LOOK_AHEAD = {
    'BERT': lambda: tf.BertLMHeadModel(tf.BertConfig(**SIZES)),
    'Megatron-BERT': lambda: tf.MegatronBertForCausalLM(tf.MegatronBertConfig(**SIZES)),
    'RoFormer': lambda: tf.RoFormerForCausalLM(tf.RoFormerConfig(**SIZES)),
    'XLNet': lambda: tf.XLNetLMHeadModel(
        tf.XLNetConfig(
            vocab_size=100, d_model=32, n_layer=2, n_head=2, d_inner=32, initializer_range=0.2
        )
    ),
    'a Llama that is told to': lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**SIZES, is_causal=False)
    ),
}
COUNTERS = {
    'RoBERTa': 'Roberta',
    'CamemBERT': 'Camembert',
    'XLM-RoBERTa': 'XLMRoberta',
    'Data2Vec': 'Data2VecText',
}


def at_the_end(ids):
    "A label on the last token of each row"
    return [torch.where(torch.arange(len(i)) == len(i) - 1, i, -100) for i in ids]


@pytest.mark.parametrize('kind', LOOK_AHEAD)
def test_a_model_that_looks_ahead_is_refused(kind):
    "It counts as causal, and would see the answer"
    torch.manual_seed(0)
    base = LOOK_AHEAD[kind]()
    with pytest.raises(ValueError) as e:
        prompted(base, 'pt')
    one_sentence(e.value, type(base).__name__, 'later tokens')


@pytest.mark.parametrize('kind', CAUSAL)
def test_causal_models_are_found_causal(kind):
    base = tiny(kind)
    base.train()
    assert not looks_ahead(base) and all(module.training for module in base.modules())


@pytest.mark.parametrize('method', ['pt', 'lora'])
@pytest.mark.parametrize('kind', COUNTERS)
@torch.no_grad()
def test_training_and_prediction_count_alike(kind, method):
    "RoBERTa and its kin begin to count after the padding's number, with labels and without"
    torch.manual_seed(0)
    name = COUNTERS[kind]
    sizes = SIZES | {'is_decoder': True, 'pad_token_id': 1}
    base = getattr(tf, f'{name}ForCausalLM')(getattr(tf, f'{name}Config')(**sizes)).eval()
    base.config._name_or_path = base.name_or_path = 'tiny'
    model = adapted(base, method)
    ids, _ = rows((7, 4))
    ids = [i.clamp(min=2) for i in ids]  # no token is the padding's
    given = padded(ids, 'left', 2)
    labels = padded(at_the_end(ids), 'left', -100)['input_ids']
    asked = model(**given, labels=labels).logits[:, 0]
    torch.testing.assert_close(asked, model(**given).logits[:, -2], atol=1e-4, rtol=1e-3)


def test_a_model_that_hands_on_a_mask_of_its_own_is_not_told_otherwise():
    "Doge's window is learned; a prefix before it must not lose the mask"
    torch.manual_seed(0)
    sizes = SIZES | {'keep_window_size': 4, 'num_key_value_heads': 1}
    losses = []
    state = None
    for attention in 'eager', 'sdpa':
        base = tf.DogeForCausalLM(tf.DogeConfig(**sizes, attn_implementation=attention)).eval()
        if state:
            base.load_state_dict(state)
        state = base.state_dict()
        base.config._name_or_path = base.name_or_path = 'tiny'
        if looks_ahead(base):
            pytest.skip("this transformers' Doge attends to later tokens, so it keeps its mask")
        ids, _ = rows((12, 9))
        labels = padded(at_the_end(ids), 'right', -100)['input_ids']
        losses.append(adapted(base, 'prefix')(**padded(ids, 'right'), labels=labels).loss)
    torch.testing.assert_close(*losses, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_a_suffix_is_the_same_for_every_kernel():
    "BART's decoder counts by itself, so its text is not read first"
    losses = []
    for attention in 'eager', 'sdpa':
        torch.manual_seed(0)
        sizes = dict(
            vocab_size=100,
            d_model=32,
            decoder_layers=2,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            max_position_embeddings=64,
            init_std=0.2,
            is_encoder_decoder=False,
        )
        base = tf.BartForCausalLM(tf.BartConfig(**sizes, attn_implementation=attention)).eval()
        base.config._name_or_path = base.name_or_path = 'tiny'
        ids, _ = rows((12, 5))
        labels = padded(at_the_end(ids), 'right', -100)['input_ids']
        losses.append(
            prompted(base, 'pt', position='suffix')(**padded(ids, 'right'), labels=labels).loss
        )
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('method', ['lopa', 'lora'])
@torch.no_grad()
def test_a_mask_of_booleans(method):
    model = adapted('llama', method)
    ids, h = rows((6, 3))
    given = padded(ids, 'left') | features(model, h)
    exact = model(**given).logits
    assert torch.equal(
        model(**given | {'attention_mask': given['attention_mask'].bool()}).logits, exact
    )
