"""A folder of results may hold anything

What can be read is in the table, what cannot is named, and every published number is where it says.
"""

import json
import math
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from damage import SEEDS, damage
from helpers import one_sentence, tiny, word_task

import lopa.evaluate.predict
import lopa.records.records
import lopa.train.loop
from lopa import PromptConfig, assets, get_prompt_model
from lopa.evaluate import main_score
from lopa.files import seal
from lopa.records import SCHEMA, average, difference, load_results, read_result, summarise, trouble
from lopa.records.records import COLUMNS, find
from lopa.train import recipe, train

RESULTS = Path(__file__).parents[1] / 'results'
GOOD = {
    'id': 'a',
    'schema': SCHEMA,
    'task': 'rte',
    'method': 'lopa',
    'base_model': 'tiny',
    'seed': 0,
    'config': {'rank': 2},
    'test': {'accuracy': 0.6, 'low': 0.5, 'high': 0.7, 'n': 100},
    'trainable_parameters': 7,
}


def table_of(*folders):
    "The table, and what is the matter with which file; a warning is no error"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        table = load_results(*folders)
    problems = table.attrs['problems']
    assert len(said) == bool([why for _, why in problems if not why.startswith('older schema')])
    return table, {Path(file).name: why for file, why in problems}


def scored(**how):
    return GOOD | {'test': GOOD['test'] | how}


def without(*keys):
    return {k: v for k, v in GOOD.items() if k not in keys}


HOSTILE = {  # name → (contents, what is said of it)
    'cut.json': (json.dumps(GOOD)[:60], 'whole JSON'),
    'empty.json': ('', 'whole JSON'),
    'junk.json': (bytes(range(256)), 'whole JSON'),
    'latin.json': ('{"task": "é"}'.encode('latin-1'), 'whole JSON'),
    'deep.json': ('[' * 200_000, 'whole JSON'),
    'digits.json': ('{"seed": ' + '9' * 9999 + '}', 'whole JSON'),
    'bom.json': ('\ufeff' + json.dumps(GOOD), 'whole JSON'),
    'null.json': ('null', 'whole JSON'),
    'notes.txt': ('call Anna', 'not a JSON file'),
    'table.csv': ('a,b', 'not a JSON file'),
    'weights.safetensors': (b'\0' * 99, 'not a JSON file'),
    'list.json': ('[1, 2]', 'not a result'),
    'foreign.json': ('{"name": "package", "version": 3}', 'not a result'),
    'untold.json': (without('method'), 'not a result'),
    'method.json': (GOOD | {'method': ['lopa']}, 'not a result'),
    'failed.json': (
        GOOD | {'error': 'MemoryError: 9 GB\nwere too much', 'traceback': '…'},
        'MemoryError',
    ),
    'newer.json': (GOOD | {'schema': SCHEMA + 1}, 'update lopa'),
    'schema.json': (GOOD | {'schema': 'one'}, 'update lopa'),
    'untested.json': (without('test'), 'no test score'),
    'test.json': (GOOD | {'test': [0.5]}, 'no test score'),
    'nan.json': (scored(accuracy=math.nan), 'test score'),
    'text.json': (scored(accuracy='0.9'), 'test score'),
    'percent.json': (scored(accuracy=85.0), 'test score'),
    'true.json': (scored(accuracy=True), 'test score'),
    'half.json': (GOOD | {'test': {'accuracy': 0.5}}, 'test score'),
    'main.json': (scored(score='high'), 'test score'),
    'infinite.json': (scored(high=math.inf), 'test score'),
    'score.json': (scored(score=math.nan), 'test score'),
    'config.json': (GOOD | {'config': [1]}, 'config'),
    'recipe.json': (GOOD | {'recipe': 'paper'}, 'recipe'),
    'history.json': (GOOD | {'history': {}}, 'history'),
    'seed.json': (GOOD | {'seed': [0]}, 'seed'),
    'id.json': (GOOD | {'id': ['a']}, 'id'),
    'rank.json': (GOOD | {'config': {'rank': '2'}}, 'rank'),
    'encoder.json': (
        GOOD | {'config': {'encoder_name_or_path': 3, 'encoder_pooling': 'mean'}},
        'encoder',
    ),
    'floor.json': (
        GOOD | {'encoder_name_or_path': {}, 'encoder_pooling': 'mean'},
        'encoder_name_or_path',
    ),
    'right.json': (GOOD | {'test_right': '0120'}, 'right'),
    'rights.json': (GOOD | {'test_right': [[1]]}, 'right'),
    'count.json': (GOOD | {'test_right': 5}, 'right'),
    'parameters.json': (GOOD | {'trainable_parameters': 'many'}, 'parameters'),
    'published.json': ({'table_glue': 1}, 'published'),
    'copy.json': (GOOD, 'same experiment'),
    'older.json': (without('id', 'schema'), 'older schema'),
}


