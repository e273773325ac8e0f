"Rules of positions and families, and of what is around the prompt, by small models"

import copy
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import transformers as tf
from fakes import batch, fake_gpu, on, step
from helpers import (
    CAUSAL,
    FEATURES,
    MASKED,
    PROMPT,
    SEQ2SEQ,
    WIDTH,
    adapted,
    one_sentence,
    padded,
    prompted,
    rows,
    tiny,
)
from torch.nn import functional as F
from torch.testing import assert_close

import lopa.logits as logits
import lopa.model as model_module
from lopa import PromptModel, get_prompt_model
from lopa.adapter import check_base, read_adapter, same_model, signature, write_adapter
from lopa.attention import ANSWERS
from lopa.encoders import (
    OWN,
    POOLINGS,
    AttentionPooling,
    EmbeddingTable,
    Encoder,
    encode_dataset,
    encoder_fingerprint,
    make_encoder,
    without_autocast,
)
from lopa.logits import (
    ask,
    counts_positions,
    decoder_input,
    first_position,
    only_at,
    position_ids,
    task_type,
    token_loss,
    wanted_positions,
)
from lopa.model import check_features, parameter_summary
from lopa.prompts import METHODS, PromptConfig
from lopa.recompute import recompute_layers, run_again
from lopa.support import check_length

FAMILIES = {
    **dict.fromkeys(CAUSAL, 'CAUSAL_LM'),
    **dict.fromkeys(MASKED, 'MASKED_LM'),
    **dict.fromkeys(SEQ2SEQ, 'SEQ_2_SEQ_LM'),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope='module')
def models():
    "Each of them once; read them, do not change them"
    made = {}

    def model(kind):
        if kind not in made:
            made[kind] = tiny(kind)
        return made[kind]

    return model


def causal_roberta(padding=1):
    "A RoBERTa that writes: its table of positions begins after the padding's number"
    config = tf.RobertaConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        pad_token_id=padding,
        is_decoder=True,
        initializer_range=0.2,
    )
    base = tf.RobertaForCausalLM(config).eval()
    base.config._name_or_path = base.name_or_path = 'tiny-roberta'
    return base


# --- families ---


@pytest.mark.parametrize('kind', FAMILIES)
def test_family(models, kind):
    assert task_type(models(kind)) == FAMILIES[kind]


@pytest.mark.parametrize('kind', FAMILIES)
def test_who_is_told_position_numbers(models, kind):
    "Causal models that take them; Bloom counts by its own means (ALiBi)"
    told = kind in CAUSAL and kind != 'bloom'
    assert counts_positions(models(kind)) == told
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    found = position_ids(models(kind), mask)
    assert found.keys() == ({'position_ids'} if told else set())
    if told:
        assert found['position_ids'].tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


@pytest.mark.parametrize('padding', [0, 1, 5])
def test_roberta_begins_to_count_after_the_padding(padding):
    "Its first real token has the number padding_idx + 1, wherever it stands"
    base = causal_roberta(padding)
    assert first_position(base) == padding + 1
    numbers = position_ids(base, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))['position_ids']
    assert (numbers - padding).tolist() == [[1, 1, 1, 2], [1, 2, 3, 3]]
    ids = torch.tensor([[7, 8, 9]])
    own = base(input_ids=ids).logits
    told = base(input_ids=ids, **position_ids(base, torch.ones_like(ids))).logits
    assert_close(told, own)


def test_a_padded_prompt_before_a_causal_roberta():
    "Through the model: padded on the left, a row has the logits that it has alone"
    model, (ids, h) = prompted(causal_roberta()), rows((3, 6))
    ids = [i.clamp(min=2) for i in ids]
    with torch.no_grad():
        together = model(**padded(ids, 'left', 2), instance_features=h).logits[0]
        alone = model(ids[0][None], instance_features=h[:1]).logits[0]
    assert_close(together[-len(alone) :], alone, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 'opt', 't5'])
def test_others_begin_at_zero(models, kind):
    assert first_position(models(kind)) == 0


# --- asking ---

LABELS = torch.tensor([[5, -100, 7, -100], [-100, -100, -100, 9], [-100, -100, -100, -100]])


def test_wanted_positions_by_hand():
    where, targets = wanted_positions(LABELS)  # the first label has no position before it
    assert where[:, 0].tolist() == [1, 2, 0] and targets.tolist() == [[7], [9], [-100]]
    where, targets = wanted_positions(LABELS, shift=0)
    assert where.tolist()[0] == [0, 2] and targets.tolist() == [[5, 7], [9, -100], [-100, -100]]
    assert where[1, 0] == 3
    assert wanted_positions(torch.full((2, 3), -100))[0].shape == (2, 0)


