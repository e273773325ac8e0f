"Tables as people have them: every cell as it stands there, or one sentence; splits share no text"

import gzip
import json
import os
import random
import warnings

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
from helpers import one_sentence

from lopa.tasks import Task, hold_out, load_task, own_task
from lopa.tasks.task import linked_rows, texts_around

disable_progress_bars()
pytestmark = pytest.mark.filterwarnings('ignore:.*(copies of another|fewer than ten):UserWarning')

WORDS = (' bug', ' wish')
TEXTS, KINDS = ['no start', 'more blue'], ['bug', 'wish']
PLAIN = 'message,kind\nno start,bug\nmore blue,wish\n'
LISTED = [dict(message=m, kind=k) for m, k in zip(TEXTS, KINDS, strict=True)]


def refused(f, *mentions, error=ValueError):
    with pytest.raises(error) as e:
        f()
    one_sentence(e.value, *mentions)


def rows_of(table, template='{message}', verbalizer=WORDS, label='kind', **more):
    "The rows of a table that is all for training"
    task = own_task('mine', {'train': table}, template, verbalizer, label=label, **more)
    return task.splits['train']


def as_read(table, **more):
    rows = rows_of(table, **more)
    return rows['message'][:], rows['label'][:]


@pytest.fixture
def put(tmp_path):
    def write(name, content, encoding='utf-8'):
        data = content if isinstance(content, bytes) else content.encode(encoding)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


# --- cells stay as they stand there ---


@pytest.mark.parametrize(
    'one,other',
    [
        ('007', '042'),
        ('0.50', '2.00'),
        ('10', '1e5'),
        ('true', 'False'),
        ('NA', 'None'),
        ('12345678901234567890123', '+1'),
        ('2024-01-01', '2024-01-02T10:00:00'),
        ('1/2', '01:30'),
        (' a ', 'inf'),
    ],
)
@pytest.mark.parametrize('kind', ['csv', 'tsv', 'jsonl'])
def test_text_is_text(put, kind, one, other):
    "Texts, and targets, are neither numbers nor dates nor truth values"
    sep = {'csv': ',', 'tsv': '\t'}.get(kind)
    rows = [dict(message=one, answer=other), dict(message=other, answer=one)]
    if sep:
        text = f'message{sep}answer\n{one}{sep}{other}\n{other}{sep}{one}\n'
    else:
        text = '\n'.join(map(json.dumps, rows))
    table = put(f't.{kind}', text)
    got = own_task('mine', {'train': table}, '{message}', target=' {answer}').splits['train']
    assert got.to_list() == rows


def test_numbers_of_json_as_they_are_written(put):
    path = put('t.jsonl', '{"message": 0.50, "kind": 0}\n{"message": 1e5, "kind": 1}\n')
    assert as_read(path) == (['0.50', '1e5'], [0, 1])


def test_only_what_is_missing_is_missing(put):
    "An empty cell of a CSV is missing; an empty text of a data set is a text"
    path = put('t.csv', 'message,kind\n,bug\nb,wish\n')
    refused(lambda: as_read(path), 't.csv', 'row 0', "'message'", 'None')
    assert as_read(Dataset.from_list([dict(LISTED[0], message=''), LISTED[1]]))[0] == ['', TEXTS[1]]
    for missing in (None, float('nan'), pd.NA, pd.NaT):
        frame = pd.DataFrame(dict(message=[missing, 'b'], kind=KINDS), dtype=object)
        refused(lambda table=frame: as_read(table), 'row 0', "'message'", 'None')


@pytest.mark.parametrize('value', [True, pd.Timestamp('2024-01-01'), ['a'], {'a': 1}, 'x\ud83d'])
def test_cells_that_are_no_text(value):
    table = [dict(LISTED[0], message=value), LISTED[1]]
    refused(lambda: as_read(table), 'row 0', "'message'")


# --- tables in many dresses ---


def dresses(folder):
    frame = pd.DataFrame(LISTED)
    frame.to_csv(folder / 'a.CSV', index=False)
    frame.to_csv(folder / 'a.tsv', index=False, sep='\t')
    frame.to_csv(folder / 'a.csv.gz', index=False)
    frame.to_parquet(folder / 'a.parquet')
    (folder / 'bom.csv').write_text(PLAIN, encoding='utf-8-sig')
    (folder / 'wide.csv').write_text(PLAIN.replace('message,kind', ' message , kind '))
    (folder / 'a.json').write_text(json.dumps(LISTED, indent=2))
    (folder / 'bom.jsonl').write_text('\n'.join(map(json.dumps, LISTED)), encoding='utf-8-sig')
    with gzip.open(folder / 'a.jsonl.gz', 'wt') as file:
        file.write('\n'.join(map(json.dumps, LISTED)))
    return sorted(folder.iterdir())


