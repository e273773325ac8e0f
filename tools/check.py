"""Is everything that is derived from something else in step with it? Prints one line per check; changes nothing

    python -m tools.check

1. Each notebook's export cells stand in its module.
2. Each module holds only what its notebook exports: a hand edit would be lost at the next export.
3. README.md is what nbs/index.ipynb says.
4. Tutorials carry the Colab cells that settings.ini asks for.
5. Notebooks are clean: what nbdev-clean leaves, valid, no saved errors, no widget state.
"""
import os, shutil, subprocess, sys, tempfile
from difflib import SequenceMatcher
from pathlib import Path

import nbformat

from tools import colab, readme
from tools.execute import notebooks, widget

root = Path(__file__).resolve().parents[1]
no_junk = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')


def nbdev(module, command, copy):
    "Run an nbdev command in the copy of the tree; what it had to complain about is a failure"
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} # under IN_TEST nbdev-export does nothing
    env.update(XDG_CONFIG_HOME=str(copy/'.config'), PYTHONPATH='')
    call = f'from nbdev.{module} import {command}; {command}.__wrapped__()'
    ran = subprocess.run([sys.executable, '-c', call], cwd=copy, env=env, capture_output=True, text=True)
    said = [line.split('Warning: ')[-1] for line in ran.stderr.splitlines() if line[:1].strip()]
    return said[-1:] or [f'{command} failed'] if ran.returncode else said[:2]


def copied(tmp):
    "What notebooks export from and to, without the generated modules"
    copy = Path(tmp)/'copy'
    copy.mkdir()
    for name in ('nbs', 'lopa'): shutil.copytree(root/name, copy/name, ignore=no_junk)
    for name in ('settings.ini', 'pyproject.toml'): shutil.copy(root/name, copy/name)
    for module in copy.glob('lopa/*.py'):
        if module.name != '__init__.py': module.unlink()
    return copy


def reason(e): return (str(e).strip().splitlines() or [type(e).__name__])[0]


def files(folder):
    "The library as text, by name"
    found = {f'lopa/{p.relative_to(folder/"lopa").as_posix()}': p.read_text(encoding='utf-8')
             for p in sorted((folder/'lopa').rglob('*.py'))}
    return {**found, 'pyproject.toml': (folder/'pyproject.toml').read_text(encoding='utf-8')}


def compare(ours, fresh):
    "(what the modules lack of their notebooks, what they hold beyond them), one sentence each"
    lacks = [f'{n} is missing' for n in fresh if n not in ours]
    extra = [f'{n} has no notebook that exports it' for n in ours if n not in fresh]
    for name in ours.keys() & fresh.keys():
        if ours[name] == fresh[name]: continue
        a, b = ours[name].split('\n'), fresh[name].split('\n')
        steps = [s for s in SequenceMatcher(None, a, b, autojunk=False).get_opcodes() if s[0] != 'equal']
        missing = [b[s[3]] for s in steps if s[4] > s[3]]
        own = [s[1] + 1 for s in steps if s[2] > s[1]]
        if missing: lacks.append(f'{name} lacks `{missing[0].strip()}`')
        if own: extra.append(f'{name} line {own[0]} is not from its notebook')
    return sorted(lacks), sorted(extra)


def library(copy):
    "Export afresh and compare in both directions"
    said = nbdev('doclinks', 'nbdev_export', copy)
    if said:
        yield 'notebooks → library', [f'nbdev-export says: {line}' for line in said], 'repair the notebook'
        return
    lacks, extra = compare(files(root), files(copy))
    yield 'notebooks → library', lacks, 'run `make export`'
    yield 'library → notebooks', extra, 'edit the notebook, not the module, then run `make export`'


def index(copy):
    try: wrong = [f'{name} is not what nbs/index.ipynb says' for name in readme.differences()]
    except Exception as e: wrong = [f'nbs/index.ipynb cannot be rendered: {reason(e)}']
    yield 'README.md', wrong, 'run `make readme`'


def tutorials(copy):
    try: wrong = [f'{p.relative_to(root)} has other Colab cells than settings.ini asks for' for p in colab.out_of_step()]
    except Exception as e: wrong = [f'a tutorial cannot be read: {reason(e)}']
    yield 'Colab cells', wrong, 'run `make export`'


def faults(nb):
    "What must not stand in a committed notebook"
    if 'widgets' in nb.metadata: yield 'carries widget state'
    for i, cell in enumerate(nb.cells):
        for out in cell.get('outputs', []):
            if out.output_type == 'error': yield f'cell {i} has a saved error ({out.get("ename")})'
            if widget in out.get('data', {}): yield f'cell {i} has a saved widget, which nobody can see without a kernel'


def clean(copy):
    "Read every notebook, and see whether nbdev-clean would change it"
    wrong, ours = [], notebooks(root/'nbs')
    for path in ours:
        name = path.relative_to(root)
        try:
            nbformat.validate(nb := nbformat.read(path, nbformat.NO_CONVERT))
            wrong += [f'{name}: {fault}' for fault in faults(nb)]
        except Exception as e: wrong.append(f'{name}: not a valid notebook: {reason(e)}')
    wrong += [f'nbdev-clean says: {line}' for line in nbdev('clean', 'nbdev_clean', copy)]
    wrong += [f'{p.relative_to(root)} is not clean' for p in ours if p.read_bytes() != (copy/p.relative_to(root)).read_bytes()]
    yield f'{len(ours)} notebooks', wrong, 'run `make export` (it cleans too), or `make notebooks NB=…`'


def main():
    ok = True
    with tempfile.TemporaryDirectory() as tmp:
        copy = copied(tmp)
        for check in (library, index, tutorials, clean):
            for name, wrong, hint in check(copy):
                ok &= not wrong
                print(f'{name}: ' + (f'{"; ".join(wrong)}. To mend: {hint}.' if wrong else 'in step'), flush=True)
    return 0 if ok else 1


if __name__ == '__main__': sys.exit(main())