def test_token_loss_by_hand():
    logits, targets = torch.randn(2, 2, 5), torch.tensor([[1, -100], [2, 3]])
    each = -logits.log_softmax(2).flatten(0, 1)[[0, 2, 3], [1, 2, 3]]
    assert_close(token_loss(logits, targets), each.mean())
    assert_close(token_loss(logits, targets, 7), each.sum() / 7)
    assert token_loss(logits.bfloat16(), targets).dtype == torch.float32


def test_only_at_some_positions(models):
    "The same logits, fewer of them; and afterwards all of them again, also after an error"
    model, ids = models('llama'), torch.stack(rows((5, 5))[0])
    where = torch.tensor([[3, 0], [1, 4]])
    whole = model(ids).logits
    with only_at(model, where):
        few = model(ids).logits
    assert_close(few, whole.gather(1, where[..., None].expand(-1, -1, whole.shape[2])))
    with pytest.raises(ZeroDivisionError), only_at(model, where):
        raise ZeroDivisionError
    assert model(ids).logits.shape == whole.shape


def test_what_a_decoder_reads(models):
    model, mask = models('t5'), torch.ones(2, 3, dtype=torch.long)
    model.config.decoder_start_token_id = 4
    assert decoder_input(model, None, mask).tolist() == [[4], [4]]
    labels = torch.tensor([[5, 6, -100], [7, -100, -100]])
    assert decoder_input(model, labels, mask).tolist() == [[4, 5, 6], [4, 7, 0]]
    model.config.decoder_start_token_id = 0


@pytest.mark.parametrize('kind', ['llama', 'roberta', 't5'])
@torch.no_grad()
def test_asking(models, kind):
    "Logits where a label stands, and their loss; without labels, all logits and no loss"
    model, ids = models(kind), torch.stack(rows((4, 4, 4))[0])
    mask = torch.ones_like(ids)
    out = ask(model, model, LABELS, input_ids=ids, attention_mask=mask)
    if kind == 't5':
        start = torch.cat([torch.zeros(3, 1, dtype=torch.long), LABELS[:, :-1].clamp(min=0)], 1)
        whole, targets = model(input_ids=ids, decoder_input_ids=start).logits, LABELS
        assert_close(out.logits, whole)
        assert out.past_key_values is None
    else:
        whole = model(input_ids=ids).logits
        where, targets = wanted_positions(LABELS, int(kind == 'llama'))
        assert_close(out.logits, whole.gather(1, where[..., None].expand(-1, -1, 100)))
    assert_close(out.loss, token_loss(out.logits, targets))
    halved = ask(model, model, LABELS, 6, input_ids=ids, attention_mask=mask).loss
    count = (targets != -100).sum()
    assert_close(halved, out.loss * count / 6)
    free = ask(model, model, input_ids=ids, attention_mask=mask)
    assert getattr(free, 'loss', None) is None
    assert free.logits.shape == ((3, 1, 100) if kind == 't5' else (3, 4, 100))


def test_asking_says_whether_there_is_a_mask(models, monkeypatch):
    "The kernels to avoid depend on it"
    model, ids, said = models('llama'), torch.stack(rows((4,))[0]), []

    def kernels(model, masked):
        said.append(masked)
        return nullcontext()

    monkeypatch.setattr(logits, 'safe_kernels', kernels)
    ask(model, model, input_ids=ids)
    ask(model, model, input_ids=ids, attention_mask=torch.ones_like(ids))
    assert said == [False, True]


# --- where the prompt goes, seen by the foundation model ---


@pytest.mark.parametrize('kind', ['llama', 'roberta', 't5'])
@pytest.mark.parametrize('position', ['prefix', 'after_start', 'suffix'])
@pytest.mark.parametrize('side', ['left', 'right'])
@torch.no_grad()
def test_place_of_the_prompt(models, kind, position, side):
    "Before the text, after its first token, or behind it; padding stays where it can"
    model, (ids, _) = prompted(models(kind), 'pt', position=position), rows((2, 5))
    x = model.prompt_embeds(**padded(ids, side))
    table, z = models(kind).get_input_embeddings(), model.prompt(1)[0]
    cut = {'prefix': 0, 'after_start': 1, 'suffix': 2}[position]
    row = torch.cat([table(ids[0][:cut]), z, table(ids[0][cut:])])
    kept = kind == 'llama' and side == 'left'
    assert_close(x[0, -len(row) :] if kept else x[0, : len(row)], row)
    assert x.shape == (2, PROMPT + 5, WIDTH)