def test_files_are_read_by_their_suffix(tmp_path):
    found = {path.name: as_read(path) for path in dresses(tmp_path)}
    assert found == dict.fromkeys(found, (TEXTS, [0, 1]))
    assert len(found) == 9


def test_tables_are_read_by_their_type():
    rows = Dataset.from_list(LISTED)
    for table in (rows, rows.to_iterable_dataset(), pd.DataFrame(LISTED), LISTED, tuple(LISTED)):
        assert as_read(table) == (TEXTS, [0, 1]), type(table)
    several = own_task('mine', DatasetDict(train=rows), '{message}', WORDS, label='kind')
    assert several.splits['train']['message'][:] == TEXTS
    categories = pd.DataFrame(LISTED).astype({'kind': pd.CategoricalDtype(['wish', 'bug'])})
    assert as_read(categories) == (TEXTS, [0, 1])


@pytest.mark.parametrize(
    'table',
    [3, None, {1, 2}, [1, 2], ['a.csv'], iter(LISTED)],
    ids=['number', 'none', 'set', 'numbers', 'names', 'iterator'],
)
def test_no_table(table):
    refused(lambda: as_read(table), 'received', 'Dataset', 'DataFrame')


UNREADABLE = {
    'empty.csv': '',
    'header.csv': 'message,kind\n',
    'wide.csv': 'message,kind\na,bug,more\n',
    'narrow.csv': 'message,kind\na\n',
    'open.csv': 'message,kind\n"a,bug\nb,wish\n',
    'quotes.csv': 'message,kind\n"a" said he,bug\nb,wish\n',
    'twice.csv': 'message,message,kind\na,b,bug\n',
    'utf16.csv': PLAIN.encode('utf-16'),
    'latin.csv': PLAIN.replace('blue', 'bl\xe4u').encode('latin-1'),
    'quotes.tsv': 'message\tkind\n"a"\tbug\nb\twish\n',
    'cut.jsonl': '{"message": "a", "ki',
    'list.jsonl': '["a", "bug"]\n["b", "wish"]\n',
    'twice.jsonl': '{"message": "a", "message": "b", "kind": "bug"}\n',
    'none.jsonl': '\n',
    'no.parquet': 'PAR1',
    'no.csv.gz': PLAIN,
    'no.xlsx': 'PK',
    'a.txt': PLAIN,
    'a.parquet.gz': 'PK',
    'bare': PLAIN,
}


@pytest.mark.parametrize('name', UNREADABLE)
def test_files_that_cannot_be_read(put, name):
    path = put(name, UNREADABLE[name])
    refused(lambda: as_read(path), name)


def test_excel(tmp_path):
    openpyxl = pytest.importorskip('openpyxl')
    book = openpyxl.Workbook()
    for row in (['message', 'kind'], ['007', 'bug'], ['NA', 'wish']):
        book.active.append(row)
    book.save(tmp_path / 'a.xlsx')
    assert as_read(tmp_path / 'a.xlsx') == (['007', 'NA'], [0, 1])
    book.create_sheet('more').append(['message', 'kind'])
    book.save(tmp_path / 'b.xlsx')
    refused(lambda: as_read(tmp_path / 'b.xlsx'), 'b.xlsx', 'one sheet', 'more')


def test_excel_without_its_package(put, monkeypatch):
    def absent(*_, **__):
        raise ImportError

    monkeypatch.setattr('pandas.read_excel', absent)
    refused(lambda: as_read(put('a.xlsx', 'PK')), 'a.xlsx', 'openpyxl', '.csv')


@pytest.mark.parametrize('kind', ['csv', 'jsonl'])
def test_a_changed_file_is_read_anew(put, kind):
    "Even if size and time are the same"

    def write(message):
        row = f'message,kind\n{message},bug\n'
        return put(f't.{kind}', row if kind == 'csv' else json.dumps(dict(message=message, kind=0)))

    path = write('aaa')
    time = path.stat().st_mtime_ns
    assert as_read(path)[0] == ['aaa']
    write('bbb')
    os.utime(path, ns=(time, time))
    assert as_read(path)[0] == ['bbb']


