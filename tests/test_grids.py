"""A grid is looked at as a whole, before anything is computed

Every field of every experiment of it, the file that it is read from, and who is to carry it out.
"""

import json
import math
import os
from dataclasses import fields

import pytest
from damage import SEEDS, damage
from helpers import one_sentence

import lopa.ablate.runs
from lopa.ablate import check_grid, expand, experiment, make_executor, read_grid, run, sweep
from lopa.ablate.experiments import DEFAULT, FLOOR, file_name, identity
from lopa.baselines import BaselineConfig
from lopa.prompts import PromptConfig
from lopa.train import Recipe

STRANGE = [
    *(True, -1, 0, 1.5, math.nan, math.inf, -math.inf, 10**30, 10**400, 10**5000, 1e300, -0.5),
    *(None, '', ' ', 'x\0y', '\ud800', '5', 'x' * 10**5, b'x', {}, {'a': 1}, [], [1], ()),
]


def told(value):
    "For the name of a test"
    try:
        return repr(value)[:20]
    except ValueError:
        return 'endless'


def possible(key):
    "What may stand there of all that"
    zero = [0] if key.endswith(('lr', '_rows', 'num_virtual_tokens', 'seed')) else []
    zero += [0] if key in ('warmup', 'max_grad_norm', 'weight_decay', 'dropout') else []
    real = key.endswith('lr') or key in ('alpha', 'max_grad_norm', 'weight_decay')
    none = ('eval_steps', 'epochs', 'feature_width', 'target_modules', 'encoder_name_or_path')
    return [
        *zero,
        *([1.5] if real else []),
        *([None] if key in none or key.endswith('_rows') else []),
        *(['5', ' '] if key == 'target_modules' else []),
        *(['5'] if key in ('base_model', 'encoder_name_or_path') else []),
    ]


def every_field():
    for method, config in (('lopa', PromptConfig), ('lora', BaselineConfig)):
        more = [f.name for c in (Recipe, config) for f in fields(c)]
        for key in [*DEFAULT, *more]:
            if key not in ('config', 'variant', 'method'):
                yield method, key
    for method, known in FLOOR.items():
        for key in known:
            yield method, key


@pytest.mark.parametrize(('method', 'key'), list(every_field()))
def test_values_of_every_field(method, key):
    "Refused in one sentence that names the field, or one of the few that may stand there"
    allowed = possible(key)
    for value in STRANGE:
        if key == 'train_encoder' and value is True:
            continue
        if any(type(value) is type(one) and value == one for one in allowed):
            if not (value == 0 and key == 'train_rows' and method not in FLOOR):
                continue
        if value is None and (key, method) == ('encoder_name_or_path', 'lopa'):
            continue
        if key == 'alpha' and value == 1e300:
            continue  # a number above 0
        if key == 'target_modules' and isinstance(value, str) and value:
            continue  # a name that no module has is found out when there is a model
        with pytest.raises(ValueError) as e:
            experiment({'method': method, key: value})
        text = str(e.value)
        assert key.removesuffix('_name_or_path') in text and '\n' not in text, (value, text)


@pytest.mark.parametrize('key', ['method', 'variant'])
@pytest.mark.parametrize('value', STRANGE, ids=told)
def test_names_that_nobody_knows(key, value):
    with pytest.raises(ValueError) as e:
        experiment({key: value})
    one_sentence(e.value)


@pytest.mark.parametrize('value', [x for x in STRANGE if x not in ({}, None)], ids=told)
def test_what_is_no_experiment(value):
    for wrong in (value, {value: 1} if isinstance(value, (str, int, float)) else value):
        with pytest.raises(ValueError) as e:
            experiment(wrong)
        assert '\n' not in str(e.value)


def test_one_rate_has_one_name():
    one, zero = (identity(experiment({'head_lr': value})) for value in (1, 0))
    assert one == identity(experiment({'head_lr': 1.0}))
    assert zero == identity(experiment({'head_lr': -0.0})) == identity(experiment({'head_lr': 0.0}))


# --- before the first run ---