@torch.no_grad()
def test_a_suffix_stands_before_the_answer(models):
    "In causal models before the first label; elsewhere labels do not matter"
    (ids, _), labels = rows((5,)), torch.tensor([[-100, -100, -100, 7, 8]])
    for kind, at in ('llama', 3), ('roberta', 5), ('t5', 5):
        model = prompted(models(kind), 'pt', position='suffix')
        place, end = model.place(torch.ones(1, 5, dtype=torch.long), labels)
        assert place.tolist() == end.tolist() == [at]
        before = model.place(torch.ones(1, 5, dtype=torch.long))
        assert before[0].tolist() == [5]
        x, _, moved, _ = model.lay_out(ids[0][None], labels=labels)
        assert_close(x[0, at : at + PROMPT], model.prompt(1)[0])
        assert (moved.shape[1] == 5) == (kind == 't5')


@torch.no_grad()
def test_dept_changes_the_question_and_not_the_answer(models):
    "Words are counted from the first real one; the answer's embeddings stay"
    model = prompted(models('llama'), 'dept', update_length=3)
    ids = torch.tensor([[9, 9, 1, 2, 3, 4, 5]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    change = model.embed(ids, mask, torch.tensor([4])) - model.base_model.model.embed_tokens(ids)
    assert_close(change[0, 2:4], (model.generator.A @ model.generator.B)[:2], atol=1e-5, rtol=1e-4)
    assert not change[0, :2].any() and not change[0, 4:].any()
    three = model.embed(ids, mask, torch.tensor([7])) - model.base_model.model.embed_tokens(ids)
    assert three[0, 4].any() and not three[0, 5:].any()


def test_a_loss_by_hand(models):
    "Prompt, text and labels through the bare model, for causal and masked models"
    (ids, h), labels = rows((5,)), torch.tensor([[-100, -100, 7, -100, 8]])
    for kind, back in ('llama', 1), ('roberta', 0):
        model = prompted(models(kind))
        x = torch.cat([model.prompt(1, h), models(kind).get_input_embeddings()(ids[0][None])], 1)
        logits = models(kind)(inputs_embeds=x).logits[0]
        at = [PROMPT + 2 - back, PROMPT + 4 - back]
        loss = F.cross_entropy(logits[at], torch.tensor([7, 8]))
        out = model(ids[0][None], labels=labels, instance_features=h)
        assert_close(out.loss, loss, atol=1e-5, rtol=1e-4)
        assert_close(out.logits[0], logits[at], atol=1e-4, rtol=1e-4)
        half = model(ids[0][None], labels=labels, num_items_in_batch=4, instance_features=h)
        assert_close(half.loss, loss / 2, atol=1e-5, rtol=1e-4)


def eager():
    base = tiny()
    base.set_attn_implementation('eager')
    return base


@pytest.mark.parametrize('answers', [(1, 3, 2), (6, 4, 2)], ids=['some text', 'hardly any text'])
@pytest.mark.parametrize('method', ['pt', 'lopa'])
def test_suffix_in_two_passes(method, answers):
    "The text without a gradient, then prompt and answer: what one pass gives"
    model, (ids, h) = prompted(eager(), method, position='suffix'), rows((6, 4, 5))
    labels = [
        torch.where(torch.arange(len(i)) >= len(i) - n, i, -100)
        for i, n in zip(ids, answers, strict=True)
    ]
    given = padded(ids, 'left') | {'labels': padded(labels, 'left', -100)['input_ids']}
    given |= {'instance_features': h} if method == 'lopa' else {}
    assert model.reads_text_first()
    calls = []
    model.base_model.model.register_forward_pre_hook(
        lambda *_: calls.append(torch.is_grad_enabled())
    )
    model(**given)
    assert calls == [False, True]  # the text keeps nothing for the backward pass
    two, half = model(**given), model(**given, num_items_in_batch=2 * sum(answers)).loss
    model.recomputes = True
    assert not model.reads_text_first()
    one = model(**given)
    with torch.no_grad():
        assert model.reads_text_first()
    assert_close(two.loss, one.loss, atol=1e-4, rtol=1e-4)
    assert_close(half, one.loss / 2, atol=1e-4, rtol=1e-4)
    there = wanted_positions(given['labels'], 0)[1] != -100
    assert_close(two.logits[there], one.logits[there], atol=1e-4, rtol=1e-3)


def test_suffix_without_a_text():
    "All is answer: there is nothing to read first"
    model, (ids, _) = prompted(eager(), 'pt', position='suffix'), rows((3, 3))
    ids = torch.stack(ids)
    two = model(ids, labels=ids).loss
    model.recomputes = True
    assert_close(two, model(ids, labels=ids).loss, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    'config',
    [dict(position='prefix'), dict(num_virtual_tokens=0), dict(method='dept')],
    ids=str,
)
def test_who_reads_all_at_once(config):
    config = dict(method='pt', position='suffix') | config
    assert not prompted(eager(), **config).reads_text_first()


def test_one_vector_is_a_prompt_and_bloom_counts_by_itself():
    assert prompted(eager(), 'pt', position='suffix', num_virtual_tokens=1).reads_text_first()
    bloom = tiny('bloom')
    bloom.config._attn_implementation = 'eager'
    assert not prompted(bloom, 'pt', position='suffix').reads_text_first()


def test_kernels_other_than_eager_read_all_at_once():
    base = tiny()
    base.set_attn_implementation('sdpa')
    assert not prompted(base, 'pt', position='suffix').reads_text_first()


def test_reading_keeps_no_cache(models):
    model, (ids, _) = prompted(models('llama'), 'pt'), rows((4,))
    assert model(ids[0][None]).past_key_values is None
    assert model(ids[0][None], labels=ids[0][None]).past_key_values is None


def test_words_of_a_text_in_front(monkeypatch):
    "The foundation model's own tokenizer finds them"

    def tokenizer(text, add_special_tokens):
        return SimpleNamespace(input_ids=[7, 3])

    known = {'tiny-llama': tokenizer}
    monkeypatch.setattr(model_module, 'load_tokenizer', lambda base: known[base.name_or_path])
    base = tiny()
    model = get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=3, init='text:so it is'))
    assert torch.equal(model.prompt(1)[0], base.get_input_embeddings().weight[[7, 3, 7]])