def test_a_changed_data_set_is_read_anew(tmp_path):
    "The same of a built-in task"
    (tmp_path / 'rotten_tomatoes').mkdir()
    times = {}
    for text in ('aaa', 'bbb'):
        for split in ('train', 'validation', 'test'):
            path = tmp_path / 'rotten_tomatoes' / f'{split}.jsonl'
            path.write_text(json.dumps(dict(text=text, label=1)) + '\n')
            time = times.setdefault(split, path.stat().st_mtime_ns)
            os.utime(path, ns=(time, time))
        assert load_task('rotten_tomatoes', tmp_path).splits['test']['text'][:] == [text]


# --- labels ---


def labelled(names, numbers):
    features = Features(message=Value('string'), kind=ClassLabel(names=names))
    return Dataset.from_dict(dict(message=TEXTS, kind=numbers), features=features)


def test_names_of_labels_count(tmp_path):
    "Where they are the words of the verbalizer; in Parquet, too"
    swapped = labelled(['wish', 'bug'], [1, 0])
    swapped.to_parquet(tmp_path / 't.parquet')
    for table in (swapped, tmp_path / 't.parquet', swapped.to_iterable_dataset()):
        assert as_read(table) == (TEXTS, [0, 1])
    assert as_read(labelled(['more', 'wish', 'bug'], [2, 1])) == (TEXTS, [0, 1])
    assert as_read(labelled(['1', '0'], [1, 0])) == (TEXTS, [0, 1])
    assert as_read(labelled(['x', 'y'], [0, 1])) == (TEXTS, [0, 1])


def test_a_class_in_a_question_is_its_name():
    rows = own_task(
        'mine', {'train': labelled(['wish', 'bug'], [1, 0])}, '{message}', target=' {kind}'
    )
    assert rows.splits['train']['kind'][:] == ['bug', 'wish']


@pytest.mark.parametrize(
    'names', [['Wish', 'Bug'], ['wishes', 'bugs'], ['bug', 'other'], ['a', 'b', 'c'], ['1', '2']]
)
def test_names_that_contradict(names):
    refused(lambda: as_read(labelled(names, [0, 1])), *names, 'bug, wish')


@pytest.mark.parametrize(
    'value', [-1, 2, 0.3, 0.9999999, 'Bug', 'bug,wish', '', True, None, ['bug']]
)
def test_labels_that_are_none(value):
    table = [LISTED[0], dict(LISTED[1], kind=value)]
    refused(lambda: as_read(table), 'row 1', "'kind'", 'bug, wish', '0 to 1')


@pytest.mark.parametrize('zero,one', [('0', '1'), ('0.0', '1.0'), (' bug ', 'wish'), ('1.', '0')])
def test_labels_as_they_are_written(put, zero, one):
    got = as_read(put('t.csv', f'message,kind\na,{zero}\nb,{one}\n'))[1]
    assert got == ([1, 0] if zero == '1.' else [0, 1])


# --- what is asked ---

BAD_WORDS = {
    'a text': 'bug',
    'one word': (' bug',),
    'twice': (' bug', 'bug '),
    'blank': (' bug', ' '),
    'numbers': (0, 1),
    'a set': {' bug', ' wish'},
    'a dictionary': {0: ' bug', 1: ' wish'},
}


@pytest.mark.parametrize('words', BAD_WORDS.values(), ids=BAD_WORDS)
def test_verbalizers(words):
    refused(lambda: rows_of(LISTED, verbalizer=words), 'mine', 'verbalizer')
    refused(lambda: Task('mine', {}, '{message}', words), 'mine', 'verbalizer')


def test_a_list_of_words_will_do():
    assert Task('mine', {}, '{message}', [' bug', ' wish']).verbalizer == WORDS


@pytest.mark.parametrize('field', ['metrics', 'stop'])
def test_a_text_is_no_list_of_texts(field):
    refused(lambda: rows_of(LISTED, **{field: 'END'}), 'mine', field, 'END')


TEMPLATES = {
    'no column': 'Say:',
    'nothing': '',
    'by number': '{0}',
    'by place': '{}',
    'attribute': '{message.upper}',
    'item': '{message[0]}',
    'format': '{message:>9}',
    'conversion': '{message!r}',
    'example': '{"text": "{message}"}',
    'open': '{message',
    'closed': 'message}',
    'mask': '{mask}',
    'mask among others': '{message} {mask}',
    'the label': '{message} {kind}',
    'taken': '{length}',
}


