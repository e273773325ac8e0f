"Forty ways to write an answer, right and wrong: each is judged by its value alone"

from functools import partial

import pytest
from datasets import Dataset

from lopa.evaluate.judges import (
    answered_input,
    answered_output,
    builds,
    judge_input,
    judge_output,
    judge_tests,
    value_of,
    written,
)
from lopa.evaluate.predictions import check_scoring
from lopa.sandbox import run_program, same_value, why_not
from lopa.tasks import Task

run = partial(run_program, allow_weak_isolation=True)
pytestmark = pytest.mark.skipif(bool(why_not('child')), reason=f'no sandbox: {why_not("child")}')

SUM = 'WORDS = ["a", "bb"]\ndef g(x):\n    return x + 1\ndef f(a, b=1, *rest, c=0):\n'
SUM += '    return a + b + sum(rest) + c\n'
INPUTS = {  # f(...) has to return 5
    # keywords, stars
    'f(3, b=2) == 5': 1,
    'f(a=3, b=2) == 5': 1,
    'f(b=2, a=3)': 1,
    'f(3, b=3) == 5': 0,
    'f(3, d=2) == 5': 0,
    'a=3, b=2': 1,
    'a=3, b=2  # since': 1,
    '3, b=2': 1,
    'f(*[3, 2]) == 5': 1,
    '*[3, 2]': 1,
    "f(**{'a': 3, 'b': 2}) == 5": 1,
    'f(*[1, 1], *(1, 1), c=1) == 5': 1,
    'f(*[3], **dict(b=3)) == 5': 0,
    'f(3, 2, b=2) == 5': 0,
    # written from the other end, in chains, with a message
    '5 == f(3, 2)': 1,
    '5 == f(3, 3)': 0,
    'assert 5 == f(3, 2)': 1,
    'assert f(3, 2) == 5, "message"': 1,
    "assert f(3, 2) == 5, f'{1} message'": 1,
    'assert f(3, 2), "message"': 1,
    'f(3, 2) == 5 == 5': 1,
    '5 == f(3, 2) == 5': 1,
    '5 == 5 == f(4, 2)': 0,
    'f(3, 2) is 5': 1,
    '(y := f(3, 2)) == 5': 1,
    'assert (y := f(a=3, b=2)) == 5, y': 1,
    'f(x := 3, x - 1) == 5': 1,
    'f(3, 2) != 5': 0,
    'f(\n    3,\n    b=2,\n) == 5\nThat is the answer.': 1,
    # lambdas, globals, functions of the program
    'f((lambda x: x)(3), 2) == 5': 1,
    'f(g(2), 2) == 5': 1,
    'f(g(g(1)), b=g(1))': 1,
    'f(len(WORDS) + 1, 2) == 5': 1,
    'f(*map(len, WORDS), c=2) == 5': 1,
    'f(sum(len(w) for w in WORDS), 2)': 1,
    'f(WORDS)': 0,
    'f(UNKNOWN)': 0,
    'f(f(1, 1), 3)': 1,
    # frames
    '[ANSWER]\n```python\nassert f(3, b=2) == 5\n```\n[/ANSWER]': 1,
    '```\n[ANSWER]f(3, b=2) == 5[/ANSWER]\n```': 1,
    '```\n```python\nf(3, b=2)\n```\n```': 1,
    '[ANSWER][ANSWER]f(3, b=2)[/ANSWER][/ANSWER]': 1,
    '```Python3\nf(3, b=2)\n```': 1,
    # nothing
    '': 0,
    'I do not know': 0,
    'f(3': 0,
    'f(3)(2)': 0,
    '3); g = (2': 0,
}


@pytest.mark.parametrize('text,right', INPUTS.items(), ids=map(repr, INPUTS))
def test_inputs(text, right):
    "However the call is written, its arguments decide"
    row = {'code': SUM, 'entry_point': 'f', 'output': '5'}
    found = judge_input(text, row, None, run)
    assert found['correct'] == bool(right), found