@pytest.fixture
def hostile(tmp_path):
    "All of it beside two good results, one of an older version, and folders that look like files"
    for name, (text, _) in HOSTILE.items():
        (tmp_path / name).write_bytes(
            text
            if isinstance(text, bytes)
            else (text if isinstance(text, str) else json.dumps(text)).encode()
        )
    (tmp_path / 'a.json').write_text(json.dumps(GOOD))
    (tmp_path / 'b.json').write_text(
        json.dumps(GOOD | {'id': 'b', 'seed': 1, 'odd': {'keys': [None]}})
    )
    (tmp_path / 'folder.json').mkdir()
    (tmp_path / 'dangling.json').symlink_to(tmp_path / 'gone')
    for name in '.hidden.json', 'predictions.jsonl':
        (tmp_path / name).write_text('these belong there')
    (tmp_path / '.work').mkdir(), (tmp_path / 'below').mkdir()
    return tmp_path


def test_hostile_folder(hostile):
    "Nothing crashes, nothing disappears without a word, everything else is in the table"
    table, problems = table_of(hostile)
    assert sorted(Path(f).name for f in table.file) == ['a.json', 'b.json', 'older.json']
    for name, (_, said) in HOSTILE.items():
        assert said in problems.pop(name), name
    assert problems.keys() == {'folder.json', 'dangling.json'}
    assert len(average(table)) == 1 and average(table).seeds[0] == 2


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_file(hostile, name):
    "Who names a file means it; it counts as finished only if it is a result, or a newer lopa's"
    from lopa.ablate.runs import result_in

    good = name in ('copy.json', 'older.json')
    if good:
        table, problems = table_of(hostile / name)
        assert len(table) == 1 and (name in problems) == (name != 'copy.json')
    else:
        with pytest.raises(ValueError) as e:
            load_results(hostile / name)
        one_sentence(e.value, name, HOSTILE[name][1])
    assert bool(result_in(hostile / name)) == (good or name in ('untested.json', 'newer.json'))


def test_unreadable(tmp_path, monkeypatch):
    "A file that may not be read, or whose disk is broken, is named; nothing at all is an error"
    (tmp_path / 'a.json').write_text(json.dumps(GOOD))

    def refuse(*_, **__):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(lopa.records.records, 'read_whole', refuse)
    table, problems = table_of(tmp_path)
    assert not len(table) and 'whole JSON' in problems['a.json']
    with pytest.raises(FileNotFoundError) as e:
        load_results(tmp_path / 'nowhere')
    one_sentence(e.value, 'nowhere')


# --- what is no file, and numbers that cannot be ---


@pytest.mark.parametrize('kind', ['pipe', 'loop', 'folder', 'device'])
def test_what_is_no_file_does_not_hang(tmp_path, kind):
    "A pipe named x.json was waited for, by whoever looked for finished experiments"
    from lopa.ablate.runs import result_in, results_in

    path = tmp_path / 'x.json'
    if kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'folder':
        path.mkdir()
    else:
        path.symlink_to(path if kind == 'loop' else '/dev/zero')
    (tmp_path / 'a.json').write_text(json.dumps(GOOD))
    table, problems = table_of(tmp_path)
    assert len(table) == 1 and problems.keys() == {'x.json'}
    assert result_in(path) is None and results_in(tmp_path).keys() == {'a'}
    if kind != 'folder':  # a folder that is named is looked into
        with pytest.raises(ValueError) as e:
            load_results(path)
        one_sentence(e.value, 'x.json')


