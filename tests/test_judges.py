"Forty ways to write an answer, right and wrong: each is judged by its value alone"

import ast
import os
from functools import partial
from unittest.mock import Mock

import pytest
from damage import damage
from datasets import Dataset
from helpers import one_sentence

from lopa.evaluate import evaluate, judging, read_predictions, rescore, scoring
from lopa.evaluate.judges import (
    answered_input,
    answered_output,
    builds,
    judge_all,
    judge_input,
    judge_output,
    judge_tests,
    value_of,
    written,
)
from lopa.evaluate.predictions import (
    NotJudged,
    check_scoring,
    score_lines,
    score_texts,
    verdict_columns,
    write_predictions,
)
from lopa.evaluate.scoring import check_how
from lopa.sandbox import Outcome, run_program, same_value, why_not
from lopa.tasks import Task

run = partial(run_program, allow_weak_isolation=True)
brief = partial(run_program, timeout=2, allow_weak_isolation=True)
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
    'f(*[3]) == [2 + 3]': ('[2 + 3]', 'executed'),
    '[*range(5, 6)]': ('[*range(5, 6)]', 'executed'),
    '(lambda x: [x])(5)': ('(lambda x: [x])(5)', 'executed'),
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
    assert verdict['correct'] is (right == 1), verdict
    assert bool(verdict['executed']) is (right == 'executed'), verdict


