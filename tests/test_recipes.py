"A recipe is what its name says, or it is refused"

import math
from dataclasses import asdict, replace

import pytest
import torch
from helpers import FEATURES, one_sentence, prompted, tiny

from lopa import PromptConfig
from lopa.ablate import experiments
from lopa.evaluate.judges import JUDGES, cut
from lopa.prompts import METHODS
from lopa.tasks import TASKS
from lopa.tasks.builtin import empty_task
from lopa.train import Recipe, as_record, parameter_groups, recipe
from lopa.train.recipes import FAMILIES, RATES, RECIPES, WHOLE
from lopa.train.resume import differences

PT = PromptConfig('pt')
GLUE = [task for task, family in FAMILIES.items() if family == 'glue']
CODE = [task for task, family in FAMILIES.items() if family == 'code']
EVERY = [*METHODS, 'lora', 'prefix', 'p-tuning', 'full']


def refused(make, *mentions):
    with pytest.raises(ValueError) as e:
        make()
    one_sentence(e.value, *mentions)


# --- paper means the authors' recipe ---


@pytest.mark.parametrize('method', EVERY)
@pytest.mark.parametrize('task', FAMILIES)
def test_paper_is_of_the_family_or_refused(task, method):
    "Never Rotten Tomatoes' 150 steps of 8, which are no recipe of the authors"
    family = FAMILIES[task]
    own = RECIPES.get((task, method, 'paper'), RECIPES.get((family, method, 'paper')))
    if own is None:
        return refused(lambda: recipe(task, method, 'paper'), method, 'paper', task)
    found = recipe(task, method, 'paper')
    assert found.config == own.config and found.config.method == method
    assert found.epochs and found.schedule == 'constant' and found.variant == 'paper'
    assert found.batch_size == (64 if family == 'glue' else 2)
    assert found.weight_decay == (0.0 if family == 'glue' else 0.01)


def test_what_is_written_and_what_is_not():
    here = {(f, m) for f, m, v in RECIPES if v == 'paper' and f in ('glue', 'code')}
    both = {'lopa', 'pt', 'idpg', 'lora', 'full'}
    assert {m for f, m in here if f == 'code'} == both
    assert {m for f, m in here if f == 'glue'} == both | {'idpg-phm', 'dept', 'prefix'}


@pytest.mark.parametrize(
    ('variant', 'blocks'), [('paper', 8), ('paper-n16', 16), ('paper-n32', 32)]
)
def test_phm_on_glue(variant, blocks):
    "As IDPG, with three numbers of blocks: 20 epochs of 64 with the twin of RoBERTa"
    for task in GLUE:
        found = recipe(task, 'idpg-phm', variant)
        assert found.config.phm_blocks == blocks and found.config.encoder_name_or_path == 'self'
        assert (found.epochs, found.batch_size) == (20, 64)
        assert found.prompt_lr == found.head_lr == 1e-4 and not found.config.train_encoder


@pytest.mark.parametrize('task', CODE)
def test_full_fine_tuning_is_shorter_on_cruxeval(task):
    epochs = 4 if task.startswith('cruxeval') else 10
    assert recipe(task, 'full', 'paper').epochs == epochs
    assert recipe(task, 'lora', 'paper').epochs == 10


@pytest.mark.parametrize('task', [*GLUE, *CODE])
def test_prompts_start_as_the_authors_do(task):
    "Heads, PHM layers and DePT's update, too"
    for method in METHODS:
        try:
            found = recipe(task, method, 'paper')
        except ValueError:
            continue
        assert found.config.init == 'paper'


@pytest.mark.parametrize('method', EVERY)
def test_tuned_is_for_every_task(method):
    "Found on Rotten Tomatoes, and taken over"
    for task in TASKS:
        assert recipe(task, method) == recipe('rotten_tomatoes', method)


# --- what cannot be carried out ---

WRONG = [
    *((name, value) for name in WHOLE for value in (0, -1, 2.0, '8', True, math.nan)),
    *((name, None) for name in ('steps', 'batch_size', 'eval_batch_size')),
    *((name, value) for name in RATES for value in (-1e-9, math.nan, math.inf, '1', None, True)),
    ('warmup', 1.01),
    ('schedule', 'cosine'),
    ('variant', None),
    ('config', None),
    ('config', 'lopa'),
    ('config', {'method': 'lopa'}),
]


@pytest.mark.parametrize(('name', 'value'), WRONG, ids=str)
def test_wrong_values(name, value):
    refused(lambda: Recipe(**({'config': PT, 'prompt_lr': 0.1} | {name: value})), name, repr(value))
    refused(lambda: replace(Recipe(PT, 0.1), **{name: value}), name)
    if name not in ('config', 'variant'):
        refused(lambda: recipe('rte', 'lopa', **{name: value}), name)


def test_unknown_fields():
    refused(lambda: Recipe(PT, 0.1, batchsize=4), "'batchsize'", 'batch_size')
    refused(lambda: recipe('rte', stepps=4), "'stepps'", 'steps')


def test_edges_are_allowed():
    plan = Recipe(PT, prompt_lr=0, warmup=1, max_grad_norm=0, steps=1, batch_size=1)
    assert plan.eval_steps == 1 and Recipe(PT, 1, warmup=0).counted(5).steps == 150


# --- weight decay, and the names of results ---


def test_weight_decay_reaches_every_group():
    model = prompted(tiny(), encoder_name_or_path='self', train_encoder=True)
    for decay in 0.0, 0.01:
        groups = parameter_groups(model, Recipe(PT, 0.1, weight_decay=decay))
        assert [g['weight_decay'] for g in groups] == [decay] * 3