def test_a_causal_model_is_asked_once_whether_it_looks_ahead():
    "When the prompt is put in front, before anything is compiled"
    for kind in 'llama', 'roberta':
        base = tiny(kind)
        prompted(base, 'pt')
        assert (base in ANSWERS) == (kind == 'llama')


# --- modes, parts, counting ---


def test_only_the_generator_is_in_training_mode(models):
    model = prompted(models('gpt2'))
    assert not any(m.training for m in model.modules())
    model.train()
    assert model.training and all(m.training for m in model.generator.modules())
    assert not any(m.training for m in model.base_model.modules())
    assert model.train() is model and model.eval() is model and not model.generator.training


@pytest.mark.parametrize('method', METHODS)
def test_parts(models, method):
    model = prompted(
        models('llama'), method, encoder_name_or_path='self', train_encoder=True, phm_blocks=4
    )
    for name, _ in model.named_parameters():
        part = 'encoder' if name.startswith('encoder.model.') else 'head'
        task = name == f'generator.{model.generator.task_part}'
        assert model.part(name) == ('prompt' if task else part)
    assert model.part('encoder.pool.query') == 'head'


def test_summary_and_properties(models, capsys):
    model = prompted(models('llama'), 'pt')
    total = PROMPT * WIDTH + sum(p.numel() for p in models('llama').parameters())
    line = (
        f'trainable params: {PROMPT * WIDTH:,} || all params: {total:,} || '
        f'trainable%: {100 * PROMPT * WIDTH / total:.4f}'
    )
    assert parameter_summary(model) == line
    model.print_trainable_parameters()
    assert capsys.readouterr().out == line + '\n'
    assert model.prompt_length == PROMPT and model.task_type == 'CAUSAL_LM'
    assert model.device == torch.device('cpu') and model.dtype == torch.float32
    assert prompted(tiny().bfloat16(), 'pt').dtype == torch.bfloat16
    assert not any(p.requires_grad for p in model.base_model.parameters())


def test_lengths():
    "Prompt, input and new tokens fit the positions, or are refused in one sentence"
    ten = tiny(max_position_embeddings=10)
    check_length(3, 7, ten)
    check_length(3, 5, ten, 2)
    check_length(3, 700, tiny('t5'))
    for new, said in (0, 'Prompt (4) and input (7) take 11'), (2, 'new tokens (2) take 13'):
        with pytest.raises(ValueError) as e:
            check_length(4, 7, ten, new)
        one_sentence(e.value, said, 'has 10')
    roberta = tiny('roberta', max_position_embeddings=12, pad_token_id=1)
    check_length(3, 7, roberta)
    with pytest.raises(ValueError, match='has 10'):
        check_length(4, 7, roberta)