@pytest.mark.parametrize('template', TEMPLATES.values(), ids=TEMPLATES)
def test_templates(template):
    rows = [dict(row, mask='m', length='n') for row in LISTED]
    refused(lambda: rows_of(rows, template=template), 'mine')


def test_templates_in_other_places():
    for masked in ('{message}', '{message} {mask} {mask}', '{message.x} {mask}', '{kind} {mask}'):
        refused(lambda m=masked: rows_of(LISTED, masked_template=m), 'mine')
    refused(lambda: rows_of(LISTED, reads='{kind}'), 'mine', 'kind')
    for target in ('yes', '{kind.x}'):
        refused(lambda t=target: rows_of(LISTED, verbalizer=(), target=t), 'mine', 'target')


def test_a_column_called_label_beside_the_labels():
    "It would be overwritten by them"
    rows = [dict(row, label='a text') for row in LISTED]
    refused(lambda: rows_of(rows, template='{label}'), 'mine', "'label'")


def test_columns_with_odd_names(put):
    path = put('t.csv', PLAIN.replace('message', 'my text, or: yours').replace('my', '"my', 1))
    path.write_text(path.read_text().replace('yours', 'yours"', 1))
    refused(lambda: rows_of(path, template='{my text}'), 'my text, or: yours')
    path = put('u.csv', PLAIN.replace('message', 'my text'))
    assert rows_of(path, template='{my text}')['my text'][:] == TEXTS


# --- what a task is made of ---


def test_rows_of_a_task():
    "Columns and labels are looked at when a task is made"
    rows = Dataset.from_list(LISTED)
    numbered = rows.remove_columns('kind').add_column('label', [0, -1])
    refused(lambda: Task('mine', {'test': rows}, '{massage}', WORDS), 'test', "'massage'")
    refused(lambda: Task('mine', {'test': rows}, '{message}', WORDS), 'test', "'label'")
    refused(lambda: Task('mine', {'test': numbered}, '{message}', WORDS), 'test', '-1', '0 to 1')
    refused(lambda: Task('mine', {'test': rows}, '{message}', target='{out}'), 'test', "'out'")
    refused(lambda: Task('mine', {}, '{a}', WORDS, masked_template='{a}'), 'masked_template')


def test_splits_that_are_wrong():
    "Each is named"
    tables = {'train': LISTED, 'test': [dict(message='a')]}
    refused(lambda: own_task('mine', tables, '{message}', WORDS, label='kind'), 'test', "'kind'")
    tables = {'train': LISTED, 'test': [dict(LISTED[0], kind=-1)]}
    refused(lambda: own_task('mine', tables, '{message}', WORDS, label='kind'), 'test', '-1')
    for names in (['val'], ['train', 'dev'], [], ['message', 'kind']):
        tables = dict.fromkeys(names, LISTED)
        refused(
            lambda t=tables: own_task('mine', t, '{message}', WORDS, label='kind'),
            'splits',
            'validation',
        )
    for empty in (
        [],
        Dataset.from_list(LISTED).select([]),
        pd.DataFrame(columns=['message', 'kind']),
    ):
        tables = {'train': LISTED, 'test': empty}
        refused(lambda t=tables: own_task('mine', t, '{message}', WORDS, label='kind'), 'test')


# --- copies ---


def said(f):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        result = f()
    return result, ' '.join(str(w.message) for w in caught)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('texts,each', [(8, 5), (40, 3), (15, 1)])
def test_copies_stay_on_one_side(texts, each, seed):
    "Up to blanks and case, and the number of copies is said"
    forms = ('text {}', ' Text  {}', 'TEXT {} ', 'text\t{}', 'text {}')
    rows = [
        dict(message=forms[k].format(f'{seed} {i}'), kind=i % 2)
        for i in range(texts)
        for k in range(each)
    ]
    random.Random(seed).shuffle(rows)
    task, words = said(lambda: own_task('mine', rows, '{message}', WORDS, label='kind'))
    keys = {k: {' '.join(m.split()).lower() for m in d['message']} for k, d in task.splits.items()}
    assert list(keys) == ['train', 'validation', 'test']
    assert sum(map(len, keys.values())) == texts
    assert sum(map(len, task.splits.values())) == texts * each
    copies = texts * (each - 1)
    assert (f'{copies} of {texts * each} rows are copies' in words) == bool(copies)
    shuffled = own_task('mine', rows[::-1], '{message}', WORDS, label='kind')
    assert {k: sorted(d['message']) for k, d in shuffled.splits.items()} == {
        k: sorted(d['message']) for k, d in task.splits.items()
    }