def test_records_without_weight_decay_are_spelled_as_before():
    plan = Recipe(PT, 0.1)
    assert as_record(plan) == {k: v for k, v in asdict(plan).items() if k != 'weight_decay'}
    assert as_record(replace(plan, weight_decay=0.1))['weight_decay'] == 0.1
    names = [experiments.file_name(experiments.experiment({'weight_decay': d})) for d in (0, 0.0)]
    assert names[0] == names[1] == experiments.file_name(experiments.experiment({}))
    other = experiments.experiment({'weight_decay': 0.01})
    assert experiments.file_name(other) != names[0]
    none = experiments.experiment({'task': 'mbpp', 'variant': 'paper', 'weight_decay': 0.0})
    assert Recipe(PT, **none['recipe']).weight_decay == 0.0


def test_a_setting_that_only_one_plan_has_is_a_difference():
    mine, theirs = {'recipe': {'steps': 1}}, {'recipe': {'steps': 1, 'weight_decay': 0.01}}
    assert 'weight_decay' in differences(mine, theirs)
    assert 'weight_decay' in differences(theirs, mine) and not differences(mine, mine)


# --- CruxEval as the authors ask ---

ROW = {'code': 'def f(x):\n    return -x', 'entry_point': 'f', 'input': '3', 'output': '-3'}


@pytest.mark.parametrize('kind', ['o', 'i'])
def test_worked_examples_are_right(kind):
    "Each program, run with the answer that is shown"
    pieces = empty_task(f'cruxeval-{kind}-paper').template.split('[PYTHON]\n')[1:-1]
    assert len(pieces) == 2
    for piece in pieces:
        program, rest = piece.split('\n[/PYTHON]\n')
        shown, answer = rest.split('\n[ANSWER]\n')
        exec(f'{program}\n{answer.split("[/ANSWER]")[0]}')
        assert shown.count('??') == 1 and '??' not in answer


@pytest.mark.parametrize('kind', ['o', 'i'])
def test_the_target_is_judged_right(kind):
    from lopa.sandbox import run_program

    task = empty_task(f'cruxeval-{kind}-paper')
    question = task.question(ROW)
    asked = {'o': 'assert f(3) == ??', 'i': 'assert f(??) == -3'}[kind]
    assert question.endswith(f'[/PYTHON]\n{asked}\n[ANSWER]\n') and task.reads == task.template
    answer = cut(task.target.format(**ROW) + '\nand more', task.stop)
    run = lambda source: run_program(source, allow_weak_isolation=True)  # noqa: E731
    judge = JUDGES[task.grader]
    assert judge(answer, ROW, task, run)['correct']
    assert not judge(answer.replace('3', '4'), ROW | {'output': '-5'}, task, run)['correct']


# --- the authors' start ---


def first(method, start, e, width=256, **config):
    torch.manual_seed(0)
    config = PromptConfig(method, init='paper', head_width=width, feature_width=e, **config)
    return METHODS[method](config, start, e).eval()


def uniform(tensor, bound):
    "Is it drawn evenly from −bound to bound?"
    return tensor.abs().max() <= bound and abs(tensor.std() * 3**0.5 / bound - 1) < 0.1


@torch.no_grad()
def test_lopa_starts_as_the_authors():
    start = torch.randn(10, 1024)
    made = first('lopa', start, 1024)
    assert torch.equal(made.prompt, start)  # N(0, 1), and the gate halves it
    for head in made.heads.u, made.heads.v:
        assert uniform(head[1].bias, 1024**-0.5) and not head[3].bias.any()
        assert abs(head[1].weight.std() - 0.02) < 1e-3 and abs(head[3].weight.std() - 0.02) < 1e-3
    assert made.logits(torch.randn(2, 1024)).any()  # not at zero, as ours are


@torch.no_grad()
def test_idpg_starts_as_the_authors():
    made = first('idpg', torch.randn(10, 1024), 1024)
    assert uniform(made.head[1].bias, 1024**-0.5) and not made.head[3].bias.any()


@pytest.mark.parametrize('blocks', [8, 16, 32])
@torch.no_grad()
def test_phm_starts_as_the_authors(blocks):
    "The prompt's entries spread by 0.037 whatever n is; ours by 0.014 and less"
    made = first('idpg-phm', torch.randn(10, 1024), 1024, phm_blocks=blocks)
    features = torch.randn(100, 1024) / 2
    assert abs(made(features).std() - 0.037) < 0.0015
    ours = PromptConfig('idpg-phm', init='zeros', phm_blocks=blocks)
    found = METHODS['idpg-phm'](ours, torch.zeros(10, 1024), 1024).eval()(features).std()
    assert abs(found - 0.11 / blocks) < 0.015 / blocks
    assert uniform(made.head[1].bias, 1024**-0.5) and uniform(made.head[3].bias, 256**-0.5)


@torch.no_grad()
def test_dept_starts_as_the_authors():
    made = first('dept', torch.randn(5, 64), None)
    assert uniform(made.A, 2.0) and not made.B.any()


@pytest.mark.parametrize('method', METHODS)
@torch.no_grad()
def test_the_start_survives_saving(method, tmp_path):
    base = tiny()
    model = prompted(base, method, init='paper', phm_blocks=4, update_length=6)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(base, tmp_path)
    batch = dict(input_ids=torch.arange(1, 9)[None], instance_features=torch.ones(1, FEATURES))
    assert torch.equal(model(**batch).logits, again(**batch).logits)
