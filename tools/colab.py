"""Give every tutorial its Colab badge and its install cells, from the address in settings.ini

    python -m tools.colab              # write them (part of `make export`)
    python -m tools.colab --check      # say which are not in step, and write nothing

The cells have the ids `colab-badge`, `colab-tools` and `colab-install`; edit the templates here,
not in notebooks.
A tutorial that does not import lopa gets the badge only. One that reads `../../results` without
asking on the same line whether they exist needs the repository; for others a wheel is enough.
"""

import sys
from configparser import ConfigParser
from pathlib import Path
from string import Template

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

root = Path(__file__).resolve().parents[1]
UNDECIDED = 'OWNER'  # as long as settings.ini has this user, there is no public address
SITE = 'https://colab.research.google.com'
BADGE = f'[Open in Colab]({SITE}/github/$user/$repo/blob/$branch/$path)'
NO_BADGE = f"""To run this in [Colab]({SITE}), choose *Upload* there, and give it this notebook.
(The repository has no public address yet, so there is no link to click.)"""

# Uploads come first, then a clone. A zip is unpacked anew every time, and a clone gets its name
# when it is whole, so nothing half-done is taken for good. pip would keep an installed lopa of the
# same version, so that goes first; on a dumb terminal it writes no colour codes. IPython shows a
# Stop as its sentence, and runs no further cell. Both cells stand as ruff would format them.
TOOLS = """import glob
import os
import subprocess
import sys
import zipfile

if 'google.colab' in sys.modules:  # for the next cell; elsewhere both do nothing

    class Stop(Exception):
        _render_traceback_ = lambda self: [str(self)]

    def stop(why, do='upload $wanted to the Files pane'):
        raise Stop(f'lopa is not installed: {why}; {do}, and run this cell again.')

    def run(name, command, *do):
        failed, said = subprocess.getstatusoutput('export TERM=dumb; ' + command)
        last = sorted(said.strip().split('\\n'), key=lambda line: 'ERROR' in line)[-1].strip()
        if failed:
            stop(f'{name} ended with "{last}"', *do)

    def newest(pattern):
        return max(glob.glob(pattern), key=os.path.getmtime, default=None)"""
INSTALL = """if 'google.colab' in sys.modules:  # install lopa; elsewhere this cell does nothing
    os.chdir('/content')
    archive, source = newest('lopa*.zip'), $wheel'lopa-clone'
    if archive:
        run(f'unzip {archive}', f'python3 -m zipfile -e "{archive}" lopa-unzipped')
        found = [name for name in zipfile.ZipFile(archive).namelist() if 'nbs/tutorials/' in name]
        if not found:
            stop(f'{archive} holds no nbs/tutorials')
        source = 'lopa-unzipped/' + found[0].split('nbs/tutorials/')[0]
    elif not os.path.exists(source):
        $fetch
    run(f'pip install {source}', f'pip uninstall -y lopa; pip install "./{source}"', 'mend that')
    assets = '-r "$$(python3 -c "import lopa; print(lopa.__path__[0])")/assets.txt"'
    run('pip -r assets.txt', f'pip install --no-deps --require-hashes {assets}', 'mend that')
    if os.path.isdir(source):
        os.chdir(f'{source}/nbs/tutorials')
    print('lopa is installed from', source)"""
CLONE = """name = '/content has no lopa $uploads, and git clone'
        clone = 'git clone --depth 1 -b $branch $git_url part'
        run(name, f'rm -rf part; {clone} && mv part lopa-clone')"""
NO_CLONE = "stop('/content has no lopa $uploads, and lopa has no public address yet')"
ANY = {
    'wheel': "newest('lopa-*.whl') or ",
    'uploads': 'zip or wheel',
    'wanted': 'lopa-*.whl (a wheel) or lopa*.zip (the repository)',
}
WHOLE = {'wheel': '', 'uploads': 'zip', 'wanted': 'lopa*.zip (the repository; wheels lack results)'}


def settings(root=root):
    "What settings.ini says"
    cfg = ConfigParser()
    cfg.read(root / 'settings.ini', encoding='utf-8')
    return dict(cfg['DEFAULT'])


def reads_results(code):
    "Does a notebook need the stored results?"
    return any("'../../results" in line and '.exists()' not in line for line in code.splitlines())


def templates(path, code, about):
    "Badge and install cells (id → code; none if lopa is not used) of a tutorial"
    decided = about['user'] != UNDECIDED
    about = about | {'path': path} | (WHOLE if reads_results(code) else ANY)

    def fill(text):
        return Template(text).substitute(about)

    about['fetch'] = fill(CLONE if decided else NO_CLONE)
    uses = 'from lopa' in code or 'import lopa' in code
    cells = {'colab-tools': TOOLS, 'colab-install': INSTALL} if uses else {}
    return fill(BADGE if decided else NO_BADGE), {name: fill(cells[name]) for name in cells}


def with_cells(path, root=root):
    "The notebook with these cells as they should be"
    nb = nbformat.read(path, 4)
    cells = [c for c in nb.cells if not c.id.startswith('colab-')]
    first = next(i for i, c in enumerate(cells) if c.cell_type == 'code')
    code = '\n'.join(c.source for c in cells if c.cell_type == 'code')
    badge, install = templates(path.relative_to(root).as_posix(), code, settings(root))
    cells[first:first] = [new_code_cell(code, id=name) for name, code in install.items()]
    cells.insert(1, new_markdown_cell(badge, id='colab-badge'))
    nb.cells = cells
    return nb


def shape(nb):
    "What has to be equal"
    return [(c.id, c.source) for c in nb.cells]


def out_of_step(root=root):
    "Tutorials whose cells differ from the templates → the notebook as it should be"
    paths = sorted((root / 'nbs' / 'tutorials').glob('*.ipynb'))
    wanted = {p: with_cells(p, root) for p in paths}
    return {p: nb for p, nb in wanted.items() if shape(nb) != shape(nbformat.read(p, 4))}


def main():
    found = out_of_step()
    if '--check' not in sys.argv:
        for path, nb in found.items():
            nbformat.write(nb, path)
        return 0
    for path in found:
        wrong = 'its Colab cells are not what settings.ini says: run `make export`'
        print(f'{path.relative_to(root)}: {wrong}')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