def test_copies_with_other_labels_are_named():
    rows = [dict(LISTED[0]), dict(LISTED[0], kind='wish'), LISTED[1]]
    words = said(lambda: rows_of(rows))[1]
    assert '1 of 3 rows' in words
    assert 'different answers' in words
    assert TEXTS[0] in words


def test_copies_across_splits_are_named():
    tables = {'train': LISTED, 'test': [dict(LISTED[0], message='No  START')]}
    words = said(lambda: own_task('mine', tables, '{message}', WORDS, label='kind'))[1]
    assert 'more than one split' in words
    assert TEXTS[0] in words
    assert not said(lambda: rows_of(LISTED))[1]


def test_few_rows_are_all_for_training_and_that_is_said():
    task, words = said(lambda: own_task('mine', LISTED, '{message}', WORDS, label='kind'))
    assert list(task.splits) == ['train']
    assert 'all for training' in words


# --- rows held out of GLUE's ---


def phrases(seed, n=60):
    "Sentences, and phrases of them, as SST-2 has them"
    draw = random.Random(seed)
    words = 'a dull warm slow bold film plot cast scene finds loses joy grief'.split()
    sentences = [[draw.choice(words) for _ in range(draw.randint(1, 12))] for _ in range(n)]
    found = {' '.join(s) for s in sentences}
    for s in sentences:
        for _ in range(6):
            start = draw.randrange(len(s))
            found.add(' '.join(s[start : start + draw.randint(1, 6)]))
    return sorted(found)


def stands_in(part, whole):
    return f' {part} ' in f' {whole} '


@pytest.mark.parametrize('seed', range(5))
def test_no_held_out_phrase_stands_in_training(tmp_path, seed):
    "And a phrase of training stands in a held-out one only if it stands in a training sentence"
    texts = phrases(seed)
    (tmp_path / 'glue/sst2').mkdir(parents=True)
    for split in ('train', 'validation'):
        lines = [json.dumps(dict(sentence=t, label=0, idx=i)) for i, t in enumerate(texts)]
        (tmp_path / f'glue/sst2/{split}.jsonl').write_text('\n'.join(lines))
    splits = load_task('sst2', tmp_path).splits
    train, held = (splits[k]['sentence'][:] for k in ('train', 'validation'))
    assert sorted(train + held) == texts
    assert 0 < len(held) <= len(texts) // 10
    assert not [h for h in held if any(stands_in(h, t) for t in train)]
    for t in train:
        if any(stands_in(t, h) for h in held):
            tops = [
                o
                for o in texts
                if stands_in(t, o) and not any(o != p and stands_in(o, p) for p in texts)
            ]
            assert set(tops) & set(train)


@pytest.mark.parametrize('seed', range(3))
def test_the_longest_texts_around_a_text(seed):
    "As a slow search finds them"
    texts = phrases(seed, 20)
    for text, places in zip(texts, texts_around(texts), strict=True):
        around = {o for o in texts if o != text and stands_in(text, o)}
        tops = {o for o in around if not any(o != p and stands_in(o, p) for p in texts)} or {text}
        assert {texts[i] for i in places} == tops


