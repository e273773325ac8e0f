"LoPA, prompt tuning and IDPG as one of PEFT's tuners: PEFT's interface, our numbers"

import json

import pytest
import torch
from datasets import Dataset
from helpers import FEATURES, PROMPT, features, one_sentence, padded, prompted, rows, shake, tiny
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments

from lopa.peft import LopaConfig
from lopa.prompts import METHODS

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
SIZES = {'num_virtual_tokens': PROMPT, 'rank': 2, 'head_width': 8, 'phm_blocks': 4}
FAMILY = {'t5': 'SEQ_2_SEQ_LM', 'roberta': 'FEATURE_EXTRACTION', 'bert': 'FEATURE_EXTRACTION'}
GREEDY = {'max_new_tokens': 3, 'do_sample': False, 'pad_token_id': 0}
LENGTHS = (3, 6, 1)
sides = pytest.mark.parametrize('side', ['left', 'right'])


def config(method='lopa', **more):
    "A small configuration; the features are brought unless an encoder is named"
    if 'encoder_name_or_path' not in more:
        more['feature_width'] = FEATURES
    return LopaConfig(method, **{**SIZES, **more})


def pair(kind='llama', method='lopa', **more):
    "PEFT's model and ours, with the same weights"
    model = get_peft_model(tiny(kind), config(method, task_type=FAMILY.get(kind), **more))
    ours = prompted(tiny(kind), method, phm_blocks=4, **more)
    model.base_model.prompt_models['default'].take_state(ours.trained_state())
    return model.eval(), ours


def several(**adapters):
    "PEFT's model with several shaken adapters, each `(method, more of its configuration)`"
    model = None
    torch.manual_seed(0)
    for name, (method, more) in adapters.items():
        if model is None:
            model = get_peft_model(tiny(), config(method, **more), adapter_name=name)
        else:
            model.add_adapter(name, config(method, **more))
        shake(model.base_model.prompt_models[name].generator)
    return model.eval()


FOUR = {
    'film': ('lopa', {}),
    'book': ('pt', {'num_virtual_tokens': 5}),
    'song': ('idpg', {'num_virtual_tokens': 1, 'position': 'suffix'}),
    'play': ('dept', {'position': 'after_start'}),
}


def trained(model):
    "Names of the adapters that have gradients"
    return {n.rpartition('.')[2] for n, p in model.named_parameters() if p.requires_grad}


def moved(model, before):
    "Names of the parameters that are no longer what they were"
    return {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}


# --- the same numbers as `PromptModel` ---


@sides
@pytest.mark.parametrize('kind', ['llama', 'gpt2', 't5', 'roberta'])
@pytest.mark.parametrize('method', METHODS)
@torch.no_grad()
def test_logits_and_loss(kind, method, side):
    "To the last bit, on both padding sides"
    (model, ours), (ids, h) = pair(kind, method), rows(LENGTHS)
    batch = padded(ids, side) | features(ours, h)
    assert torch.equal(model(**batch).logits, ours(**batch).logits)
    labels = batch['input_ids'].masked_fill(batch['attention_mask'] == 0, -100)
    assert torch.equal(model(**batch, labels=labels).loss, ours(**batch, labels=labels).loss)


@sides
@pytest.mark.parametrize('kind', ['llama', 'gpt2'])
@pytest.mark.parametrize('method', ['lopa', 'pt', 'idpg'])
@torch.no_grad()
def test_a_padded_row_is_the_row_alone(kind, method, side):
    (model, ours), (ids, h) = pair(kind, method), rows(LENGTHS)
    together = model(**padded(ids, side), **features(ours, h)).logits
    for i, n in enumerate(LENGTHS):
        alone = model(input_ids=ids[i][None], **features(ours, h[i : i + 1])).logits[0]
        there = slice(-n - PROMPT, None) if side == 'left' else slice(n + PROMPT)
        torch.testing.assert_close(together[i, there], alone, atol=1e-4, rtol=1e-3)