def with_part(part, **more):
    return GOOD | {part: more}


IMPOSSIBLE = {
    'accuracy': scored(accuracy=7),
    'interval': scored(low=0.7, high=0.5),
    'outside': scored(low=0.7, high=0.8),
    'n': scored(n=-1),
    'half n': scored(n=99.5),
    'parameters': GOOD | {'trainable_parameters': -3},
    'seed': GOOD | {'seed': -1},
    'memory': GOOD | {'peak_memory_mb': -0.5},
    'endless': GOOD | {'peak_memory_mb': math.inf},
    'time': with_part('seconds', total=math.nan),
    'steps': with_part('recipe', steps=0.5),
    'rate': with_part('recipe', prompt_lr=-1.0),
    'rank': with_part('config', rank=-4),
    'huge': with_part('config', rank=10**400),
    'digits': scored(n=3) | {'test_right': '01'},
    'look': GOOD | {'history': [3]},
    'lines': GOOD | {'base_model': 'two\nlines'},
    'elsewhere': with_part('validation', accuracy=math.nan),
}


@pytest.mark.parametrize('name', IMPOSSIBLE)
def test_impossible_numbers(tmp_path, name):
    "Refused by name; beside a good result they are left out of the table"
    (tmp_path / 'x.json').write_text(json.dumps(IMPOSSIBLE[name] | {'id': 'x'}))
    (tmp_path / 'good.json').write_text(json.dumps(GOOD))
    table, problems = table_of(tmp_path)
    assert len(table) == 1 and problems.keys() == {'x.json'}
    with pytest.raises(ValueError) as e:
        load_results(tmp_path / 'x.json')
    one_sentence(e.value, 'x.json')


@pytest.mark.parametrize(
    'change', [{'percent': 900}, {'percent': '9'}, {'percent': -1}, {'method': 3}, {'rank': 'x'}]
)
def test_impossible_published_numbers(tmp_path, change):
    published = json.loads((RESULTS / 'published.json').read_text())
    published['published'][0] |= change
    (tmp_path / 'published.json').write_text(json.dumps(published))
    assert table_of(tmp_path)[1].keys() == {'published.json'}


def test_many_results_take_linear_time(tmp_path, monkeypatch):
    "Rows are never compared with each other: 10,000 results took 44 s, most of them in a list"
    from lopa.records import records

    compared = []

    class Row(dict):
        def __eq__(self, other):
            compared.append(1)
            return super().__eq__(other)

        __hash__ = None

    made = records.row_of
    monkeypatch.setattr(records, 'row_of', lambda *args: Row(made(*args)))
    for n in range(60):
        (tmp_path / f'{n}.json').write_text(json.dumps(GOOD | {'id': str(n), 'seed': n}))
    rows, problems = records.join_rows([tmp_path, tmp_path])
    assert len(rows) == 60 and not problems and not compared


@pytest.mark.parametrize('seed', SEEDS)
def test_damaged_results(tmp_path, seed):
    "What it was, or named: never another number"
    record = seal(GOOD | {'history': [{'step': 1}], 'test_right': '01' * 50})
    (tmp_path / 'x.json').write_text(json.dumps(record))
    right = table_of(tmp_path)[0]
    (tmp_path / 'x.json').write_bytes(damage(json.dumps(record, indent=1).encode(), seed))
    table, problems = table_of(tmp_path)
    assert len(table) + len(problems) == 1 and (not len(table) or table.equals(right))
    try:
        assert len(load_results(tmp_path / 'x.json')) == 1
    except ValueError as e:
        one_sentence(e, 'x.json')


@pytest.mark.parametrize('seed', SEEDS)
def test_damaged_published_numbers(tmp_path, seed):
    data = (RESULTS / 'published.json').read_bytes()
    (tmp_path / 'published.json').write_bytes(damage(data, seed))
    table, problems = table_of(tmp_path)
    assert len(table) or problems
    assert table.score.dropna().between(0, 1).all()


