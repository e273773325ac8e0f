"What spans all floors: how the project is put together"

import ast
import importlib
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

root = Path(__file__).resolve().parents[1]
notebooks = sorted(
    p
    for p in (root / 'nbs').rglob('*.ipynb')
    if not any(part[0] in '_.' for part in p.relative_to(root).parts)
)
NOT_A_MODULE = {
    '__init__.py',
    '__main__.py',
    '_modidx.py',
    '_moved.py',
}  # faces, and what no notebook exports
files = {
    '.'.join(p.relative_to(root / 'lopa').with_suffix('').parts): p
    for p in sorted((root / 'lopa').rglob('*.py'))
}
modules = {name: p for name, p in files.items() if p.name not in NOT_A_MODULE}
faces = {name.removesuffix('.__init__'): p for name, p in files.items() if p.parent.name != 'lopa'}
rooms = {name.split('.')[0] for name in modules if '.' in name}
each_module = pytest.mark.parametrize('name', [*modules, '__init__'])
cfg = ConfigParser()
cfg.read(root / 'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']


def source(name):
    return files[name].read_text(encoding='utf-8')


def number(path):
    "The number that a notebook carries"
    found = re.match(r'(\d+)_\w+\.ipynb$', path.name)
    assert found, f'{path.relative_to(root)}: expected a name such as 12_name.ipynb'
    return int(found[1])


def exports(path):
    "Modules that a notebook exports to"
    found = '\n'.join(code_cells(path))
    default = re.findall(r'^#\s*\|\s*default_exp\s+(\S+)', found, re.M)
    other = re.findall(r'^#\s*\|\s*exports?i?[ \t]+(\S+)', found, re.M)
    return default + other


def code_cells(path):
    "Source of the code cells"
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(c['source']) for c in cells if c['cell_type'] == 'code']


chapters = [p for p in notebooks if 'tutorials' not in p.parts and p.name != 'index.ipynb']
home = {name: path for path in chapters for name in exports(path)}


def python(path):
    "The code of a notebook as one program, without shell commands and magics"
    lines = '\n'.join(code_cells(path)).split('\n')
    return '\n'.join(re.sub(r'^(\s*)[%!]\w.*', r'\1pass', line) for line in lines)


def imported(tree, package=()):
    "Dotted names of everything imported, inside functions too; relative imports as `lopa.…`"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ['lopa', *package][: len(package) + 2 - node.level] if node.level else []
            base = '.'.join([*above, *filter(None, [node.module])])
            yield base
            yield from (f'{base}.{a.name}' for a in node.names)


def siblings(code, package=()):
    "lopa's own modules, and faces of rooms, that this code imports"
    names = set(imported(ast.parse(code), package))
    ours = {name.removeprefix('lopa.') for name in names if name.startswith('lopa.')}
    return ours & {*modules, *rooms}


def below(name):
    "The modules that an import of this name stands for: itself, or all of a room"
    return [name] if name in modules else [m for m in modules if m.startswith(f'{name}.')]


def test_siblings_finds_every_form():
    forms = ['from lopa.files import x', 'from lopa import files', 'import lopa.files as l']
    for line in forms:
        assert siblings(f'def f():\n    {line}') == {'files'}, line
    for line in ('from .files import x', 'from . import files'):
        assert siblings(line) == {'files'}, line
    for line in ('from ..files import x', 'from .. import files'):
        assert siblings(line, ('tasks',)) == {'files'}, line
    assert siblings('from .task import Task', ('tasks',)) <= {'tasks.task'}
    assert siblings('from lopa.tasks import Task') == {'tasks'}
    assert siblings('from lopa import PromptConfig\nimport torch') == set()


def test_every_number_is_used_once():
    used = sorted((number(path), path.name) for path in chapters)
    twice = [(a, b) for (n, a), (m, b) in zip(used, used[1:], strict=False) if n == m]
    assert not twice, f'the same number: {twice}'


def test_make_test_runs_every_notebook_once():
    makefile = (root / 'Makefile').read_text(encoding='utf-8')
    groups = re.findall(r"'(.+?)'", re.search(r'^GROUPS = (.+)$', makefile, re.M)[1])
    for path in notebooks:
        assert sum(bool(re.search(group, path.name)) for group in groups) == 1, path.name