LAST = [
    {'steps': [10, 20, -5]},
    {'prompt_lr': [0.1, -1]},
    {'batch_size': [8, 0]},
    {'rank': [1, 2, '4']},
    {'method': ['pt', 'lopa'], 'rank': [4], 'gate': ['sigmoid', 'round']},
    {'method': ['lora', 'lopa'], 'dropout': 0.1},
    {'seed': [0, 2**32]},
    {'task': ['rte', 'glue']},
    {'base_model': ['smollm2-135m', '']},
    {'train_rows': [10, 0]},
    [{'rank': 1}, {'encoder_pooling': 'max', 'method': 'encoder-alone'}],
    [],
    {'rank': []},
    [[]],
    {'seed': list(range(1000)), 'rank': list(range(1, 1000))},
]


@pytest.mark.parametrize('grid', LAST, ids=lambda grid: str(grid)[:60])
def test_nothing_is_begun(tmp_path, monkeypatch, grid):
    "However late in the grid the impossible experiment stands"
    monkeypatch.setattr(lopa.ablate.runs, 'attempt', None)
    with pytest.raises(ValueError) as e:
        sweep(grid, tmp_path / 'out', progress=False)
    assert '\n' not in str(e.value) and not (tmp_path / 'out').exists()


def test_a_model_that_is_not_there(tmp_path, monkeypatch):
    "Is found out before anything is begun, as is a folder that is no model"
    monkeypatch.setattr(lopa.ablate.runs, 'attempt', None)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file').write_text('')
    for name in 'gone', 'empty', 'file':
        for key in 'base_model', 'encoder_name_or_path':
            grid = {'method': ['majority', 'lopa'], 'seed': 0} | {key: str(tmp_path / name)}
            if key == 'encoder_name_or_path':
                grid['method'] = ['lopa', 'encoder-alone']
            with pytest.raises((OSError, ValueError)) as e:
                sweep(grid, tmp_path / 'out', progress=False)
            one_sentence(e.value, tmp_path / name)


@pytest.mark.parametrize('workers', [0, -1, True, 1.5, '2', 10**6, math.nan])
def test_workers(workers):
    with pytest.raises(ValueError) as e:
        make_executor('processes', workers)
    one_sentence(e.value, 'workers', repr(workers))


@pytest.mark.parametrize('name', ['pigeons', None, [], 3])
def test_executors(name):
    with pytest.raises(ValueError) as e:
        make_executor(name, 1)
    one_sentence(e.value, 'executor', 'processes')


@pytest.mark.parametrize(
    'how', [{'keep_predictions': 'no'}, {'progress': 1}, {'allow_weak_isolation': None}]
)
def test_settings_of_a_sweep(tmp_path, how):
    with pytest.raises(TypeError) as e:
        sweep({'method': 'majority'}, tmp_path, **{'progress': False} | how)
    one_sentence(e.value, *how)


# --- its file ---

FILES = {
    'cut': b'{"rank": [1,',
    'empty': b'',
    'blank': b' ',
    'bytes': bytes(range(256)),
    'nan': b'{"prompt_lr": NaN}',
    'infinite': b'{"prompt_lr": 1e999}',
    'negative': b'{"prompt_lr": [0.1, -1]}',
    'twice': b'{"rank": 1, "rank": 2}',
    'deep': b'[' * 10**5,
    'deeper': b'{"rank": ' * 900 + b'1' + b'}' * 900,
    'unknown': b'{"rnak": 1}',
    'method': b'{"method": "lopaa"}',
    'nothing': b'[]',
    'no value': b'{"rank": []}',
    'number': b'7',
    'text': b'"rank"',
    'digits': b'{"seed": ' + b'9' * 9999 + b'}',
    'bom': b'\xef\xbb\xbf{"rank": 1}',
}


@pytest.mark.parametrize('name', FILES)
def test_files_that_are_no_grid(tmp_path, name):
    "One sentence that names the file"
    file = tmp_path / 'grid.json'
    file.write_bytes(FILES[name])
    with pytest.raises(ValueError) as e:
        read_grid(file)
    assert str(file) in str(e.value) and '\n' not in str(e.value) and len(str(e.value)) < 1000


