"""Is everything that is derived from something else in step with it?

    python -m tools.check      # prints one line per check, and changes nothing

1. Each notebook's export cells stand in its module.
2. Each module holds only what its notebook exports: a hand edit would be lost at the next export.
3. README.md is what nbs/index.ipynb says.
4. Tutorials carry the Colab cells that settings.ini asks for.
5. Notebooks are clean: what nbdev-clean leaves, valid, no saved errors, no widget state.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from difflib import SequenceMatcher
from pathlib import Path

import nbformat

from tools import colab, readme
from tools.execute import notebooks, widget

root = Path(__file__).resolve().parents[1]
no_junk = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')


def complaints(copy, *command):
    "Run a Python command; what it had to complain about is a failure"
    env = {**os.environ, 'XDG_CONFIG_HOME': str(copy / '.config')}
    ran = subprocess.run(
        [sys.executable, *command], cwd=root, env=env, capture_output=True, text=True
    )
    said = [line.split('Warning: ')[-1] for line in ran.stderr.splitlines() if line[:1].strip()]
    if ran.returncode:
        return said[-1:] or [f'it ended with {ran.returncode}']
    return said[:2]


def by_hand(module):
    "Is this a module that no notebook exports: the face of a room, or one that starts with `_`?"
    return module.name.startswith('_') and module.name != '_modidx.py'


def copied(tmp):
    "What notebooks export from and to, without the generated modules"
    copy = Path(tmp) / 'copy'
    copy.mkdir()
    for name in ('nbs', 'lopa'):
        shutil.copytree(root / name, copy / name, ignore=no_junk)
    for name in ('settings.ini', 'pyproject.toml'):
        shutil.copy(root / name, copy / name)
    for module in copy.glob('lopa/**/*.py'):
        if not by_hand(module):
            module.unlink()
    return copy


def reason(e):
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


def files(folder):
    "The library as text, by name, and what else the export writes"
    paths = [*sorted((folder / 'lopa').rglob('*.py')), folder / 'pyproject.toml']
    return {p.relative_to(folder).as_posix(): p.read_text(encoding='utf-8') for p in paths}


def difference(ours, fresh):
    "(the first line that a module lacks, the number of the first that it has beyond its notebook)"
    a, b = ours.split('\n'), fresh.split('\n')
    steps = SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    lacks = [b[j] for step, _, _, j, end in steps if step != 'equal' and end > j]
    extra = [i + 1 for step, i, end, _, _ in steps if step != 'equal' and end > i]
    return lacks[:1], extra[:1]


def compare(ours, fresh):
    "(what the modules lack of their notebooks, what they hold beyond them), one sentence each"
    lacks = [f'{n} is missing' for n in fresh if n not in ours]
    extra = [f'{n} has no notebook that exports it' for n in ours if n not in fresh]
    for name in ours.keys() & fresh.keys():
        missing, own = difference(ours[name], fresh[name])
        lacks += [f'{name} lacks `{line.strip()}`' for line in missing]
        extra += [f'{name} line {number} is not from its notebook' for number in own]
    return sorted(lacks), sorted(extra)


def library(copy):
    "Export afresh and compare in both directions"
    said = complaints(copy, '-m', 'tools.export', str(copy))
    if said:
        wrong = [f'the export says: {line}' for line in said]
        yield 'notebooks → library', wrong, 'repair the notebook'
        return
    lacks, extra = compare(files(root), files(copy))
    yield 'notebooks → library', lacks, 'run `make export`'
    yield 'library → notebooks', extra, 'edit the notebook, not the module, then run `make export`'


def index(copy):
    try:
        wrong = [f'{name} is not what nbs/index.ipynb says' for name in readme.differences()]
    except Exception as e:
        wrong = [f'nbs/index.ipynb cannot be rendered: {reason(e)}']
    yield 'README.md', wrong, 'run `make readme`'


def tutorials(copy):
    other = 'has other Colab cells than settings.ini asks for'
    try:
        wrong = [f'{p.relative_to(root)} {other}' for p in colab.out_of_step()]
    except Exception as e:
        wrong = [f'a tutorial cannot be read: {reason(e)}']
    yield 'Colab cells', wrong, 'run `make export`'


def faults(nb):
    "What must not stand in a committed notebook"
    if 'widgets' in nb.metadata:
        yield 'carries widget state'
    for i, cell in enumerate(nb.cells):
        for out in cell.get('outputs', []):
            if out.output_type == 'error':
                yield f'cell {i} has a saved error ({out.get("ename")})'
            if widget in out.get('data', {}):
                yield f'cell {i} has a saved widget, which nobody can see without a kernel'


def unreadable(path):
    "What is wrong within one notebook"
    try:
        nbformat.validate(nb := nbformat.read(path, nbformat.NO_CONVERT))
        return list(faults(nb))
    except Exception as e:
        return [f'not a valid notebook: {reason(e)}']


def changed(path, copy):
    "Would nbdev-clean change a notebook?"
    return path.read_bytes() != (copy / path.relative_to(root)).read_bytes()


def clean(copy):
    "Read every notebook, and see whether nbdev-clean would change it"
    ours = notebooks(root / 'nbs')
    wrong = [f'{p.relative_to(root)}: {fault}' for p in ours for fault in unreadable(p)]
    call = 'import sys; from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__(sys.argv[1])'
    said = complaints(copy, '-c', call, str(copy / 'nbs'))
    wrong += [f'nbdev-clean says: {line}' for line in said]
    wrong += [f'{p.relative_to(root)} is not clean' for p in ours if changed(p, copy)]
    hint = 'run `make export` (it cleans too), or `make notebooks NB=…`'
    yield f'{len(ours)} notebooks', wrong, hint


def main():
    ok = True
    with tempfile.TemporaryDirectory() as tmp:
        copy = copied(tmp)
        for check in (library, index, tutorials, clean):
            for name, wrong, hint in check(copy):
                ok &= not wrong
                says = f'{"; ".join(wrong)}. To mend: {hint}.' if wrong else 'in step'
                print(f'{name}: {says}', flush=True)
    return 0 if ok else 1


if __name__ == '__main__':
    sys.exit(main())