def test_the_same_folder_twice(tmp_path):
    "Counts once, and is no reason to complain; the same experiment in another folder is"
    for name in 'x', 'y':
        (tmp_path / name).mkdir(), (tmp_path / name / 'a.json').write_text(json.dumps(GOOD))
    table, problems = table_of(tmp_path / 'x', tmp_path / 'x')
    assert len(table) == 1 and not problems
    table, problems = table_of(tmp_path / 'x', tmp_path / 'y')
    assert len(table) == 1 and 'x/a.json' in problems['a.json']


# --- what was published ---


def numbers(part, path=()):
    "All numbers of a table with the keys that lead there, without the axes `m` and `r`"
    if isinstance(part, (int, float)):
        yield path, part
    elif isinstance(part, dict):
        yield from (
            leaf for k, v in part.items() if k not in ('m', 'r') for leaf in numbers(v, (*path, k))
        )
    elif isinstance(part, list):
        yield from (leaf for i, v in enumerate(part) for leaf in numbers(v, (*path, i)))


def follow(part, place):
    "Follow a dotted path; a key may have dots in it, so the longest that fits is taken"
    if not place:
        return part
    if isinstance(part, list):
        i, _, rest = place.partition('.')
        return follow(part[int(i)], rest)
    key = max((k for k in part if place == k or place.startswith(f'{k}.')), key=len)
    return follow(part[key], place[len(key) + 1 :])


def test_published_numbers():
    "Each in exactly one row, found again where the row says, in shares and whole parameters"
    published = json.loads((RESULTS / 'published.json').read_text())
    table, problems = table_of(RESULTS / 'published.json')
    places = [file.split(': ', 1)[1] for file in table.file]
    tables = (
        'table_glue',
        'table_code',
        'phi2_extra',
        'fig3_length',
        'fig4_rank',
        'params_millions',
    )
    every = {
        '.'.join(map(str, path)): value
        for name in tables
        for path, value in numbers(published[name], (name,))
    }
    assert not problems and sorted(places) == sorted(every) and len(every) > 200
    for place, (_, row) in zip(places, table.iterrows(), strict=True):
        value = follow(published, place)
        assert (
            value == every[place]
            and row.source == 'published'
            and row.figure == place.split('.')[0]
        )
        if row.figure == 'params_millions':
            assert row.parameters == round(1e6 * value) and row.score != row.score, place
        else:
            assert row.score == value / 100 and row.parameters != row.parameters, place


def test_the_tidy_table_is_what_was_printed():
    "The rows of the file and the tables as printed hold the same numbers: neither changes alone"
    published = json.loads((RESULTS / 'published.json').read_text())
    rows = published['published']
    assert len({row['place'] for row in rows}) == len(rows) > 200
    for row in rows:
        printed = row['percent'] if 'percent' in row else row['millions']
        assert printed == follow(published, row['place']), row
        assert ('millions' in row) == (row['figure'] == 'params_millions')
        assert ('percent' in row) != ('millions' in row)
        assert row['place'].startswith(f'{row["figure"]}.')


SMALL, DEEP = 'roberta-large', 'deepseek-coder-1.3b'
PLACES = {  # place → task, method, foundation model, length, rank
    'table_glue.LoPA.mrpc': ('mrpc', 'lopa', SMALL, 10, 4),
    'table_glue.PT.rte': ('rte', 'pt', SMALL, 10, None),
    'table_code.mbpp.LoRA.phi-2': ('mbpp', 'lora', 'phi-2', None, None),
    f'table_code.cruxeval-i.IDPG.{DEEP}': ('cruxeval-i', 'idpg', DEEP, None, None),
    'phi2_extra.FFT.mbpp': ('mbpp', 'full', 'phi-2', None, None),
    'fig3_length.rte.LoPA.5': ('rte', 'lopa', SMALL, 5, 4),
    'fig3_length.cruxeval-o.LoPA r=2.100': ('cruxeval-o', 'lopa', DEEP, 100, 2),
    'fig4_rank.mrpc.1': ('mrpc', 'lopa', SMALL, 10, 2),
    'fig4_rank.cruxeval-o phi-2.0': ('cruxeval-o', 'lopa', 'phi-2', 10, 1),
    f'fig4_rank.cruxeval-i {DEEP} m=50.2': ('cruxeval-i', 'lopa', DEEP, 50, 4),
    'params_millions.glue (d=1024, encoder hidden 1024, head width 256).LoPA m=10 r=1,2,4.2': (
        ('glue', 'lopa', SMALL, 10, 4)
    ),
    f'params_millions.cruxeval {DEEP} (d=2048, codebert hidden 768, head width 768).LoPA r=2.4': (
        ('cruxeval', 'lopa', DEEP, 100, 2)
    ),
    'params_millions.cruxeval phi-2 (d=2560, codesage hidden 1024, head width 1024), '
    'm=10, r=1,2,4.1': ('cruxeval', 'lopa', 'phi-2', 10, 2),
}