SPECIAL = {  # written answer, output of the row → is it right?
    ('nan', 'nan'): 1,
    ("float('nan')", 'nan'): 1,
    ('[inf, -inf]', '[inf, -inf]'): 1,
    ('1e999', 'inf'): 1,
    ('inf', '-inf'): 0,
    ('0.0', '-0.0'): 1,
    ('0.1 + 0.2', '0.30000000000000004'): 0,
    ('0.1 + 0.2', '0.3'): 0,
    ('set()', 'set()'): 1,
    ('{2, 1}', '{1, 2}'): 1,
    ('frozenset({1})', '{1}'): 0,
    ('{}', 'set()'): 0,
    ("{'b': 1, 'a': 2}", "{'a': 2, 'b': 1}"): 1,
    ('1 == 1', 'True'): 0,
    ("float('-inf')", '-inf'): 1,
    ('frozenset([2, 1])', 'frozenset({1, 2})'): 1,
    ('frozenset()', 'frozenset()'): 1,
    ('-0.0', '0.0'): 1,
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
    cheat = '    import __main__; __main__._noted = [(0, 1)]; return 0\n'
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


SEARCH = """
    import sys, gc, os, inspect, linecache, __main__
    seen = []
    look = lambda x: seen.append(x if isinstance(x, (str, bytes)) else repr(x))
    frame = sys._getframe()
    while frame:
        look(dict(frame.f_globals)); look(dict(frame.f_locals))
        look(frame.f_code.co_consts); look([c.co_consts for c in frame.f_code.co_consts
                                            if hasattr(c, 'co_consts')])
        frame = frame.f_back
    for part in gc.get_objects():
        if isinstance(part, (dict, list, tuple)) and len(part) < 9999:
            for one in list(part.values() if isinstance(part, dict) else part):
                if isinstance(one, (str, bytes, int, float)): look(one)
        elif hasattr(part, '__code__'): look(part.__code__.co_consts); look(part.__doc__)
    look(sys.argv); look(getattr(sys, 'orig_argv', '')); look(dict(os.environ))
    for name in '/proc/self/cmdline', '/proc/self/environ', '/proc/self/fd/0', '<program>':
        try: look(open(name, 'rb').read())
        except OSError: pass
    for fd in range(3, 64):
        try: os.set_blocking(fd, False); look(os.pread(fd, 1 << 20, 0))
        except OSError: pass
    try: look(inspect.getsource(f))
    except OSError: pass
    look(linecache.cache); look(f.__doc__); look(__main__.__doc__); look(vars(__main__))
    wanted = ''.join(map(str, [47114, 71147]))
    for text in seen:
        text = text.decode('latin-1') if isinstance(text, bytes) else text
        if wanted in text: return int(wanted)
    return 0
"""
HIDDEN = {  # prompt, what is asserted
    'docstring': (
        'def f(x):\n    """\n    >>> f(3)\n    4711471147\n    """\n',
        'candidate(3) == 4711471147',
    ),
    'comment': ('# f(3) is 4711471147\ndef f(x):  # 4711471147\n', '4711471147 == candidate(3)'),
    'module': (
        '"""Write f: f(3) == 4711471147"""\ndef f(x):\n',
        'candidate(3) == 4711471147  # not 4711471148',
    ),
    'helper': (
        'def g():\n    "4711471147"\ndef f(x):\n    b"4711471147"; "4711471147"\n',
        'candidate(3) == 4711471147',
    ),
    'class': (
        'class A:\n    """4711471147"""\ndef f(x):\n    "4711471147"\n',
        'candidate(3) == 4711471147',
    ),
    'tolerance': ('def f(x):\n', 'abs(candidate(3) - 4711471147) < 1e-6'),
    'computed': (
        'def f(x):\n    """4711471147"""\n',
        'candidate(3) == 4711471146 + len([4711471147])',
    ),
    'two': ('def f(x):\n', 'candidate(3) in (4711471147, 4711471147.0)'),
    'loop': ('def f(x):\n', 'all(candidate(x) == y for x, y in [(3, 4711471147)])'),
    'type': ('def f(x):\n', 'isinstance(candidate(3), int) and candidate(3) == 4711471147'),
    'set': ('def f(x):\n', '{candidate(3)} == {4711471147}'),
    'test explains': ('def f(x):\n', '1\n    "4711471147"\n    assert candidate(3) == 4711471147'),
}


def problem(prompt, *asserted):
    body = ''.join(f'    assert {a}\n' for a in asserted)
    return {'prompt': prompt, 'entry_point': 'f', 'test': f'def check(candidate):\n{body}'}


WHOLE = Task('t', {}, '{prompt}', target='x', grader='tests')


@pytest.mark.parametrize('case', HIDDEN)
def test_what_is_right_is_not_in_the_process(case):
    "Whoever looks everywhere finds nothing; whoever computes it is right"
    row = problem(*HIDDEN[case])
    assert judge_tests('    return 4711471000 + 144 + x\n', row, WHOLE, run)['correct']
    found = judge_tests(SEARCH, row, WHOLE, run)
    assert found['status'] == 'ok', run(f'def f(x):{SEARCH}\nf(3)').stderr
    assert not found['correct']


def test_the_search_finds_what_is_there():
    assert run(f'secret = 4711471147\ndef f(x):{SEARCH}\nf(3)').value == 4711471147


def test_an_answer_cannot_go_on_where_a_docstring_ends():
    row = problem('def f(x):\n    """f(3) == 4711471147"""', 'candidate(3) == 4711471147')
    for rest in (
        ' @ Keeper()\n    return int(kept[0][-10:])',
        '.__len__()\n    return int(f.__doc__[-10:])',
    ):
        text = f'{rest}\nkept = []\nclass Keeper:\n    def __rmatmul__(self, x): kept.append(x)\n'
        assert not judge_tests(text, row, WHOLE, run)['correct'], text
    assert judge_tests('\n    return 4711471000 + 147', row, WHOLE, run)['correct']


OPEN = 'def f(x):\n    """\n    >>> f(3)\n    4711471147\n'  # a docstring that does not end
KEEPS = '\nkept = []\nclass Keeper:\n    def __rmatmul__(self, x): kept.append(x)\n'
READS = '\n    texts = [x for x in f.__code__.co_consts if isinstance(x, str) and ">>>" in x]'
READS += '\n    return int(texts[0].split()[2])\n'


@pytest.mark.parametrize(
    'rest',
    [
        '    """ @ Keeper()\n    return int(kept[0].split()[-1])' + KEEPS,
        '    """.__len__()' + READS,
        '    """ f"{x}"' + READS,
        '    """[x]' + READS,
        '    """, x' + READS,
        '    """ if x else 0' + READS,
        '    """ and 0' + READS,
    ],
)
def test_an_open_docstring_can_only_be_ended(rest):
    row = problem(OPEN, 'candidate(3) == 4711471147')
    assert not judge_tests(rest, row, WHOLE, run)['correct']
    for honest in '    """\n', '    And so on.\n    """  # done\n', '""" "More."\n':
        text = f'{honest}    return 4711471144 + x\n'
        assert judge_tests(text, row, WHOLE, run)['correct'], honest


def test_a_docstring_may_stand_before_imports_from_the_future():
    row = problem('"""f."""\nfrom __future__ import annotations\ndef f(x):\n', 'candidate(3) == 4')
    assert judge_tests('    return x + 1\n', row, WHOLE, run)['correct']


HOSTILE = {  # bodies of `f`, which should return [3, 5] for 3
    'list that is equal to all': 'return type("L", (list,), {"__eq__": lambda *a: True})()',
    'dict that is equal to all': 'return type("D", (dict,), {"__eq__": lambda *a: True})()',
    'text that is equal to all': 'return type("S", (str,), {"__eq__": lambda *a: True})("[3, 5]")',
    'patched builtins': 'import builtins; builtins.list = builtins.isinstance = print; return []',
    'patched type': 'import builtins; builtins.type = lambda *a: list; return ()',
    'exit 0': 'import os; os._exit(0)',
    'exit by signal': 'import os; os.kill(os.getpid(), 9)',
    'exit at the end': 'import atexit, os; atexit.register(os._exit, 0); return 0',
    'printed': 'print([3, 5]); print([(0, [3, 5])])',
    'generator': 'yield 3; yield 5',
    'infinite generator': 'import itertools; return itertools.count()',
    'deep': 'a = []\n    for _ in range(999): a = [a]\n    return a',
    'large': 'return 10 ** 99999',
    'larger': 'return 1 << (1 << 25)',
    'nan': 'return [float("nan")] * 2',
    'itself': 'a = []; a.append(a); return a',
    'surrogate': r'return "\ud800"',
    'lambda': 'return lambda: [3, 5]',
    'raises': 'raise type("E", (Exception,), {"__str__": lambda s: "[3, 5]"})',
    'raises what is none': 'raise KeyboardInterrupt',
    'tuple': 'return 3, 5',
    'texts': 'return ["3", "5"]',
    'set': 'return {3, 5}',
    'test redefined': 'import __main__; __main__._check = __main__.check = print; return 0',
    'forged pipe': 'import os\n    for i in range(3, 64):\n        try: os.write(i, b"x" * 99)\n'
    '        except OSError: pass',
}


@pytest.mark.parametrize('asserted', ['candidate(3) == [3, 5]', 'candidate(3) == [3] + [5]'])
@pytest.mark.parametrize('body', HOSTILE.values(), ids=HOSTILE)
def test_hostile_bodies(body, asserted):
    "Split or apart: nothing but the value counts"
    found = judge_tests(f'    {body}\n', problem('def f(x):\n', asserted), WHOLE, brief)
    assert found['correct'] is False, found


def test_right_bodies_apart():
    "What a test may do to a candidate: calls of calls, in-place changes, exceptions, iterators"
    cases = {
        'x = candidate([2, 1]); assert x == sorted([1, 2])': 'return sorted(x)',
        'x = [2, 1]; candidate(x); assert x == sorted(x)': 'x.sort()',
        'assert candidate(candidate([1])) == [1] * 4': 'return x + x',
        'assert next(candidate([1])) == len([0])': 'return iter(x)',
        'assert all(candidate([i]) == i for i in range(50))': 'return x[0]',
        'assert f"{candidate([1])}" == str([1, 1])': 'return x * 2',
        'assert math.isclose(candidate([1]), 1/3)': 'return x[0] / 3',
        'assert {**candidate([1])} == dict(a=1)': 'return {"a": x[0]}',
    }
    for test, body in cases.items():
        row = problem('def f(x):\n')
        row['test'] = f'import math\ndef check(candidate):\n    {test}\n'
        assert judge_tests(f'    {body}\n', row, WHOLE, run)['correct'], test
        assert not judge_tests('    return None\n', row, WHOLE, run)['correct'], test
    row['test'] = (
        'def check(f):\n    try: f(0)\n    except ZeroDivisionError: return\n    assert 1 == 2\n'
    )
    assert judge_tests('    return 1 / x\n', row, WHOLE, run)['correct']
    assert not judge_tests('    return 1\n', row, WHOLE, run)['correct']


DEPENDS = {  # what a test asks for next depends on an answer
    'if': 'y = candidate(1)\n    if y > 3: assert candidate(2) == 10 + 0\n'
    '    else: assert candidate(5) == 10 + 0\n',
    'else': 'y = candidate(1)\n    if y < 3: assert candidate(5) == 10 + 0\n'
    '    else: assert candidate(2) == 10 + 0\n',
    'argument': 'assert candidate(2 if candidate(1) > 3 else 5) == 10 + 0\n',
    'loop': 'x = 1\n    for _ in range(9):\n        if candidate(x) > 3: x += 100\n'
    '        else: x += 4\n    assert candidate(x) == 610 + 0\n',
}


@pytest.mark.parametrize('test', DEPENDS.values(), ids=DEPENDS)
def test_an_answer_belongs_to_one_question(test):
    "2 * x is right; who says 10 for 2 only is not"
    row = problem('def f(x):\n') | {'test': f'def check(candidate):\n    {test}'}
    row['test'] = row['test'].replace('610', str(2 * (5 + 8 * 100)))
    assert judge_tests('    return x * 2\n', row, WHOLE, run)['correct']
    assert not judge_tests('    return {1: 2, 2: 10}.get(x, 77)\n', row, WHOLE, run)['correct']


def test_a_test_may_ask_more_than_a_hundred_times():
    "One after another, each with the last answer"
    programs = []

    def cheap(source):  # the same, without a process
        programs.append(source)
        space = {}
        body = ast.parse(source)
        last = ast.Expression(body.body.pop().value)
        exec(compile(body, 'test', 'exec'), space)
        return Outcome('ok', eval(compile(last, 'test', 'eval'), space))

    row = problem('def f(x):\n')
    row['test'] = (
        'def check(f):\n    x = 0\n    for _ in range(105): x = f(x)\n    assert x == 1 + 104'
    )
    assert judge_tests('    return x + 1\n', row, WHOLE, cheap)['correct']
    assert len(programs) > 200
    assert not judge_tests('    return min(x + 1, 104)\n', row, WHOLE, cheap)['correct']


@pytest.mark.parametrize(
    'test', ['def check(candidate:', 'x = 3', 'def check(c):\n  assert d(3) + 1']
)
def test_a_test_that_is_none(test):
    "The row is named"
    row = problem('def f(x):\n') | {'test': test, 'task_id': 'Own/7'}
    if 'd(3)' in test:
        assert not judge_tests('    return 1', row, WHOLE, run)['correct']
        return
    with pytest.raises(ValueError, match='Own/7'):
        judge_tests('    return 1', row, WHOLE, run)


def test_the_function_is_copied():
    "An answer that executes the function is right for the authors, and reported apart"
    code = 'def f(n):\n    return [n] * 2'
    row = {'code': code, 'entry_point': 'f', 'output': '[3, 3]'}
    for copy in (
        '(lambda n: [n] * 2)(3)',
        f'(exec({code!r}, g := {{}}), g["f"](3))[1]',
        'f(3) == (lambda: [3, 3])()',
        '[3 for _ in "ab"]',
        '[*(3, 3)]',
        'list((3, 3))',
        '[3] + [3]',
        'eval("[3, 3]")',
    ):
        found = judge_output(copy, row, None, run)
        assert (found['correct'], found['executed']) == (False, True), found
    lines = [{'correct': [False], 'executed': [True]}, {'correct': [True], 'executed': [None]}]
    assert score_texts(lines)['accuracy'] == score_texts(lines)['executed'] == 0.5
    assert 'executed' not in score_texts([{'correct': [True]}])


EXPLOITS = {  # `f(x)` returns `TABLE[x]`, which is 1 for 'a'; wanted is 5
    "f(TABLE.update(a=5) or 'a')": 0,
    "f(TABLE.setdefault('b', 5) and 'b')": 0,
    "f([t.update(a=5) for t in [TABLE]] and 'a')": 0,
    "f((lambda TABLE: 1)(0) and TABLE.update(a=5) or 'a')": 0,
    "f((f := lambda x: 5) and 'a')": 0,
    "f((TABLE := {'a': 5}) and 'a')": 0,
    'f(type("X", (), {"__eq__": lambda *a: True, "__hash__": lambda s: hash("a")})())': 0,
    "f(exec('TABLE.update(a=5)', globals()) or 'a')": 0,
    "f(__import__('builtins').__dict__.update(print=5) or 'a')": 0,
    'f(exit(0))': 0,
    'f(__import__("os")._exit(0))': 0,
    'f((lambda: (yield))())': 0,
    'f(10 ** 99999)': 0,
    'f("a" if TABLE else "b")': 0,
    'f(0x1' + 'f' * 5000 + ')': 0,
    "f([0 for TABLE['a'] in [5]] and 'a')": 0,
    "f(list(0 for [TABLE['a'], *_] in [[5]]) and 'a')": 0,
    "f((lambda t: [0 for t['a'] in [5]])(TABLE) and 'a')": 0,
    "f(list(map(lambda t: [0 for t['a'] in [5]], [TABLE])) and 'a')": 0,
    "f('c')": 1,
    'f(min(["d", "c"]))': 1,
    'f(sorted(TABLE, key=lambda k: TABLE[k])[-1])': 1,
}


@pytest.mark.parametrize('text', EXPLOITS)
def test_inputs_that_reach_into_the_program(text):
    code = "TABLE = {'a': 1, 'c': 5}\ndef f(x):\n    return TABLE[x]"
    row = {'code': code, 'entry_point': 'f', 'output': '5'}
    found = judge_input(text, row, None, brief)
    assert found['correct'] == bool(EXPLOITS[text]), found


def test_large_numbers_are_carried_over():
    "Python writes no more than 4,300 digits"
    row = {'code': 'def f(x):\n    return x % 10', 'entry_point': 'f', 'output': '7'}
    assert judge_input('f((y := 10 ** 5000 + 7))', row, None, run)['correct']
    row = {'code': '', 'entry_point': 'f', 'output': hex(10**5000)}
    assert judge_output(hex(10**5000), row, None, run)['correct']


# --- what could not be run, and what was not judged yet ---


def busy_for(times):
    "Runs programs, but not at first"
    left = [times]

    def sometimes(source):
        left[0] -= 1
        return Outcome('unavailable') if left[0] >= 0 else run(source)

    return sometimes


OUT = Task('t', {}, '{code}', target=' {output}', grader='output')
ROWS = [{'code': 'c', 'entry_point': 'f', 'output': str(i)} for i in range(3)]
TEXTS = [
    ['int("0")'],
    [
        '[',
    ],
    ['2'],
]


def test_what_could_not_be_run_is_tried_again_alone():
    texts = [['0 + 0'], ['1 + 0'], ['2']]
    calm = judge_all(OUT, texts, ROWS, run, progress=False)
    found = judge_all(OUT, texts, ROWS, busy_for(3), progress=False, pauses=(0, 0, 0))
    assert found == calm
    never = judge_all(OUT, texts, ROWS, busy_for(99), progress=False, pauses=(0, 0))
    assert [v['correct'] for (v,) in never] == [None, None, True]
    lines = [
        {'texts': some, 'row': row, 'right': ''} | verdict_columns(verdicts)
        for some, row, verdicts in zip(texts, ROWS, never, strict=True)
    ]
    with pytest.raises(NotJudged) as e:
        score_lines(judging(OUT, 'test'), lines)
    one_sentence(e.value, '2 of 3 texts', 'unavailable', 'lopa score')


@pytest.fixture
def written_texts(monkeypatch):
    "An evaluation without a model"
    rows = Dataset.from_list(ROWS)
    task = Task('t', {'test': rows}, '{code}', target=' {output}', grader='output')
    monkeypatch.setattr(scoring, 'check_asked', lambda *a: None)
    monkeypatch.setattr(scoring, 'prepare', lambda *a: ({'test': rows}, None))
    monkeypatch.setattr(scoring, 'generate_texts', lambda *a, **k: [['0'], ['0 + 1'], ['2']])
    return task


def test_texts_are_on_disk_before_they_are_judged(written_texts, monkeypatch, tmp_path):
    "Killed in between: judged from the file"
    path = tmp_path / 'p.jsonl'
    how = dict(predictions=path, allow_weak_isolation=True, progress=False)
    with monkeypatch.context() as patch:
        patch.setattr(scoring, 'judge_all', Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            evaluate(None, written_texts, **how)
    assert [line['texts'] for line in read_predictions(path)[1]] == [['0'], ['0 + 1'], ['2']]
    with pytest.raises(NotJudged) as e:
        rescore(path)
    one_sentence(e.value, path, '3 of 3 texts', f'lopa score {path} --judge')
    now, saved = rescore(path, judge=True, run=run, progress=False)
    assert now == saved == rescore(path)[0] == evaluate(None, written_texts, **how)[0]
    assert (now['accuracy'], now['executed']) == (pytest.approx(2 / 3), pytest.approx(1 / 3))


def test_a_place_that_cannot_be_written_is_refused_first(written_texts, monkeypatch, tmp_path):
    monkeypatch.setattr(scoring, 'generate_texts', Mock(side_effect=AssertionError))
    (tmp_path / 'notes.txt').write_text('mine')
    os.mkfifo(tmp_path / 'fifo')
    for wrong in (
        tmp_path,
        tmp_path / 'notes.txt',
        tmp_path / 'notes.txt' / 'p',
        tmp_path / 'fifo',
    ):
        with pytest.raises(OSError) as e:
            evaluate(None, written_texts, predictions=wrong, allow_weak_isolation=True)
        one_sentence(e.value, wrong)
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


CLASSES = Task('c', {}, '{a}', (' yes', ' no'))
MATCH = Task('m', {}, '{a}', target=' {b}')
WRONG = [
    (CLASSES, {'samples': 3}),
    (CLASSES, {'samples': 3, 'temperature': 1.0}),
    (CLASSES, {'temperature': 0.5}),
    (CLASSES, {'top_p': 0.5}),
    (CLASSES, {'seed': 1}),
    (CLASSES, {'timeout': 3}),
    (CLASSES, {'workers': 3}),
    (MATCH, {'timeout': 3}),
    (MATCH, {'top_p': 0.5}),
    (MATCH, {'seed': 1}),
    (MATCH, {'samples': 2}),
    *(
        (OUT, wrong)
        for wrong in (
            {'batch_size': 0},
            {'batch_size': -1},
            {'batch_size': 2.0},
            {'batch_size': True},
            {'workers': 0},
            {'workers': '2'},
            {'timeout': 0},
            {'timeout': -1},
            {'timeout': float('nan')},
            {'timeout': float('inf')},
            {'samples': 0},
            {'samples': 1.5, 'temperature': 1},
            {'temperature': -1},
            {'temperature': float('nan')},
            {'temperature': '1'},
            {'top_p': 0, 'temperature': 1},
            {'top_p': 1.5, 'temperature': 1},
            {'seed': -1, 'temperature': 1},
            {'seed': 2**32, 'temperature': 1},
        )
    ),
]


@pytest.mark.parametrize('task, how', WRONG, ids=lambda x: str(x)[:60])
def test_settings_that_do_nothing_are_refused(task, how):
    with pytest.raises(ValueError) as e:
        check_how(task, **how)
    one_sentence(e.value, 'received')
    assert any(name in str(e.value) for name in how)


def test_damaged_predictions_are_refused_or_right(written_texts, tmp_path):
    "One sentence, or the score of what was written; LOPA_FUZZ=500 for more"
    path = tmp_path / 'p.jsonl'
    cheap = lambda source: Outcome('ok', 1)
    score, lines = evaluate(
        None, written_texts, predictions=path, allow_weak_isolation=True, progress=False
    )
    texts = path.read_bytes()
    waiting = [line | {'correct': [None], 'status': ['not judged']} for line in lines]
    write_predictions(path, judging(written_texts, 'test'), waiting)
    for whole in texts, path.read_bytes():
        for seed in range(int(os.environ.get('LOPA_FUZZ', 60))):
            path.write_bytes(damaged := damage(whole, seed))
            try:
                now, _ = rescore(path, judge=True, run=cheap, progress=False)
            except (ValueError, OSError) as e:
                one_sentence(e, path)
            else:
                assert now == score or damaged == whole, seed