def test_a_row_may_fill_the_positions(models):
    "64 of them: three vectors and 61 tokens"
    model = prompted(models('gpt2'), 'pt')
    assert model(torch.ones(1, 61, dtype=torch.long)).logits.shape[1] == 64
    with pytest.raises(ValueError) as e:
        model(torch.ones(1, 62, dtype=torch.long))
    one_sentence(e.value, 'Prompt (3) and input (62) take 65', 'has 64')


def test_features_of_a_wrong_shape():
    right = torch.zeros(3, 4)
    assert check_features(right, 3, 4) is right
    for rows_, width in (2, 4), (3, 5):
        with pytest.raises(ValueError) as e:
            check_features(right, rows_, width)
        one_sentence(e.value, (3, 4), (rows_, width))
    with pytest.raises(ValueError, match='looks at the instance'):
        check_features(None, 3, 4)


def test_features_or_tokens(models):
    "A frozen encoder's features may be brought; a tuned one reads the text"
    text = padded(rows((4, 6))[0], 'right')
    own = {f'instance_{k}': v for k, v in text.items()}
    model = prompted(models('llama'), encoder_name_or_path='self')
    h = model.encoder(**text)
    assert_close(model.prompt(2, instance_features=h), model.prompt(2, **own))
    seen = (model.prompt_embeds(**text, **more) for more in (own, {'instance_features': h}))
    assert_close(*seen)
    tuned = prompted(models('llama'), encoder_name_or_path='self', train_encoder=True)
    with pytest.raises(ValueError, match='being tuned'):
        tuned.prompt(2, instance_features=h)
    with pytest.raises(ValueError, match='instance_features'):
        model.prompt(2)


def test_encoder_and_its_tokenizer(models, encoder_folder):
    names = {n: prompted(models('llama'), encoder_name_or_path=n) for n in (*OWN, encoder_folder)}
    tokenizers = {n: m.encoder_tokenizer for n, m in names.items()}
    assert tokenizers == {**dict.fromkeys(OWN, 'tiny-llama'), encoder_folder: encoder_folder}
    assert prompted(models('llama')).encoder_tokenizer is None
    assert names[encoder_folder].adapter_config.feature_width == FEATURES
    assert prompted(models('llama'), 'pt', encoder_name_or_path='self').encoder is None
    config = PromptConfig(num_virtual_tokens=2)
    with pytest.raises(ValueError, match="'lopa' looks at the instance"):
        get_prompt_model(models('llama'), config)


@pytest.mark.parametrize('kind', ['llama', 't5'])
def test_generation(models, kind):
    "Only new tokens come back, as many as were asked for"
    model, (ids, h) = prompted(models(kind)), rows((3, 5))
    how = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
    alone = model.generate(ids[0][None], instance_features=h[:1], **how)
    assert alone.shape == (1, 3) and not alone.requires_grad
    for side in 'left', 'right':
        found = model.generate(**padded(ids, side), instance_features=h, **how)
        assert found.shape == (2, 3) and torch.equal(found[:1], alone)
    reads = prompted(models(kind), encoder_name_or_path='self', gate='instance')
    text = padded(ids, 'right')
    own = {f'instance_{k}': v for k, v in text.items()}
    h = reads.encoder(**text)
    a, b = (reads.generate(**text, **how, **more) for more in (own, {'instance_features': h}))
    assert torch.equal(a, b)
    with pytest.raises(ValueError, match='positions together'):
        prompted(tiny(), 'pt').generate(ids[0][None], max_new_tokens=60)
    for base in MASKED:
        with pytest.raises(ValueError, match='masked language model'):
            prompted(models(base), 'pt').generate(ids[0][None])


def test_what_an_adapter_says(models, tmp_path):
    model = prompted(models('llama'), rank=3)
    model.save_pretrained(tmp_path)
    about, state = read_adapter(tmp_path)
    assert about['base_model_name_or_path'] == 'tiny-llama' and about['config']['rank'] == 3
    assert about['task_type'] == 'CAUSAL_LM' and about['base_model'] == model.signature
    assert state.keys() == {f'generator.{n}' for n in model.generator.state_dict()}
    again = PromptModel.from_pretrained(models('llama'), tmp_path)
    assert again.adapter_config == model.adapter_config
    write_adapter(tmp_path, about, {**state, 'other': torch.zeros(1)})
    with pytest.raises(ValueError, match='other tensors'):
        PromptModel.from_pretrained(models('llama'), tmp_path)