@pytest.mark.parametrize('name', ['mnli', 'qnli', 'qqp', 'mrpc'])
def test_no_text_of_a_held_out_pair_stands_in_training(tmp_path, name):
    from lopa.tasks.sources import SOURCES

    draw = random.Random(0)
    one, two = (f for f in SOURCES[name].fields if f != 'label')
    rows = [
        {one: f'one {draw.randrange(40)}', two: f'two {i} {{x}}', 'label': i % 2}
        for i in range(100)
    ]
    (tmp_path / f'glue/{name}').mkdir(parents=True)
    for split in SOURCES[name].splits:
        (tmp_path / f'glue/{name}/{split}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    splits = load_task(name, tmp_path).splits
    assert 0 < len(splits['validation']) <= 10
    for column in (one, two):
        assert not set(splits['train'][column]) & set(splits['validation'][column])


def test_links_go_through_others():
    assert linked_rows([['a', 'a', 'c', 'd'], ['x', 'y', 'Y', 'z']]) == [{0}, {0}, {0}, {3}]


def test_rows_that_are_all_linked():
    rows = Dataset.from_dict({'a': list('abcdefghij'), 'b': ['x'] * 10})
    refused(lambda: hold_out(rows, ['a', 'b']), 'hold_out', 'a, b', 'validation')


# --- GLUE's own files ---

TREES = 'index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\t'
TREES += 'sentence1_parse\tsentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n'
GLUE = {
    'sst2': (
        'SST-2',
        'sentence\tlabel\nit \'s "fine " \t1\n"no"\t0\n',
        [dict(sentence='it \'s "fine " ', label=1), dict(sentence='"no"', label=0)],
    ),
    'mrpc': (
        'MRPC',
        '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t"Yes" he said\tHe said yes\n',
        [dict(sentence1='"Yes" he said', sentence2='He said yes', label=1)],
    ),
    'rte': (
        'RTE',
        'index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tA.\t007\tentailment\n',
        [
            dict(sentence1='A.', sentence2='B.', label=1),
            dict(sentence1='A.', sentence2='007', label=0),
        ],
    ),
    'qnli': (
        'QNLI',
        'index\tquestion\tsentence\tlabel\n0\tWho?\tMe.\tentailment\n1\tWho?\tX.\tnot_entailment\n',
        [
            dict(question='Who?', sentence='Me.', label=0),
            dict(question='Who?', sentence='X.', label=1),
        ],
    ),
    'qqp': (
        'QQP',
        'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tWhat for?\t1\n',
        [dict(question1='Why?', question2='What for?', label=1)],
    ),
    'mnli': (
        'MNLI',
        TREES
        + ''.join(
            f'{i}\t1\t1c\tfiction\t( a )\t( b )\t(A)\t(B)\tA.\tB.\t{label}\t{label}\n'
            for i, label in enumerate(['neutral', 'entailment', 'contradiction'])
        ),
        [dict(premise='A.', hypothesis='B.', label=i) for i in (1, 0, 2)],
    ),
}


@pytest.mark.parametrize('ours', [True, False], ids=['our folder', "GLUE's folder"])
@pytest.mark.parametrize('name', GLUE)
def test_glues_own_files(tmp_path, name, ours):
    "Quotes belong to the text; columns and labels are the hub's"
    folder, text, rows = GLUE[name]
    folder = tmp_path / (f'glue/{name}' if ours else folder)
    folder.mkdir(parents=True)
    for file in ('train', 'dev_matched' if name == 'mnli' else 'dev'):
        (folder / f'{file}.tsv').write_text(text, encoding='utf-8')
    task = load_task(name, tmp_path)
    assert task.splits['test'].to_list() == rows
    assert sum(len(task.splits[k]) for k in ('train', 'validation') if k in task.splits) == len(
        rows
    )


def test_glues_files_with_mistakes(tmp_path):
    folder = tmp_path / 'RTE'
    folder.mkdir()
    good = GLUE['rte'][1]
    (folder / 'train.tsv').write_text(good)
    refused(lambda: load_task('rte', tmp_path), 'RTE/train.tsv', error=FileNotFoundError)
    (folder / 'dev.tsv').write_text('index\tsentence1\tsentence2\n0\tA.\tB.\n')
    refused(lambda: load_task('rte', tmp_path), 'dev.tsv', "'label'")
    (folder / 'dev.tsv').write_text(good + '2\tA.\tB.\tmaybe\n')
    refused(lambda: load_task('rte', tmp_path), 'dev.tsv', 'row 2', 'maybe', 'not_entailment')
    (folder / 'dev.tsv').write_text(good + '2\tA.\n')
    task, words = said(lambda: load_task('rte', tmp_path))
    assert len(task.splits['test']) == 2
    assert '1 of 3 rows' in words


def test_glues_files_as_own_tables(put):
    "Their quotes come in no pairs, so they are part of the text"
    text = 'index\tsentence\tlabel\n0\t"Yes" he said\t1\n1\t5" disk\t0\n'
    rows = rows_of(put('train.tsv', text), template='{sentence}', label='label')
    assert rows['sentence'][:] == ['"Yes" he said', '5" disk']


def test_a_class_without_rows_is_named():
    rows = Dataset.from_dict({'text': list('abc'), 'label': [1, 2, 1]})  # counted from 1
    with pytest.warns(UserWarning, match="training is of the class 'bug'"):
        own_task('mine', {'train': rows}, '{text}', (' bug', ' wish', ' question'))


@pytest.mark.parametrize('field', ['max_length', 'max_new_tokens'])
@pytest.mark.parametrize('value', [0, -1, None, 2.5, True])
def test_lengths_of_a_task(field, value):
    rows = Dataset.from_dict({'text': ['a'], 'word': ['b']})
    with pytest.raises(ValueError, match=field):
        own_task('mine', {'train': rows}, '{text}', target=' {word}', **{field: value})