OUTPUTS = {  # f(...) returns [5]
    '5 == f(3)': ('5', 1),
    '[5] == f(3)': ('[5]', 1),
    'f(3) == [5]': ('[5]', 1),
    'assert f(3) == [5], "message"': ('[5]', 1),
    'f(3) == x == [5]': ('[5]', 1),
    '[5] == f(3) == y': ('[5]', 1),
    'assert (y := f(3)) == [5]': ('[5]', 1),
    '(y := [5])': ('[5]', 1),
    'f(3, b=[2]) == [5]': ('[5]', 1),
    'f(*[3]) == [2 + 3]': ('[2 + 3]', 1),
    '[*range(5, 6)]': ('[*range(5, 6)]', 1),
    '(lambda x: [x])(5)': ('(lambda x: [x])(5)', 1),
    'f(\n    3\n) == [\n    5\n]\nsince it adds': ('[5]', 1),
    '[ANSWER]\n```\n```py\n[5]\n```\n```\n[/ANSWER]': ('[5]', 1),
    '[5] == f(4) == f(3)': ('[5]', 1),
    'f(3) == f(3)': ('f(3)', 0),
    'f(3)': ('f(3)', 0),
    '(x for x in [5])': ('(x for x in [5])', 0),
    '(5,)': ('(5,)', 0),
    '[5.0]': ('[5.0]', 0),
    '{5}': ('{5}', 0),
    '[6] == f(3)': ('[6]', 0),
    'f(3) != [5]': ('f(3) != [5]', 0),
    'assert': ('assert', 0),
}


@pytest.mark.parametrize('text', OUTPUTS, ids=map(repr, OUTPUTS))
def test_outputs(text):
    "The value is what the call is said to be equal to"
    found, right = OUTPUTS[text]
    assert answered_output(text) == found
    row = {'entry_point': 'f', 'output': '5' if text == '5 == f(3)' else '[5]'}
    verdict = judge_output(text, row, None, run)
    assert verdict['correct'] == bool(right), verdict


SPECIAL = {  # written answer, output of the row → is it right?
    ('nan', 'nan'): 1,
    ("float('nan')", 'nan'): 1,
    ('[inf, -inf]', '[inf, -inf]'): 1,
    ('1e999', 'inf'): 1,
    ('inf', '-inf'): 0,
    ('0.0', '-0.0'): 1,
    ('0.1 + 0.2', '0.30000000000000004'): 1,
    ('0.1 + 0.2', '0.3'): 0,
    ('set()', 'set()'): 1,
    ('{2, 1}', '{1, 2}'): 1,
    ('frozenset({1})', '{1}'): 0,
    ('{}', 'set()'): 0,
    ("{'b': 1, 'a': 2}", "{'a': 2, 'b': 1}"): 1,
    ('1 == 1', 'True'): 1,
    ('True', '1'): 0,
    ('undefined', 'undefined'): 0,
}


@pytest.mark.parametrize('text,output', SPECIAL, ids=map(repr, SPECIAL))
def test_values_without_a_literal(text, output):
    "By exact type and value; nan is nan, and sets have no order"
    verdict = judge_output(text, {'entry_point': 'f', 'output': output}, None, run)
    assert verdict['correct'] == bool(SPECIAL[text, output]), verdict


PROGRAMS = {  # program, answer, output → is it right?
    ('def f(g):\n    return g(2)', 'f(lambda x: x + 1)', '3'): 1,
    ('def f(g):\n    return g(2)', 'f(g=lambda x, y=1: x + y) == 3', '3'): 1,
    ('def f(g):\n    return g(2)', 'f(lambda x: [x for _ in (1, 2)][0])', '3'): 0,
    ('def f(g):\n    return g("b a")', 'f(lambda s: s.split())', "['b', 'a']"): 1,
    ('def f(g):\n    return g([2, 1])', 'f(sorted)', '[1, 2]'): 1,
    ('def f(g):\n    return g([2, 1])', 'sorted', '[1, 2]'): 1,
    ('def f(x):\n    return list(x)', 'f(x for x in (1, 2))', '[1, 2]'): 1,
    ('def f(x):\n    return list(x)', 'f(map(int, "12"))', '[1, 2]'): 1,
    ('def f(x):\n    return x', 'f([float("inf")] * 2)', '[inf, inf]'): 1,
    ('def f(x):\n    return x', 'f((y := [1e999 * 0]))', '[nan]'): 1,
    ('def f(x):\n    return x', 'f((y := {1, 2}) | set())', '{1, 2}'): 1,
    ('n = 0\ndef f(x):\n    global n\n    n += x\n    return n', 'f(3)', '3'): 1,
    ('n = 0\ndef f(x):\n    global n\n    n += x\n    return n', 'f(f(3))', '3'): 0,
    ('n = 0\ndef f(x):\n    global n\n    n += x\n    return n', 'f(f(3))', '6'): 1,
    ('n = 3\ndef f(x):\n    global n\n    n += x\n    return n', 'f(n)', '6'): 1,
    ('L = [1]\ndef f(x):\n    L.append(2)\n    return x is L', 'f(L)', 'True'): 1,
    ('L = [1]\ndef f(x):\n    L.append(2)\n    return x', 'f(x=L)', '[1, 2]'): 1,
    # nothing that reaches into the program is passed on
    ('def f(x):\n    return len(x)', "f(globals().update(len=lambda x: 3) or 'a')", '3'): 0,
    ('def f(x):\n    return len(x)', "f((lambda g: g.update(len=0))(globals()) or 'a')", '3'): 0,
    ('def f(x):\n    return len(x())', 'f(lambda: setattr(f, "x", 1))', '3'): 0,
    (
        'def f(x):\n    return [x(), len("a")]',
        "f(lambda: (i for i in 'a').gi_frame.f_builtins.update(len=lambda x: 3))",
        '[None, 3]',
    ): 0,
    ('def f(x):\n    return x() or len("a")', 'f(lambda: f.__globals__.update(len=sum))', '1'): 0,
}