# --- telling foundation models apart ---


def test_signature(models):
    base = tiny()
    found = signature(base)
    table = base.get_input_embeddings().weight
    some = torch.linspace(0, 1000, 8).long() % len(table)
    assert found['norms'] == [round(x, 4) for x in table[some].norm(dim=1).tolist()]
    assert (found['model_type'], found['width'], found['layers']) == ('llama', WIDTH, 2)
    inner = [p for p in base.parameters() if p.ndim == 2 and p is not table]
    norms = [inner[k][i].norm().item() for k in (0, len(inner) // 2, -1) for i in (0, 1)]
    assert found['inner_norms'] == [round(x, 4) for x in norms]
    assert signature(tiny().bfloat16()).keys() == found.keys()


def test_a_planned_model_has_no_norms():
    with torch.device('meta'):
        assert signature(tiny())['norms'] == signature(tiny())['inner_norms'] == []


SIGNED = dict(model_type='llama', width=4, layers=2, norms=[1.0, 2.0], inner_norms=[3.0])


@pytest.mark.parametrize(
    'change,same',
    [
        ({}, True),
        ({'model_type': 'gpt2'}, False),
        ({'width': 5}, False),
        ({'layers': 3}, False),
        ({'norms': [1.0, 2.04]}, True),
        ({'norms': [1.0, 2.05]}, False),
        ({'norms': [1.02, 2.0]}, True),
        ({'norms': [1.03, 2.0]}, False),
        ({'inner_norms': [2.95]}, True),
        ({'inner_norms': [2.9]}, False),
    ],
    ids=str,
)
def test_same_model(change, same):
    assert same_model(SIGNED, SIGNED | change) == same_model(SIGNED | change, SIGNED) == same
    about = {'base_model': SIGNED | change, 'base_model_name_or_path': 'theirs'}
    if same:
        check_base(about, SIGNED, 'folder', 'mine')
    else:
        with pytest.raises(ValueError) as e:
            check_base(about, SIGNED, 'folder', 'mine')
        one_sentence(e.value, 'folder', "'theirs'", "'mine'", 'width 4')


# --- encoders ---

HIDDEN = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [2.0, 0.0], [9.0, 9.0]]])
SEEN = torch.tensor([[0, 1, 1], [1, 1, 0]])
POOLED = {
    'cls': [[1.0, 2.0], [1.0, 1.0]],
    'mean': [[2.0, 3.0], [1.5, 0.5]],
    'last': [[3.0, 4.0], [2.0, 0.0]],
}


@pytest.mark.parametrize('name', POOLED)
def test_pooling_by_hand(name):
    h = POOLINGS[name](SimpleNamespace(last_hidden_state=HIDDEN), SEEN)
    assert h.tolist() == POOLED[name]


def test_pooler():
    assert POOLINGS.keys() == {*POOLED, 'pooler', 'attention'}
    output = SimpleNamespace(pooler_output=torch.tensor([[3.0, 4.0]]))
    assert_close(POOLINGS['pooler'](output), torch.tensor([[0.6, 0.8]]))
    with pytest.raises(ValueError, match='no pooler layer'):
        POOLINGS['pooler'](SimpleNamespace(pooler_output=None))
    with pytest.raises(ValueError, match='no pooler layer'):
        POOLINGS['pooler'](SimpleNamespace())


def test_attention_pooling_by_hand():
    pool, output = AttentionPooling(2), SimpleNamespace(last_hidden_state=HIDDEN)
    assert pool(output, SEEN).tolist() == POOLED['mean'] and pool.query.requires_grad
    pool.query.data = torch.tensor([1.0, -0.5])
    scores = (HIDDEN @ pool.query / 2**0.5).exp() * SEEN
    assert_close(pool(output, SEEN), (scores / scores.sum(1, True))[..., None].mul(HIDDEN).sum(1))


@pytest.mark.parametrize('tuned', [False, True])
def test_encoder_frozen_or_tuned(models, tuned):
    bert = tiny('bert').bert.requires_grad_(not tuned)
    encoder, text = Encoder(bert, 'cls', tuned, torch.bfloat16), padded(rows((3, 5))[0], 'right')
    assert encoder.width == WIDTH and encoder.tuned == encoder.trainable == tuned
    assert {p.requires_grad for p in encoder.model.parameters()} == {tuned}
    assert encoder.training == encoder.train().training == bert.training == tuned
    assert not encoder.eval().model.training
    assert encoder.narrow == (torch.bfloat16 if tuned else None)
    h = encoder(**text)
    assert h.dtype == torch.float32 and h.requires_grad == tuned
    with torch.no_grad():
        assert not encoder(**text).requires_grad
        exact = bert(**text).last_hidden_state[:, 0]
    assert_close(h, exact, atol=0.2, rtol=0.1)
    assert torch.equal(h, exact) != tuned


