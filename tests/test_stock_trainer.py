"A stock `Trainer`, as its documentation has it, around a prompted model"

import inspect
import json

import pytest
import torch
from helpers import FEATURES, VOCAB, adapted, example, one_sentence, prompted, tiny
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from lopa import PromptModel
from lopa.adapter import SAID, SEAL, TRAINER_FILE, seal
from lopa.baselines import load_adapted


class Texts(torch.utils.data.Dataset):
    "Eight texts of six tokens, their features, and a column that no model takes"

    def __init__(self, looks):
        g = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, VOCAB, (8, 6), generator=g)
        self.features = torch.randn(8, FEATURES, generator=g) if looks else None

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        labels = torch.full((6,), -100)
        labels[-1] = self.ids[i, -1]
        row = {'input_ids': self.ids[i], 'labels': labels, 'unknown_column': 1}
        return row | ({} if self.features is None else {'instance_features': self.features[i]})


def trainer(model, folder, looks=True, **settings):
    "A Trainer that saves after every second of four steps"
    known = dict(max_steps=4, save_steps=2, eval_strategy='steps', eval_steps=2)
    known |= dict(per_device_train_batch_size=4, learning_rate=0.1, report_to=[], use_cpu=True)
    known |= dict(disable_tqdm=True, logging_steps=1, seed=0, dataloader_pin_memory=False)
    args = TrainingArguments(str(folder), **known | settings)
    data = Texts(looks)
    return Trainer(model, args, train_dataset=data, eval_dataset=data)


