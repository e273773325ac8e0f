"""How many small changes of the method's code do the tests notice? mutmut makes them, on a copy

    make mutants                         # every module of the method
    make mutants ARGS='layout gating'    # some of them
    make mutants ARGS=--only-tests       # only the tests that notice, to see how long they take

The copy lies in build/mutants; the checkout is never touched. mutmut mutates functions, and no
decorated ones: in the copy a decorator is applied one line below its function. Docstrings,
comments, annotations and raised errors are left as they are; other strings are mutated.
`cd build/mutants && ../../.venv/bin/mutmut show NAME` prints a mutant that was not noticed.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from lopa.files import mark, remove_folder

root = Path(__file__).resolve().parents[1]
MODULES = [
    'factorize',
    'gating',
    'layout',
    'logits',
    'prompts',
    'encoders',
    'recompute',
    'adapter',
    'model',
]
TESTS = [  # fast ones: a mutant that nobody notices has to pass all that call its function
    'tests/test_method_laws.py',
    'tests/test_families.py',
    'tests/test_adapter.py',
]
NOTICED = 'killed', 'timeout', 'segfault'
KEPT = {'staticmethod', 'classmethod'}  # decorators that mutmut can handle
SETTINGS = """
[tool.mutmut]
source_paths = ["lopa"]
only_mutate = {modules}
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:xdist"]
pytest_add_cli_args_test_selection = {tests}
do_not_mutate_patterns = ['^\\s*raise ']
use_git_change_detection = false
timeout_constant = 20.0
"""

# mutmut 3.8 asks for a test's name in the way of pytest 9.1 and older
NAMED = """

def pytest_itemcollected(item):
    if not hasattr(item, '_nodeid'):
        item._nodeid = item.nodeid
"""


def applied_below(node):
    "The statements that do what the decorators of a function do; the decorators are taken off"
    names = [ast.unparse(d) for d in node.decorator_list]
    if set(names) <= KEPT:
        return []
    node.decorator_list = []
    return [ast.parse(f'{node.name} = {name}({node.name})').body[0] for name in reversed(names)]


def plain(source):
    "The same program with one statement per line, no comments, and no decorated functions"
    tree = ast.parse(source)
    for parent in [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef))]:
        body = []
        for node in parent.body:
            body.append(node)
            if isinstance(node, ast.FunctionDef):
                body += applied_below(node)
        parent.body = body
    return ast.unparse(tree) + '\n'


def make_copy(folder, modules):
    "The library and its tests in a folder of their own, with mutmut's settings"
    remove_folder(folder)
    mark(folder)
    no_junk = shutil.ignore_patterns('__pycache__', '_proc')
    for name in 'lopa', 'tests':
        shutil.copytree(root / name, folder / name, ignore=no_junk)
    paths = [f'lopa/{name}.py' for name in modules]
    for path in paths:
        (folder / path).write_text(plain((root / path).read_text('utf-8')), 'utf-8')
    with (folder / 'tests' / 'conftest.py').open('a', encoding='utf-8') as conftest:
        conftest.write(NAMED)
    settings = SETTINGS.format(modules=json.dumps(paths), tests=json.dumps(TESTS))
    (folder / 'pyproject.toml').write_text(settings, 'utf-8')


def environment():
    "One thread per test run: several run at the same time"
    new = {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'PYTHONPATH': ''}
    return {k: v for k, v in os.environ.items() if k != 'LOPA_DATA'} | new


def outcomes(folder, module):
    "Mutant → what became of it"
    from mutmut.stats import status_by_exit_code

    path = folder / 'mutants' / 'lopa' / f'{module}.py.meta'
    codes = json.loads(path.read_text('utf-8'))['exit_code_by_key']
    return {name: status_by_exit_code[code] for name, code in codes.items()}


def report(folder, modules):
    "Print the share that was noticed, per module and in all, and what was not"
    found = {module: outcomes(folder, module) for module in modules}
    noticed = total = 0
    for module, mutants in found.items():
        count = Counter(mutants.values())
        seen = sum(count[what] for what in NOTICED)
        noticed += seen
        total += len(mutants)
        print(f'{module:10} {seen:4} of {len(mutants):4} noticed  {dict(count)}')
    for mutants in found.values():
        for name, what in mutants.items():
            if what not in NOTICED:
                print(f'  {what}: {name}')
    print(f'{noticed} of {total} mutants noticed: {100 * noticed / max(total, 1):.1f} %')


def arguments():
    "What to mutate, and how"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('modules', nargs='*', help=f'default: {", ".join(MODULES)}')
    parser.add_argument('--only-tests', action='store_true', help='run the tests, mutate nothing')
    parser.add_argument('--workers', type=int, default=os.cpu_count(), help='mutants at a time')
    args = parser.parse_args()
    if wrong := set(args.modules) - set(MODULES):
        parser.error(f'received {sorted(wrong)[0]!r}, expected some of {", ".join(MODULES)}')
    return args


def main():
    args = arguments()
    folder, modules = root / 'build' / 'mutants', args.modules or MODULES
    make_copy(folder, modules)
    call = ['pytest', '-q', *TESTS]
    if not args.only_tests:
        call = ['mutmut', 'run', '--max-children', str(args.workers)]
    ran = subprocess.run([sys.executable, '-m', *call], cwd=folder, env=environment())
    if ran.returncode:
        sys.exit(f'{call[0]} ended with {ran.returncode}; the copy is in {folder}.')
    if not args.only_tests:
        report(folder, modules)


if __name__ == '__main__':
    main()