@pytest.mark.parametrize('case', PROGRAMS, ids=map(repr, PROGRAMS))
def test_arguments_that_are_no_values(case):
    "Functions, generators and globals are passed as they stand if they only compute"
    code, text, output = case
    row = {'code': code, 'entry_point': 'f', 'output': output}
    verdict = judge_input(text, row, None, run)
    assert verdict['correct'] == bool(PROGRAMS[case]), verdict


@pytest.mark.parametrize(
    'source',
    [
        'x.__class__',
        'getattr(x, "y")',
        'type("A", (), {})',
        '__import__("os")',
        'lambda: globals()',
        '(lambda open: 1)(open("x"))',
        '[globals for globals in [1]]',
        'lambda: (yield)',
        'y := 2',
        'vars()',
        'x',
        'breakpoint()',
        '"{0.__class__}".__format__("")',
    ],
)
def test_what_is_not_passed_as_it_stands(source):
    assert not builds(source)
    assert not builds(source, 'import os\ndef f(y): pass')


def test_a_value_is_written_as_it_is():
    "Also where its `repr` is no source"
    inf, nan = float('inf'), float('nan')
    values = [inf, -inf, nan, complex(nan, inf), {(1,): {2}}, set(), frozenset([()]), '\ud800', b'']
    for value in [*values, values[:-3]]:
        assert same_value(eval(written(value)), value), value


def test_arguments_of_another_name():
    "The function that is asked about, and no other"
    assert answered_input('g(3) == 5', 'f') == 'g(3) == 5'
    assert answered_input('first(3, b=2) == 5', 'first') == '3, b=2'
    assert answered_output('5 == first(3)', 'first') == '5'
    assert value_of('first(3)', run)[0] == 'error'


@pytest.mark.parametrize('test', ['candidate(3) == 4', '4 == candidate(3)'])
def test_a_literal_stays_here(test):
    "Whichever side of an assertion it stands on, the program never meets it"
    row = {
        'prompt': 'def f(x):\n',
        'entry_point': 'f',
        'test': f'def check(candidate):\n    assert {test}',
    }
    task = Task('t', {}, '{prompt}', target='x')
    assert judge_tests('    return x + 1\n', row, task, run)['correct']
    cheat = '    import __main__; __main__._noted = [(0, 1, 1)]; return 0\n'
    assert not judge_tests(cheat, row, task, run)['correct']


@pytest.mark.parametrize(
    'grader,says', [('exact', 'exact'), ('output', 'output'), ('tests', 'prompt')]
)
def test_a_judge_is_looked_for_first(grader, says):
    "Before a model has written anything"
    rows = Dataset.from_dict({'text': ['a'], 'word': ['b']})
    task = Task('own', {'test': rows}, '{text}', target=' {word}', grader=grader)
    with pytest.raises(ValueError, match=says):
        check_scoring(task, ['test'])


def test_an_assertion_without_a_call():
    assert answered_output('assert == 5') == answered_output('assert ==5') == '5'