@pytest.mark.parametrize('place', PLACES)
def test_published_settings(place):
    "A row's task, method, length and rank are those of its place"
    table, _ = table_of(RESULTS / 'published.json')
    (row,) = (row for _, row in table.iterrows() if row.file.split(': ', 1)[1] == place)
    task, method, base, m, r = PLACES[place]
    assert (row.task, row.method, row.base_model) == (task, method, base)
    for have, want in ((row.num_virtual_tokens, m), (row['rank'], r)):
        assert have == want or (have != have and want is None)


def test_the_room_needs_no_torch():
    "Who only reads results does not load it"
    heavy = "{'torch', 'transformers', 'matplotlib', 'lopa.train'}"
    code = f'import sys, lopa.records, lopa.records.series; print({heavy} & {{*sys.modules}})'
    root = Path(__file__).parents[1]
    ran = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert ran.stdout.strip() == 'set()', ran.stderr


# --- our own ---


def own():
    return sorted(folder for folder in RESULTS.iterdir() if folder.is_dir())


@pytest.mark.parametrize('folder', own(), ids=lambda f: f.name)
def test_our_numbers(folder):
    "Every file is a row or named, and every row says what its file says"
    table, problems = table_of(folder)
    files = {str(p) for p in folder.glob('*.json')}
    assert (
        {*table.file} <= files
        and {Path(f).name for f in files - {*table.file}} <= {*problems}
        and table.file.is_unique
    )
    for _, row in table.iterrows():
        record = json.loads(Path(row.file).read_text())
        test = record['test']
        assert (
            not trouble(record)
            and row.source == 'ours'
            and row.score == test.get('score', test['accuracy'])
        )
        for column, path in COLUMNS.items():
            value = find(record, path)
            if column in row and value is not None and column != 'score':
                assert row[column] == value, (row.file, column)
        assert (row.low, row.high, row.method, row.task) == (
            test['low'],
            test['high'],
            record['method'],
            record['task'],
        )
        assert (
            row.parameters == record.get('trainable_parameters')
            or row.parameters != row.parameters
            and 'trainable_parameters' not in record
        )


def test_averages_of_our_numbers():
    "Three seeds are one line, whose ends are the lowest and the highest of them"
    table, _ = table_of(RESULTS / 'rotten_tomatoes')
    found = average(table)
    assert found.runs.sum() == len(table) and found.score.is_monotonic_decreasing
    lopa = found[(found.method == 'lopa') & (found.variant == 'tuned')].iloc[0]
    scores = [
        read_result(RESULTS / 'rotten_tomatoes' / f'lopa-tuned-seed{i}.json')['test']['accuracy']
        for i in range(3)
    ]
    assert (
        lopa.seeds == lopa.runs == 3
        and (lopa.lowest, lopa.highest) == (min(scores), max(scores))
        and abs(lopa.score - sum(scores) / 3) < 1e-12
    )


def test_columns_that_tell_lines_apart(tmp_path):
    "A setting that a method lacks makes no column; one that only some of its runs have does"
    for i, record in enumerate([GOOD, {**without('config'), 'id': 'b', 'method': 'majority'}]):
        (tmp_path / f'{i}.json').write_text(json.dumps(record))
    assert not {'rank', 'base_model', 'n', 'source'} & {*average(table_of(tmp_path)[0])}
    (tmp_path / '2.json').write_text(json.dumps({**without('config'), 'id': 'c'}))
    assert 'rank' in average(table_of(tmp_path)[0])