@pytest.mark.parametrize('kind', ['missing', 'folder', 'pipe', 'loop', 'device'])
def test_what_is_no_file(tmp_path, kind):
    file = tmp_path / 'grid.json'
    if kind == 'folder':
        file.mkdir()
    elif kind == 'pipe':
        os.mkfifo(file)
    elif kind != 'missing':
        file.symlink_to(file if kind == 'loop' else '/dev/zero')
    with pytest.raises((OSError, ValueError)) as e:
        read_grid(file)
    one_sentence(e.value, file)


@pytest.mark.parametrize('seed', SEEDS)
def test_damaged_grids(tmp_path, seed):
    "One sentence that names the file, or a grid that can be carried out as it stands there"
    grid = [{'seed': [0, 1], 'method': ['pt', 'lopa'], 'steps': 50}, {'rank': 2, 'prompt_lr': 0.5}]
    file = tmp_path / 'grid.json'
    file.write_bytes(damage(json.dumps(grid, indent=1).encode(), seed))
    try:
        found = read_grid(file)
    except ValueError as e:
        assert str(file) in str(e) and '\n' not in str(e)
    else:
        assert found == json.loads(file.read_text())
        assert len(check_grid(found)) <= len(expand(found))


# --- what stands in the way of a result ---

ONE = {'method': 'majority', 'train_rows': 100, 'test_rows': 200}
NAME = file_name(experiment(ONE))


def quickly(monkeypatch):
    "Nothing is loaded and nothing computed"

    def score_one(about, folder, **_):
        test = {'accuracy': 0.5, 'low': 0.4, 'high': 0.6, 'n': 2}
        return {**about, 'test': test, 'test_right': '01', 'data': {'train': 100, 'test': 200}}

    monkeypatch.setattr(lopa.ablate.runs, 'score_one', score_one)


@pytest.mark.parametrize('ending', ['json', 'failed.json', 'jsonl'])
@pytest.mark.parametrize('kind', ['folder', 'pipe', 'link'])
def test_what_is_no_file_of_ours_is_left_alone(tmp_path, monkeypatch, ending, kind):
    "And nothing is begun"
    monkeypatch.setattr(lopa.ablate.runs, 'attempt', None)
    out = tmp_path / 'out'
    out.mkdir()
    (tmp_path / 'mine').write_text('mine')
    place = out / f'{NAME}.{ending}'
    if kind == 'folder':
        place.mkdir()
    elif kind == 'pipe':
        os.mkfifo(place)
    else:
        place.symlink_to('../mine')
    with pytest.raises(OSError) as e:
        sweep(ONE, out, progress=False)
    one_sentence(e.value, place)
    assert (tmp_path / 'mine').read_text() == 'mine'


def test_foreign_files_are_left_alone(tmp_path, monkeypatch):
    quickly(monkeypatch)
    (tmp_path / f'{NAME}.json').write_text('{"notes": "call Anna"}')
    with pytest.raises(FileExistsError) as e:
        sweep(ONE, tmp_path, progress=False)
    one_sentence(e.value, NAME)
    assert 'Anna' in (tmp_path / f'{NAME}.json').read_text()


@pytest.mark.parametrize('which', ['.work', 'run', 'file'])
def test_links_are_not_followed(tmp_path, monkeypatch, which):
    "The folder of an unfinished run is a folder of ours, in this folder"
    quickly(monkeypatch)
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    (elsewhere / 'thesis').write_text('mine')
    out = tmp_path / 'out'
    work = out / '.work'
    if which == '.work':
        out.mkdir()
        work.symlink_to(elsewhere)
    else:
        work.mkdir(parents=True)
        place = work / identity(experiment(ONE))
        place.symlink_to(elsewhere) if which == 'run' else place.write_text('mine')
    with pytest.raises(OSError) as e:
        sweep(ONE, out, progress=False)
    one_sentence(e.value, '.work')
    assert (elsewhere / 'thesis').read_text() == 'mine' and not list(out.glob('*.json'))


