"""Lines and functions that one can read: what ruff's rules do not say"""

import ast
import json
import re
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
COLUMNS, CELL, FUNCTION = 100, 25, 40
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
paths = [
    root / 'setup.py',
    *(p for n in ('lopa', 'tests', 'tools') for p in (root / n).rglob('*.py')),
]
sources = sorted(paths)
notebooks = sorted(
    p for p in (root / 'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts
)


def named(path):
    return path.relative_to(root).as_posix()


each_source = pytest.mark.parametrize('path', sources, ids=named)
each_notebook = pytest.mark.parametrize('path', notebooks, ids=named)


def code_cells(path):
    """Id → code of a notebook's cells"""
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return {c['id']: ''.join(c['source']) for c in cells if c['cell_type'] == 'code'}


def lines_of_code(cell):
    """Lines of a cell; what tells nbdev what to do with it is none"""
    return [line for line in cell.strip().splitlines() if not line.startswith('#|')]


def too_wide(text):
    """Numbers of the lines over 100 columns; an address cannot be split"""
    lines = enumerate(text.splitlines(), 1)
    return [
        n for n, line in lines if len(line) > COLUMNS and not re.search(r'https?://\S{60}', line)
    ]


def length(function):
    """Lines of a function, its docstring not counted"""
    first = function.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(function) else 0
    return function.end_lineno - function.lineno + 1 - docstring


def too_long(code):
    """Names of the functions over 40 lines"""
    functions = (f for f in ast.walk(ast.parse(code)) if isinstance(f, FUNCTIONS))
    return [f.name for f in functions if length(f) > FUNCTION]


def test_the_measures_notice():
    body = '    x = 1\n' * FUNCTION
    assert too_long(f'def f():\n{body}') == ['f']
    assert too_long(f'def f():\n    """Not counted"""\n{body[10:]}') == []
    assert too_wide('x' * COLUMNS) == [] and too_wide(f'{"x" * 101}\n') == [1]
    assert too_wide(f'# https://{"x" * COLUMNS}') == []


@each_source
def test_lines_of_files(path):
    wide = too_wide(path.read_text(encoding='utf-8'))
    assert not wide, f'lines over {COLUMNS} columns'


@each_source
def test_functions_of_files(path):
    long = too_long(path.read_text(encoding='utf-8'))
    assert not long, f'functions over {FUNCTION} lines'


@each_notebook
def test_cells(path):
    cells = code_cells(path)
    wide = {name: lines for name, code in cells.items() if (lines := too_wide(code))}
    assert not wide, f'cells with lines over {COLUMNS} columns'
    long = [name for name, code in cells.items() if len(lines_of_code(code)) > CELL]
    assert not long, f'cells over {CELL} lines'
