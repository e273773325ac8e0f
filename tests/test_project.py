"What spans all floors: how the project is put together"

import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

root = Path(__file__).resolve().parents[1]
modules = {p.stem: p for p in sorted((root / 'lopa').glob('*.py')) if not p.stem.startswith('_')}
each_module = pytest.mark.parametrize('name', [*modules, '__init__'])
notebooks = sorted(
    p
    for p in (root / 'nbs').rglob('*.ipynb')
    if not any(s[0] in '_.' for s in p.relative_to(root).parts)
)
cfg = ConfigParser()
cfg.read(root / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']


def source(name):
    return (root / 'lopa' / f'{name}.py').read_text(encoding='utf-8')


def floor(name):
    "The number of the notebook that exports this module"
    found = re.search(r'nbs/(\d+)\w*_\w+\.ipynb', source(name))
    assert found, f'lopa/{name}.py names no notebook nbs/NN_name.ipynb'
    return int(found[1])


def imported(tree):
    "Dotted names of everything imported, inside functions too; relative imports as `lopa.…`"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, ['lopa' if node.level else '', node.module]))
            yield base
            yield from (f'{base}.{a.name}' for a in node.names)


def siblings(code):
    "Names of lopa's own modules that this code imports"
    parts = (name.split('.') for name in imported(ast.parse(code)))
    return {p[1] for p in parts if p[0] == 'lopa' and len(p) > 1 and p[1] in modules}


def test_siblings_finds_every_form(monkeypatch):
    monkeypatch.setitem(modules, 'low', None)
    for line in (
        'from lopa.low import x',
        'from .low import x',
        'from . import low',
        'from lopa import low',
        'import lopa.low as l',
    ):
        assert siblings(f'def f():\n    {line}') == {'low'}, line
    assert siblings('from lopa import PromptConfig\nimport torch') == set()


@pytest.mark.parametrize('name', modules)
def test_imports_go_down(name):
    for below in siblings(source(name)) - {name}:
        assert floor(below) < floor(name), (
            f'lopa.{name} (floor {floor(name)}) imports lopa.{below} (floor {floor(below)})'
        )


@pytest.mark.skipif('figures' not in modules, reason='no lopa.figures yet')
def test_figures_import_only_the_selection_of_rows():
    assert (
        siblings(source('figures')) == {'pictures', 'series'}
        and not siblings(source('series'))
        and not siblings(source('pictures'))
    )


def test_import_is_light():
    code = 'import sys, lopa; print(lopa.__version__, sorted({"torch", "transformers", "numpy", "matplotlib"} & set(sys.modules)))'
    ran = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == f'{cfg["version"]} []'


def test_public_names():
    import lopa

    assert {'PromptConfig', 'PromptModel', 'get_prompt_model'} <= set(dir(lopa))
    with pytest.raises(AttributeError, match='no_such_name'):
        lopa.no_such_name
    if 'prompts' in modules:
        assert lopa.PromptConfig.__module__ == 'lopa.prompts'


@each_module
def test_no_development_tool_in_the_library(name):
    roots = {n.split('.')[0] for n in imported(ast.parse(source(name)))}
    assert not roots & {'fastcore', 'nbdev', 'execnb'}


@each_module
def test_nothing_runs_code_from_files(name):
    "Models and prompts are read as data: no pickles, no code of others"
    code = source(name)
    assert 'pickle' not in {n.split('.')[0] for n in imported(ast.parse(code))}
    for danger in ('trust_remote_code', 'torch.load('):
        assert danger not in code, f'lopa/{name}.py: {danger}'


def test_metadata():
    ran = subprocess.run(
        [sys.executable, 'setup.py', '--name', '--version', '--license'],
        cwd=root,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split()[-3:] == [cfg['lib_name'], cfg['version'], 'Apache-2.0'], ran.stderr
    assert 'pkg_resources' not in (root / 'setup.py').read_text(encoding='utf-8')
    assert f'name="{cfg["lib_name"]}"' in (root / 'pyproject.toml').read_text(encoding='utf-8')


def test_requirements_are_floors_and_locked():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    locked = {}
    for line in (root / 'constraints.txt').read_text(encoding='utf-8').splitlines():
        if line and line[0] != '#':
            locked.setdefault(canonicalize_name((r := Requirement(line)).name), []).append(r)
    for text in cfg['requirements'].split():
        r = Requirement(text)
        assert [s.operator for s in r.specifier] == ['>='], (
            f'{text}: the library asks for floors, not pins'
        )
    for text in cfg['requirements'].split() + cfg['dev_requirements'].split():
        r = Requirement(text)
        pins = [next(iter(p.specifier)).version for p in locked.get(canonicalize_name(r.name), [])]
        assert pins and all(r.specifier.contains(p) for p in pins), (
            f'{text}: constraints.txt has {pins}; run `make lock`'
        )


def exports(path):
    "Modules that a notebook exports to"
    cells = [
        ''.join(c['source'])
        for c in json.loads(path.read_text(encoding='utf-8'))['cells']
        if c['cell_type'] == 'code'
    ]
    default = re.findall(r'^#\s*\|\s*default_exp\s+(\S+)', '\n'.join(cells), re.M)
    other = re.findall(r'^#\s*\|\s*exports?i?[ \t]+(\S+)', '\n'.join(cells), re.M)
    return default + other


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.relative_to(root / 'nbs').as_posix())
def test_one_notebook_one_module(path):
    found = exports(path)
    if path.parent != root / 'nbs' or path.name == 'index.ipynb':
        assert not found
    else:
        assert len(found) == 1, f'{path.name} exports to {found}'


def test_no_module_has_two_notebooks():
    found = [name for path in notebooks for name in exports(path)]
    assert len(found) == len(set(found)), found


def own_words(path):
    "The text of a file, without the Colab cells that tools/colab.py writes from settings.ini"
    text = path.read_text(encoding='utf-8')
    if path.suffix != '.ipynb':
        return text
    return '\n'.join(
        ''.join(c['source'])
        for c in json.loads(text)['cells']
        if not c.get('id', '').startswith('colab-')
    )


def test_public_address_stands_in_one_place():
    "settings.ini; README.md, _modidx.py and the Colab cells of tutorials are written from it"
    address = re.compile(
        rf'github(\.com)?/{re.escape(cfg["user"])}\b|\b{re.escape(cfg["user"])}\.github\.io', re.I
    )
    written = {'README.md', 'settings.ini', '_modidx.py'}
    kinds = {'.py', '.ipynb', '.md', '.txt', '.toml', '.yml', '.ini', '.json'}
    for folder in (
        root,
        *(root / n for n in ('lopa', 'nbs', 'tests', 'tools', 'results', '.github')),
    ):
        for path in folder.glob('*') if folder == root else folder.rglob('*'):
            if path.suffix in kinds and path.name not in written and path.is_file():
                assert not address.search(own_words(path)), (
                    f'{path.relative_to(root)} spells out the public address'
                )