def test_encoder_in_its_own_format(models):
    for kind in None, torch.float32:
        assert Encoder(tiny('bert').bert, 'mean', True, kind).narrow is None
    assert Encoder(tiny('bert').bert, tuned=True, dtype=torch.float16).narrow == torch.float16
    usual = Encoder(models('llama').model)
    assert usual.pool is POOLINGS['mean'] and not usual.tuned
    assert usual.options == {'use_cache': False}  # a text is read once
    assert Encoder(EmbeddingTable(models('llama'))).options == {}


def test_how_an_encoder_runs_its_model():
    "In the asked format if it is tuned, without a cache, with a gradient if somebody wants one"
    encoder, seen = Encoder(tiny().model, 'mean', True, torch.float16), []
    encoder.model.layers[0].mlp.up_proj.register_forward_hook(
        lambda module, args, out: seen.append(out.dtype)
    )
    encoder.model.register_forward_hook(
        lambda module, args, out: seen.extend(
            [out.past_key_values, out.last_hidden_state.requires_grad]
        )
    )
    text = padded(rows((3, 5))[0], 'right')
    encoder(**text)
    with torch.no_grad():
        encoder(**text)
    assert seen == [torch.float16, None, True, torch.float16, None, False]


def test_pooling_is_not_narrowed():
    a = torch.randn(3, 3)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with without_autocast(a.device):
            assert (a @ a).dtype == torch.float32


def test_learned_pooling_learns_behind_a_frozen_model(models):
    encoder = make_encoder('embeddings', models('llama'), 'attention')
    assert encoder.trainable and not encoder.tuned and isinstance(encoder.model, EmbeddingTable)
    text = padded(rows((3, 5))[0], 'right')
    encoder(**text).sum().backward()
    assert encoder.pool.query.grad is not None
    assert encoder.model.device == torch.device('cpu')
    table = models('llama').get_input_embeddings()
    assert torch.equal(encoder.model(text['input_ids']).last_hidden_state, table(text['input_ids']))


def test_make_encoder(models, encoder_folder):
    llama, t5 = models('llama'), models('t5')
    assert make_encoder('self', llama).model is llama.model
    assert make_encoder('self', t5).model is t5.get_encoder()
    copied = make_encoder('self', llama, 'last', True)
    assert copied.model is not llama.model and copied.pool is POOLINGS['last'] and copied.tuned
    assert not any(p.requires_grad for p in llama.model.parameters())
    half = make_encoder('self', tiny().bfloat16(), tuned=True)
    assert half.model.dtype == torch.float32 and half.narrow == torch.bfloat16
    assert make_encoder('self', tiny().bfloat16()).model.dtype == torch.bfloat16
    assert make_encoder(encoder_folder, llama).width == FEATURES
    with pytest.raises(ValueError, match='belongs to the frozen foundation model'):
        make_encoder('embeddings', llama, tuned=True)


def test_fingerprint(models):
    "Weights, pooling and all else that features depend on"
    encoder = make_encoder('self', models('llama'))
    moved = Encoder(copy.deepcopy(models('llama').model))
    assert encoder_fingerprint(moved, 5) == encoder_fingerprint(encoder, 5)
    moved.model.norm.weight.data[0] += 1
    names = {
        encoder_fingerprint(e, *extra)
        for e in (encoder, make_encoder('self', models('llama'), 'last'), moved)
        for extra in ((), (5,), (6,))
    }
    assert len(names) == 9


class Letters:
    "A tokenizer that knows a letter by its number"

    def __call__(self, texts, truncation=True, max_length=None):
        ids = [[ord(c) - 96 for c in t[:max_length]] for t in texts]
        return tf.BatchEncoding({'input_ids': ids})