def test_rooms_do_not_overlap():
    "The numbers of a room follow one another, with no chapter of another room between them"
    order = [path.parent.name for path in sorted(chapters, key=number)]
    visits = [a for a, b in zip(order, [*order[1:], None], strict=True) if a != b and a != 'nbs']
    assert len(visits) == len(set(visits)), visits


@pytest.mark.parametrize('name', modules)
def test_a_notebook_lies_where_its_module_lies(name):
    path = home[name].relative_to(root / 'nbs')
    assert (*path.parts[:-1], path.stem[3:]) == tuple(name.split('.'))
    assert f'nbs/{path.as_posix()}' in source(name)


@pytest.mark.parametrize('path', chapters, ids=lambda p: p.stem)
def test_nothing_is_used_before_it_is_told(path):
    "Imports go down, in what a notebook exports and in what it demonstrates"
    (here,) = exports(path)
    for name in siblings(python(path)):
        if name == here.split('.')[0]:
            continue  # the room's own face, as a user would import it
        for module in below(name):
            told = number(home[module])
            assert module == here or told < number(path), f'{path.name} uses lopa.{name} ({told})'


def arrows():
    "(a, b): something in a, a room or a module outside of rooms, imports something in b"
    found = set()
    for name in modules:
        package = tuple(name.split('.')[:-1])
        here = name.split('.')[0]
        found |= {(here, other.split('.')[0]) for other in siblings(source(name), package)}
    return {(a, b) for a, b in found if a != b}


def test_no_circle_between_rooms():
    graph = TopologicalSorter()
    for a, b in arrows():
        graph.add(a, b)
    graph.prepare()  # raises CycleError
    assert len(arrows()) < 133, 'as many arrows as the flat modules had'


@pytest.mark.parametrize('room', sorted(rooms))
def test_a_face_hides_no_module(room):
    "A function of the same name would hide a module from `import lopa.room.module`"
    face = importlib.import_module(f'lopa.{room}')
    for name in modules:
        if name.startswith(f'{room}.'):
            inner = name.split('.')[1]
            assert isinstance(getattr(face, inner, None), ModuleType), f'lopa.{name}'
    assert sorted(face.__all__) == sorted(set(face.__all__))
    for name in face.__all__:
        assert hasattr(face, name), f'lopa.{room}.{name}'


@pytest.mark.parametrize('room', ['records', 'sandbox', 'figures'])
def test_rooms_without_torch(room):
    code = f'import sys, lopa.{room}; print("torch" in sys.modules)'
    ran = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert ran.stdout.strip() == 'False', ran.stderr


def test_import_is_light():
    heavy = {'torch', 'transformers', 'numpy', 'matplotlib'}
    code = f'import sys, lopa; print(lopa.__version__, sorted({heavy} & set(sys.modules)))'
    ran = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == f'{cfg["version"]} []'


def test_public_names():
    import lopa

    assert {'PromptConfig', 'PromptModel', 'get_prompt_model'} <= set(dir(lopa))
    with pytest.raises(AttributeError, match='no_such_name'):
        _ = lopa.no_such_name
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
    assert 'torch.load(' not in code
    said = [line for line in code.splitlines() if 'trust_remote_code' in line]
    assert not [line for line in said if re.search(r"trust_remote_code'?\s*[=:]\s*True", line)]


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


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.relative_to(root / 'nbs').as_posix())
def test_one_notebook_one_module(path):
    found = exports(path)
    assert len(found) == (path in chapters), f'{path.name} exports to {found}'


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
    for path in committed('lopa', 'nbs', 'tests', 'tools', 'results', '.github'):
        if path.suffix in kinds and path.name not in written:
            where = path.relative_to(root)
            assert not address.search(own_words(path)), f'{where} spells out the public address'


def committed(*folders):
    "Files in the root, and in some folders with all that is in them"
    yield from (p for p in root.glob('*') if p.is_file())
    for folder in folders:
        yield from (p for p in (root / folder).rglob('*') if p.is_file())