@sides
@torch.no_grad()
def test_labels_do_not_change_logits(side):
    "Logits at labelled places are those without labels, whatever the labels say"
    (model, _), (ids, h) = pair(), rows((4, 4))
    batch = padded(ids, side) | {'instance_features': h}
    whole = model(**batch).logits[:, -2]
    for answer in 1, 50, 99:
        labels = torch.full_like(batch['input_ids'], -100)
        labels[:, -1] = answer
        some = model(**batch, labels=labels).logits
        torch.testing.assert_close(some[:, 0], whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('again', [False, True], ids=['kept', 'recomputed'])
def test_gradients(again):
    "The same gradients as ours, also when activations are computed twice"
    (model, ours), (ids, h) = pair(), rows((5, 5))
    batch = {'input_ids': torch.stack(ids), 'instance_features': h}
    if again:
        model.gradient_checkpointing_enable()
    for m in model, ours:
        m(**batch, labels=batch['input_ids']).loss.backward()
    made = model.base_model.prompt_models['default']
    for mine, theirs in zip(made.generator.parameters(), ours.generator.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('kind', ['llama', 'gpt2', 't5'])
@pytest.mark.parametrize('how', [{}, {'num_beams': 2, 'num_return_sequences': 2}], ids=str)
def test_generate(kind, how):
    "Each row begins with its input (T5's: with its start), and goes on with our tokens"
    (model, ours), (ids, h) = pair(kind), rows(LENGTHS)
    batch = padded(ids, 'left') | {'instance_features': h}
    new = ours.generate(**batch, **GREEDY, **how)
    out = model.generate(**batch, **GREEDY, **how)
    assert torch.equal(out[:, -new.shape[1] :], new)
    each = how.get('num_return_sequences', 1)
    start = batch['input_ids'].repeat_interleave(each, 0)
    if kind == 't5':
        start = torch.zeros_like(start[:, :1])
    assert torch.equal(out[:, : -new.shape[1]], start)


def test_generate_gives_transformers_record():
    (model, _), (ids, h) = pair(), rows((4, 4))
    batch = {'input_ids': torch.stack(ids), 'instance_features': h}
    record = model.generate(**batch, **GREEDY, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(record.sequences, model.generate(**batch, **GREEDY))
    assert len(record.scores) == 3


def test_counts(capsys):
    (model, ours), count = pair(), 0
    count = sum(p.numel() for p in ours.parameters() if p.requires_grad)
    assert model.get_nb_trainable_parameters()[0] == count
    model.print_trainable_parameters()
    assert f'trainable params: {count:,}' in capsys.readouterr().out


# --- files ---


@pytest.mark.parametrize('method', METHODS)
@torch.no_grad()
def test_save_and_load(method, tmp_path):
    "The file holds what was trained and nothing else; loaded, the logits are the same"
    (model, ours), (ids, h) = pair(method=method), rows(LENGTHS)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / 'adapter_model.safetensors')
    assert sum(v.numel() for v in stored.values()) == model.get_nb_trainable_parameters()[0]
    batch = padded(ids, 'left') | features(ours, h)
    wanted = ours(**batch).logits
    again = PeftModel.from_pretrained(tiny(), tmp_path, adapter_name='other')
    assert torch.equal(again(**batch).logits, wanted) and not trained(again)
    on = PeftModel.from_pretrained(tiny(), tmp_path, is_trainable=True)
    assert trained(on) == {'default'} and torch.equal(on.eval()(**batch).logits, wanted)


@pytest.mark.parametrize(
    'how',
    [{}, {'train_encoder': True}, {'encoder_pooling': 'attention'}, {'name': 'self'}],
    ids=str,
)
@torch.no_grad()
def test_encoder_in_the_file(how, encoder_folder, tmp_path):
    "A tuned encoder, or its pooling, is stored; a frozen one is only named"
    how = dict(how)
    how['encoder_name_or_path'] = how.pop('name', encoder_folder)
    model = get_peft_model(tiny(), config(**how)).eval()
    made = model.base_model.prompt_models['default']
    shake(made.generator, 0.3)
    for p in made.encoder.parameters():
        p.add_(torch.randn_like(p) * 0.1 * p.requires_grad)
    ids = torch.stack(rows((4, 4))[0]) % 50
    batch = {'input_ids': ids, 'instance_input_ids': ids}
    batch['instance_attention_mask'] = torch.ones_like(ids)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / 'adapter_model.safetensors')
    assert any('encoder' in name for name in stored) == made.encoder.trainable
    again = PeftModel.from_pretrained(tiny(), tmp_path)
    assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_a_later_versions_field_is_dropped(tmp_path):
    pair()[0].save_pretrained(tmp_path)
    path = tmp_path / 'adapter_config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'of_tomorrow': 1}))
    with pytest.warns(UserWarning, match='of_tomorrow'):
        PeftModel.from_pretrained(tiny(), tmp_path)


def test_the_users_configuration_stays_as_it_was():
    "One configuration can be used for two foundation models"
    mine = config()
    for seed in 0, 1:
        get_peft_model(tiny(seed=seed), mine)
    assert mine.made_for is None


# --- several adapters ---


@torch.no_grad()
def test_each_adapter_has_its_file(tmp_path):
    "Saved together, loaded one by one under other names, mixed in one batch"
    model, (ids, h) = several(**FOUR), rows((4, 4, 4, 4))
    model.save_pretrained(tmp_path)
    batch = {'input_ids': torch.stack(ids), 'instance_features': h}
    again = PeftModel.from_pretrained(tiny(), tmp_path / 'book', adapter_name='one')
    for name, folder in {'two': 'film', 'three': 'song', 'four': 'play'}.items():
        again.load_adapter(tmp_path / folder, name)
    ours = model(**batch, adapter_names=['book', 'film', 'song', 'play']).logits
    assert torch.equal(again(**batch, adapter_names=['one', 'two', 'three', 'four']).logits, ours)


@torch.no_grad()
def test_set_and_delete():
    "One adapter is active, and it alone has gradients"
    model, (ids, h) = several(**FOUR), rows((4, 4))
    batch = {'input_ids': torch.stack(ids), 'instance_features': h}
    assert trained(model) == {'film'}
    for name in FOUR:
        model.set_adapter(name)
        assert trained(model) == {name}
        alone = model(**batch).logits
        assert torch.equal(model.base_model.prompt_models[name](**batch).logits, alone)
    model.delete_adapter('play')
    assert list(model.peft_config) == ['film', 'book', 'song'] and model.active_adapter != 'play'
    assert model(**batch).logits.isfinite().all()
    with pytest.raises(ValueError):
        model(**batch, adapter_names=['film', 'play'])


@torch.no_grad()
def test_disable_adapter():
    "Switched off, the foundation model answers; switched on, everything is as before"
    (model, _), (ids, h) = pair(), rows(LENGTHS)
    batch, plain = padded(ids, 'left'), tiny()
    before = model(**batch, instance_features=h).logits
    with model.disable_adapter():
        assert torch.equal(model(**batch, instance_features=h).logits, plain(**batch).logits)
        labels = batch['input_ids']
        assert torch.equal(model(**batch, labels=labels).loss, plain(**batch, labels=labels).loss)
        out = model.generate(**batch, instance_features=h, **GREEDY)
        assert torch.equal(out, plain.generate(**batch, **GREEDY)) and not trained(model)
    assert torch.equal(model(**batch, instance_features=h).logits, before)
    assert trained(model) == {'default'}


def test_unload_gives_the_foundation_model_back():
    (model, _), ids = pair(), torch.stack(rows((4, 4))[0])
    base = model.unload()
    assert base is model.base_model.model and set(base.state_dict()) == set(tiny().state_dict())
    assert torch.equal(base(ids).logits, tiny()(ids).logits)


# --- an adapter for each row ---

MIXED = ['book', 'film', '__base__', 'song', 'film', 'play']


def alone(model, ids, h, i):
    "What row i of a mixed batch is asked with when it is alone"
    return {
        'input_ids': ids[i][None],
        'instance_features': h[i : i + 1],
        'adapter_names': [MIXED[i]],
    }


@sides
@torch.no_grad()
def test_mixed_batch_is_its_rows_alone(side):
    model, (ids, h) = several(**FOUR), rows((3, 6, 2, 4, 1, 5))
    mixed = model(**padded(ids, side), instance_features=h, adapter_names=MIXED).logits
    for i in range(len(ids)):
        row = model(**alone(model, ids, h, i)).logits[0]
        there = slice(-len(row), None) if side == 'left' else slice(len(row))
        torch.testing.assert_close(mixed[i, there], row, atol=1e-4, rtol=1e-3)
    bare = tiny()(ids[2][None]).logits[0]
    there = slice(-len(bare), None) if side == 'left' else slice(len(bare))
    torch.testing.assert_close(mixed[2, there], bare, atol=1e-4, rtol=1e-3)


@sides
@torch.no_grad()
def test_mixed_loss(side):
    "One label a row: the loss is the mean of the rows' losses"
    model, (ids, h) = several(**FOUR), rows((3, 6, 2, 4, 2, 5))
    labels = [torch.full_like(row, -100) for row in ids]
    for label, row in zip(labels, ids, strict=True):
        label[-1] = row[-1]
    wide = padded(labels, side, -100)['input_ids']
    mixed = model(**padded(ids, side), labels=wide, instance_features=h, adapter_names=MIXED).loss
    losses = [model(**alone(model, ids, h, i), labels=labels[i][None]).loss for i in range(6)]
    torch.testing.assert_close(mixed, torch.stack(losses).mean(), atol=1e-4, rtol=1e-3)


def test_mixed_generate():
    model, (ids, h) = several(**FOUR), rows((3, 6, 2, 4, 1, 5))
    batch = padded(ids, 'left') | {'instance_features': h}
    mixed = model.generate(**batch, adapter_names=MIXED, **GREEDY)[:, -3:]
    for i in range(len(ids)):
        assert torch.equal(mixed[i], model.generate(**alone(model, ids, h, i), **GREEDY)[0, -3:])


@pytest.mark.parametrize('kind', ['t5', 'roberta'])
@torch.no_grad()
def test_mixed_in_the_other_families(kind):
    (model, _), (ids, h) = pair(kind), rows(LENGTHS)
    model.add_adapter('long', config('pt', num_virtual_tokens=6, task_type=FAMILY[kind]))
    names, batch = ['long', 'default', '__base__'], padded(ids, 'right')
    labels = batch['input_ids'].masked_fill(batch['attention_mask'] == 0, -100)
    mixed = model(**batch, labels=labels, instance_features=h, adapter_names=names).loss
    losses, counts = [], []
    for i, n in enumerate(LENGTHS):
        row = {'input_ids': ids[i][None], 'labels': labels[i, :n][None]}
        how = {'instance_features': h[i : i + 1], 'adapter_names': names[i : i + 1]}
        losses.append(model(**row, **how).loss)
        counts.append(n)
    mean = (torch.stack(losses) * torch.tensor(counts)).sum() / sum(counts)
    torch.testing.assert_close(mixed, mean, atol=1e-4, rtol=1e-3)


# --- what follows the whole ---


def test_frozen_parts_stay_in_evaluation_mode(encoder_folder):
    model = get_peft_model(tiny(), config(encoder_name_or_path=encoder_folder)).train()
    made = model.base_model.prompt_models['default']
    assert made.generator.heads.training
    assert not model.get_base_model().training and not made.encoder.training
    assert not any(m.training for m in model.eval().base_model.prompt_models['default'].modules())


def test_a_move_reaches_every_part(encoder_folder):
    model = get_peft_model(tiny(), config(encoder_name_or_path=encoder_folder)).double()
    made = model.base_model.prompt_models['default']
    assert {p.dtype for p in made.base_model.parameters()} == {torch.float64}
    assert {p.dtype for p in made.generator.parameters()} == {torch.float32}  # as it is stored
    shared = {id(p) for p in model.parameters()}
    assert all(id(p) in shared for p in made.generator.parameters())


# --- a stock Trainer ---


def trainer(model, out, **more):
    "Two steps of transformers' Trainer on four rows"
    ids, h = rows((5, 5, 5, 5))
    pairs = zip(ids, h, strict=True)
    data = [{'input_ids': i, 'labels': i, 'instance_features': f} for i, f in pairs]
    how = {'max_steps': 2, 'per_device_train_batch_size': 2, 'learning_rate': 0.1, 'use_cpu': True}
    how |= {'report_to': [], 'disable_tqdm': True, 'remove_unused_columns': False, **more}
    data = Dataset.from_list([{k: v.tolist() for k, v in row.items()} for row in data])
    return Trainer(model, TrainingArguments(out, **how), train_dataset=data)


@pytest.mark.parametrize('again', [False, True], ids=['kept', 'recomputed'])
def test_only_the_active_adapter_is_trained(again, tmp_path):
    model = several(film=('lopa', {}), book=('pt', {}))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer(model, tmp_path, gradient_checkpointing=again, save_strategy='no').train()
    assert moved(model, before) == {n for n in before if n.endswith('.film')}


def test_checkpoint_holds_the_adapter_and_goes_on(tmp_path):
    "A checkpoint is an adapter of PEFT's; training goes on from it as if it had not stopped"
    whole, half = pair()[0], pair()[0]
    trainer(whole, tmp_path / 'whole', max_steps=2, save_steps=1).train()
    first = tmp_path / 'whole' / 'checkpoint-1'
    stored = load_file(first / 'adapter_model.safetensors')
    assert sum(v.numel() for v in stored.values()) == whole.get_nb_trainable_parameters()[0]
    assert not list(first.glob('model*'))
    going_on = trainer(half, tmp_path / 'half', max_steps=2, save_strategy='no')
    going_on.train(resume_from_checkpoint=str(first))
    end = dict(whole.named_parameters())
    for name, p in half.named_parameters():
        torch.testing.assert_close(p, end[name], atol=1e-6, rtol=1e-5)


# --- bad input ---

BATCH = {'input_ids': torch.ones(2, 3, dtype=torch.long)}
SEEN = {'instance_features': torch.ones(2, FEATURES)}
WRONG = {
    'no features': (BATCH, 'instance_features'),
    'wrong features': (BATCH | {'instance_features': torch.ones(2, 3)}, '(2, 3)'),
    'unknown adapter': (BATCH | SEEN | {'adapter_names': ['default', 'x']}, "'x'"),
    'one name too few': (BATCH | SEEN | {'adapter_names': ['default']}, '2 names'),
    'no tokens': (SEEN, 'input_ids'),
}


@pytest.mark.parametrize('what', WRONG)
def test_wrong_call(what):
    inputs, mention = WRONG[what]
    with pytest.raises(ValueError) as e:
        pair()[0](**inputs)
    one_sentence(e.value, mention)


def test_unknown_method():
    with pytest.raises(ValueError) as e:
        LopaConfig('lorra')
    one_sentence(e.value, 'lorra', 'lopa')
    with pytest.raises(TypeError, match='rnak'):
        LopaConfig(rnak=2)


@pytest.mark.parametrize('kind', ['t5', 'roberta'])
def test_wrong_family(kind):
    with pytest.raises(ValueError) as e:
        get_peft_model(tiny(kind), config())
    one_sentence(e.value, 'CAUSAL_LM', FAMILY[kind])


def test_another_foundation_model(tmp_path):
    "Of the same kind and width, with other weights"
    pair()[0].save_pretrained(tmp_path)
    with pytest.raises(ValueError) as e:
        PeftModel.from_pretrained(tiny(seed=1), tmp_path)
    one_sentence(e.value, 'weights differ')


def test_tensors_without_numbers(tmp_path):
    "For the first adapter and for a later one"
    model = pair()[0]
    model.save_pretrained(tmp_path)
    for load in (
        lambda: PeftModel.from_pretrained(tiny(), tmp_path, low_cpu_mem_usage=True),
        lambda: model.load_adapter(tmp_path, 'other', low_cpu_mem_usage=True),
    ):
        with pytest.raises(ValueError) as e:
            load()
        one_sentence(e.value, 'low_cpu_mem_usage')
    assert list(model.peft_config) == ['default']


@pytest.mark.parametrize('call', ['merge_adapter', 'merge_and_unload'])
def test_merging(call):
    with pytest.raises(ValueError) as e:
        getattr(pair()[0], call)()
    one_sentence(e.value, 'merge')


def test_a_failed_adapter_leaves_the_model_as_it_was():
    model, ids = pair()[0], torch.stack(rows((4, 4))[0])
    before = model(input_ids=ids, **SEEN).logits
    with pytest.raises(ValueError):
        model.add_adapter('no width', LopaConfig())
    assert list(model.peft_config) == ['default'] and trained(model) == {'default'}
    assert torch.equal(model(input_ids=ids, **SEEN).logits, before)