@pytest.fixture
def passes(monkeypatch):
    "Rows of tokens of each pass through an encoder"
    seen, forward = [], Encoder.forward

    def watched(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        seen.append([ids[m == 1].tolist() for ids, m in zip(input_ids, mask, strict=True)])
        return forward(self, input_ids, attention_mask)

    monkeypatch.setattr(Encoder, 'forward', watched)
    return seen


def test_encoding_a_data_set(models, tmp_path, monkeypatch, passes):
    "Each row has the vector of its own text, in the order of the rows; the second time it is read"
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    cache = tmp_path / 'not' / 'there'
    monkeypatch.setenv('LOPA_CACHE', str(cache))
    encoder, letters = make_encoder('embeddings', models('llama')), Letters()
    texts = ['abc', 'a', 'abcdefgh', 'bb', 'cabd']
    data = Dataset.from_dict({'words': texts, 'others': texts[::-1], 'label': range(5)})
    done = encode_dataset(data, encoder, letters, 'words', 4, 2)
    assert passes == [[[1], [2, 2]], [[1, 2, 3], [1, 2, 3, 4]], [[3, 1, 2, 4]]]  # alike together
    for row, text in zip(done, texts, strict=True):
        h = encoder(torch.tensor([[ord(c) - 96 for c in text[:4]]]))[0]
        assert_close(torch.tensor(row['instance_features']), h)
    passes.clear()
    once_more = encode_dataset(data, encoder, letters, 'words', 4, 2)
    assert passes == [] and once_more[:] == done[:]
    assert encode_dataset(data, encoder, letters, 'words', 5, 2)[:] != done[:] and passes
    others = encode_dataset(data, encoder, letters, 'others', 4, 2)['instance_features'][:]
    assert others == done['instance_features'][::-1]
    assert len(list((cache / 'features').glob('*.safetensors'))) == 3
    passes.clear()
    other = Dataset.from_dict({'words': texts[::-1], 'others': texts, 'label': range(5)})
    turned = encode_dataset(other, encoder, letters, 'words', 4, 2)['instance_features'][:]
    assert passes and turned == others  # other rows are not taken for these


# --- recomputation ---


class Cached(tf.DynamicCache):
    pass


def count_calls(monkeypatch):
    calls = []

    def checkpoint(run, forward, *args, use_reentrant, **kwargs):
        assert use_reentrant is False
        calls.append((args, kwargs))
        return run(forward, *args, **kwargs)

    monkeypatch.setattr('torch.utils.checkpoint.checkpoint', checkpoint)
    return calls


def test_layers_run_again_only_where_there_is_a_gradient_and_no_cache(monkeypatch):
    calls = count_calls(monkeypatch)

    def forward(*args, **kwargs):
        return args, kwargs

    assert run_again(forward, 1, a=2) == ((1,), {'a': 2}) and calls == [((1,), {'a': 2})]
    cache = Cached()
    assert run_again(forward, cache, a=2) == ((cache,), {'a': 2})
    assert run_again(forward, 1, a=cache) == ((1,), {'a': cache})
    with torch.no_grad():
        assert run_again(forward, 1) == ((1,), {})
    assert len(calls) == 1


def test_recompute_layers_once(monkeypatch):
    "Each layer is wrapped once however often one asks; the numbers stay"
    calls, model = count_calls(monkeypatch), prompted(tiny(), 'pt')
    ids = torch.stack(rows((4, 4))[0])
    before = model(ids, labels=ids).loss
    for _ in range(2):
        model.gradient_checkpointing_enable()
    assert model.recomputes and not calls
    assert_close(model(ids, labels=ids).loss, before)
    assert len(calls) == 2
    part = tiny()
    recompute_layers(part.model.layers[0])  # the others are still to be wrapped
    recompute_layers(part)
    assert all(layer.recomputed for layer in part.model.layers)
    with pytest.raises(ValueError, match='prefix'):
        adapted('llama', 'prefix').gradient_checkpointing_enable()
    with pytest.raises(ValueError, match='Linear has no layers'):
        recompute_layers(torch.nn.Linear(2, 2))


# --- on whatever device the model lies ---


@pytest.mark.parametrize(
    'kind,config',
    [
        ('llama', {}),
        ('llama', dict(position='suffix')),
        ('llama', dict(method='pt', init='normal')),
        ('llama', dict(method='dept')),
        ('llama', dict(encoder_name_or_path='embeddings', encoder_pooling='attention')),
        ('llama', dict(encoder_name_or_path='self', encoder_pooling='last')),
        ('llama', dict(encoder_name_or_path='self', encoder_pooling='cls', train_encoder=True)),
        ('roberta', dict(method='idpg')),
        ('t5', dict(method='idpg-phm', phm_blocks=4)),
    ],
    ids=str,
)
def test_a_step_on_another_device(kind, config):
    with fake_gpu() as device:
        model = on(device, kind, **config)
        step(model, batch(model, device))