@pytest.mark.parametrize('out', ['a file', 'a file/below'])
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, out):
    monkeypatch.setattr(lopa.ablate.runs, 'attempt', None)
    (tmp_path / 'a file').write_text('mine')
    with pytest.raises(OSError) as e:
        sweep(ONE, tmp_path / out, progress=False)
    one_sentence(e.value, tmp_path / out)


def test_what_was_left_of_a_finished_run_is_removed(tmp_path, monkeypatch):
    "Of one that was killed between its result and the end; not of one that somebody is at"
    from filelock import FileLock

    quickly(monkeypatch)
    sweep(ONE, tmp_path, progress=False)
    work = tmp_path / '.work' / identity(experiment(ONE))
    (work / 'checkpoint-10').mkdir(parents=True)
    (work / 'checkpoint-10' / 'model.safetensors').write_bytes(bytes(10))
    with FileLock(f'{work}.lock'):
        sweep(ONE, tmp_path, progress=False)
        assert work.exists()
    assert sweep(ONE, tmp_path, progress=False) == {'done': 0, 'skipped': 1, 'failed': {}}
    assert not work.exists()


# --- results that are not what they say ---


def spoil(tmp_path, monkeypatch, change):
    "A result of this experiment, with something else in it"
    quickly(monkeypatch)
    run(ONE, tmp_path)
    path = tmp_path / f'{NAME}.json'
    record = json.loads(path.read_text())
    record.pop('hash')
    path.write_text(json.dumps(change(record)))
    return path


MOVED = {
    'seed': lambda r: r | {'method': 'lopa', 'experiment': {'seed': 1}},
    'task': lambda r: r | {'task': 'rte'},
    'experiment': lambda r: r | {'experiment': ONE | {'test_rows': 300}},
    'unknown': lambda r: r | {'experiment': {'rnak': 3}},
    'rows': lambda r: r | {'test_rows': 300},
    'more data': lambda r: r | {'data': {'train': 5000}},
    'id': lambda r: r | {'id': '0' * 12},
}


@pytest.mark.parametrize('name', MOVED)
def test_results_of_another_experiment(tmp_path, monkeypatch, name):
    "The name or the identity of this one, and another content: refused, and kept"
    path = spoil(tmp_path, monkeypatch, MOVED[name])
    before = path.read_bytes()
    for ask in (lambda: sweep(ONE, tmp_path, progress=False), lambda: run(ONE, tmp_path)):
        with pytest.raises(ValueError) as e:
            ask()
        one_sentence(e.value, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize('seed', SEEDS)
def test_damaged_results_are_made_anew(tmp_path, monkeypatch, seed):
    "The same numbers, or one sentence; and nobody waits for a pipe"
    quickly(monkeypatch)
    first = run(ONE, tmp_path)
    path = tmp_path / f'{NAME}.json'
    path.write_bytes(damage(path.read_bytes(), seed))
    try:
        again = run(ONE, tmp_path)
    except (OSError, ValueError) as e:
        one_sentence(e, path)
    else:
        assert again == json.loads(path.read_text())
        assert again | {'hash': first['hash']} == first  # one without a hash may be an old one


def test_a_flipped_digit_is_noticed(tmp_path, monkeypatch):
    quickly(monkeypatch)
    first = run(ONE, tmp_path)
    path = tmp_path / f'{NAME}.json'
    path.write_text(path.read_text().replace('"accuracy": 0.5', '"accuracy": 0.55'))
    assert run(ONE, tmp_path) == first


def test_many_experiments_are_read_once(tmp_path, monkeypatch):
    "A sweep of n experiments reads each result a few times, and not n times"
    quickly(monkeypatch)
    counts = []
    read = lopa.ablate.runs.read_result

    def counted(path):
        counts.append(path)
        return read(path)

    monkeypatch.setattr(lopa.ablate.runs, 'read_result', counted)
    for n in 10, 40:
        counts.clear()
        grid = {'method': 'majority', 'train_rows': list(range(100, 100 + n)), 'test_rows': 200}
        out = tmp_path / str(n)
        assert sweep(grid, out, progress=False)['done'] == n
        assert len(counts) <= 8 * n
        counts.clear()
        assert sweep(grid, out, progress=False)['skipped'] == n
        assert len(counts) <= 3 * n