# --- of today's runs ---


@pytest.fixture
def one_tokenizer(monkeypatch):
    "The packaged encoder's, for tiny models"
    tokenizer = assets.load_tokenizer(assets.ENCODER, 'left')
    both = lambda base, encoder: (tokenizer, tokenizer if encoder else None)
    monkeypatch.setattr(lopa.evaluate.predict, 'load_tokenizers', both)
    return tokenizer


def trained(tokenizer, task, folder, **more):
    "Ten steps of a tiny model"
    base = tiny('llama', vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    model = get_prompt_model(base, PromptConfig('pt', num_virtual_tokens=2))
    plan = recipe('rotten_tomatoes', 'pt', steps=10, batch_size=4, eval_steps=2)
    return train(model, task, plan, folder, progress=False, **more)


def test_a_run_is_no_older_schema(one_tokenizer, tmp_path):
    "What `train` has just written is read without a word"
    trained(one_tokenizer, word_task(), tmp_path)
    table, problems = table_of(tmp_path / 'result.json')
    assert problems == {} and len(table) == 1 and table.schema[0] == SCHEMA


@pytest.mark.parametrize('metrics', [('f1', 'accuracy'), ('f1',)], ids=str)
def test_a_run_is_chosen_by_the_first_metric(one_tokenizer, tmp_path, metrics, monkeypatch):
    "The look with the best F1 is kept, though another has the better accuracy"
    seen = iter([0.2, 0.9, 0.4, 0.3, 0.1])
    judged = lopa.train.loop.score_lines

    def planted(about, lines):
        "Accuracy falls as F1 rises"
        found = judged(about, lines)
        if about['split'] == 'validation':
            found['score'] = next(seen)
            found['accuracy'] = 1 - found['score']
        return found

    monkeypatch.setattr(lopa.train.loop, 'score_lines', planted)
    result = trained(one_tokenizer, replace(word_task(), metrics=metrics), tmp_path)
    looks = [line for line in result['history'] if 'eval_accuracy' in line]
    assert [line['eval_score'] for line in looks] == [0.2, 0.9, 0.4, 0.3, 0.1]
    assert result['validation']['score'] == 0.9 == main_score(result['validation'])
    assert result['test']['score'] == result['test']['f1'] and result['test']['metric'] == 'F1'
    table, _ = table_of(tmp_path / 'result.json')
    assert table.score[0] == result['test']['score']


def test_all_rows_too_long_are_refused_first(one_tokenizer, tmp_path):
    task = word_task()
    texts = replace(task, verbalizer=(), target=' {text}', max_length=3)
    one_tokenizer.eos_token = one_tokenizer.sep_token
    with pytest.raises(ValueError) as e:
        trained(one_tokenizer, texts, tmp_path)
    one_sentence(e.value, 'own', 'max_length=3', 44)


def rows_of(*digits, score=None):
    "Runs that got these sentences right"
    made = [
        {
            'score': digits[i].count('1') / len(digits[i]) if score is None else score,
            'right': digits[i],
            'seed': i,
            'low': 0.1,
            'high': 0.2,
            'parameters': 1,
            'file': 'x',
        }
        for i in range(len(digits))
    ]
    return pd.DataFrame(made)


@pytest.mark.parametrize('digits', [('0' * 80,), ('1' * 80,) * 3])
def test_points_at_the_edges(digits):
    "No sentence right, or all, in every run: the interval has a width, and so has a difference"
    point = summarise(rows_of(*digits))
    assert 0 <= point['low'] <= point['score'] <= point['high'] <= 1
    assert 0.005 < point['high'] - point['low'] < 0.1
    same = difference(rows_of(*digits), rows_of(*digits))
    assert same['low'] < 0 == same['difference'] < same['high'] < 0.1


def test_digits_say_nothing_of_another_score():
    "Where F1 counts, the interval is not that of the accuracy"
    one = summarise(rows_of('1' * 9 + '0', score=0.15))
    assert (one['low'], one['high']) == (0.1, 0.2)
    two = summarise(rows_of('1' * 9 + '0', '1' * 9 + '0', score=0.15))
    assert two['low'] is two['high'] is None