def numbers(model):
    return {name: value.clone() for name, value in model.trained_state().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


METHODS = [('lopa', True), ('pt', False), ('lora', False)]


def test_forward_names_what_it_takes():
    "The Trainer drops columns that `forward` does not name"
    names = list(inspect.signature(PromptModel.forward).parameters)
    features = ['instance_features', 'instance_input_ids', 'instance_attention_mask']
    assert names[5:] == [*features, 'token_type_ids', 'return_dict', 'others']
    *named, others = inspect.signature(PromptModel.forward).parameters.values()
    assert {p.kind for p in named} == {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    assert others.kind == inspect.Parameter.VAR_KEYWORD  # each is handed on or refused by name


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('method,looks', METHODS)
def test_a_checkpoint_holds_the_adapter(method, looks, tied, tmp_path):
    "Not the frozen model; and it loads by itself, onto a fresh one"
    base = tiny(tie_word_embeddings=tied)
    model = adapted(base, method)
    before = numbers(model)
    trainer(model, tmp_path, looks).train()
    assert not same(before, numbers(model))
    stored = load_file(tmp_path / 'checkpoint-4' / TRAINER_FILE)
    assert sum(v.numel() for k, v in stored.items() if k != SAID) == sum(
        v.numel() for v in numbers(model).values()
    )
    again = load_adapted(tiny(tie_word_embeddings=tied), tmp_path / 'checkpoint-4')
    assert same(numbers(again), numbers(model))
    batch = example(model)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize('method,looks', METHODS)
def test_resumed_as_if_nothing_had_happened(method, looks, tmp_path):
    whole, half = adapted('llama', method), adapted('llama', method)
    trainer(whole, tmp_path / 'whole', looks).train()
    trainer(half, tmp_path / 'half', looks, max_steps=2, lr_scheduler_type='constant').train()
    rest = adapted('llama', method, seed=5)
    checkpoint = tmp_path / 'whole' / 'checkpoint-2'
    trainer(rest, tmp_path / 'rest', looks).train(resume_from_checkpoint=str(checkpoint))
    assert same(numbers(rest), numbers(whole))
    assert not same(numbers(half), numbers(whole))


def test_the_best_is_taken_back(tmp_path):
    "At a rate at which the second half is worse than the first"
    settings = dict(load_best_model_at_end=True, metric_for_best_model='eval_loss')
    model = prompted(tiny())
    run = trainer(model, tmp_path, learning_rate=5.0, **settings)
    run.train()
    looks = {log['step']: log['eval_loss'] for log in run.state.log_history if 'eval_loss' in log}
    best = tmp_path / f'checkpoint-{min(looks, key=looks.get)}'
    assert same(numbers(PromptModel.from_pretrained(tiny(), best)), numbers(model))


@pytest.mark.parametrize('other', [dict(rank=4), dict(num_virtual_tokens=5), dict(gate='add')])
def test_the_checkpoint_of_another_configuration_is_refused(other, tmp_path):
    trainer(prompted(tiny()), tmp_path).train()
    model = prompted(tiny(), **other)
    before = numbers(model)
    with pytest.raises(ValueError) as e:
        run = trainer(model, tmp_path / 'other')
        run.train(resume_from_checkpoint=str(tmp_path / 'checkpoint-2'))
    one_sentence(e.value, 'checkpoint', *other)
    assert same(before, numbers(model))


def test_the_checkpoint_of_another_model_is_refused(tmp_path):
    trainer(prompted(tiny()), tmp_path).train()
    for base in tiny(seed=1), tiny('gpt2'):
        with pytest.raises(ValueError) as e:
            PromptModel.from_pretrained(base, tmp_path / 'checkpoint-2')
        one_sentence(e.value, 'was made for', 'tiny-llama')


def test_a_damaged_checkpoint_is_refused(tmp_path):
    trainer(prompted(tiny()), tmp_path).train()
    path = tmp_path / 'checkpoint-2' / TRAINER_FILE
    whole = path.read_bytes()
    state = {name: value.clone() for name, value in load_file(path).items()}  # not from the file
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError) as e:
        PromptModel.from_pretrained(tiny(), path.parent)
    one_sentence(e.value, path)
    save_file({k: v for k, v in state.items() if k != 'generator.prompt'}, path)
    with pytest.raises(ValueError) as e:
        PromptModel.from_pretrained(tiny(), path.parent)
    one_sentence(e.value, 'other tensors')


def test_a_state_goes_into_a_model_and_out(tmp_path):
    one, two = prompted(tiny()), prompted(tiny(), seed=3)
    two.load_state_dict(one.state_dict())
    assert same(numbers(one), numbers(two))
    assert set(one.state_dict()) == {SAID, *one.trained_state()}
    said = json.loads(bytes(one.get_extra_state().tolist()))
    assert said == seal(one.about(), one.trained_state()) and said[SEAL]


@pytest.mark.parametrize('kwargs', [None, {'use_reentrant': False}])
def test_gradient_checkpointing(kwargs, tmp_path):
    "The Trainer's switch; the same numbers as without"
    plain, twice = prompted(tiny()), prompted(tiny())
    trainer(plain, tmp_path / 'plain').train()
    settings = dict(gradient_checkpointing=True, gradient_checkpointing_kwargs=kwargs)
    trainer(twice, tmp_path / 'twice', **settings).train()
    assert twice.recomputes and same(numbers(plain), numbers(twice))


@pytest.mark.parametrize(
    'settings,word',
    [
        (dict(gradient_checkpointing_kwargs={'use_reentrant': True}), 'use_reentrant'),
        (dict(gradient_checkpointing_kwargs={'no_such': True}), 'no_such'),
        (dict(offload=True), 'offload'),
        (dict(every_n_layers=0), 'every_n_layers'),
    ],
)
def test_what_cannot_be_honoured_is_refused(settings, word):
    model = prompted(tiny())
    with pytest.raises(ValueError) as e:
        model.gradient_checkpointing_enable(**settings)
    one_sentence(e.value, 'gradient_checkpointing', word)
    assert not model.recomputes


def test_every_second_layer_and_none():
    model = prompted(tiny())
    wrapped = lambda: [bool(getattr(m, 'recomputed', False)) for m in model.base_model.model.layers]
    model.gradient_checkpointing_enable(every_n_layers=2)
    assert wrapped() == [True, False]
    model.gradient_checkpointing_disable()
    assert wrapped() == [False, False] and not model.recomputes
    assert all(not hasattr(m.forward, 'args') for m in model.base_model.model.layers)
