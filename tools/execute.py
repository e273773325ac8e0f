"""Execute notebooks in place and keep their outputs, as nbdev-test does not

    make notebooks                               # every notebook
    make notebooks NB=nbs/01_gating.ipynb        # one of them
    make notebooks NB=nbs/plan/63_bench.ipynb ARGS=--slow

Cells marked `#| eval: false`, `#| notest`, `#| slow`, `#| cuda` or `#| hub` are not run and keep
the outputs they have; `--slow`, `--cuda` and `--hub` run them. A notebook with a failing cell stays
as it was.
`python -m tools.execute --dry PATH` saves nothing, and needs no nbdev.
"""

import argparse
import contextlib
import os
import re
from json import loads
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

root = Path(__file__).resolve().parents[1]
FLAGS = 'slow', 'cuda', 'hub'  # cells that run only where they are asked for
left_out = {'notest', *FLAGS}
widget = 'application/vnd.jupyter.widget-view+json'


def notebooks(folder):
    "Every notebook of the project, tutorials too; drafts and checkpoints (`_…`, `.…`) aside"
    return sorted(
        p
        for p in Path(folder).rglob('*.ipynb')
        if not any(part[0] in '_.' for part in p.relative_to(folder).parts)
    )


def directives(source):
    "The leading `#| name: value` lines of a cell as a dict; the value of a flag is ''"
    found = {}
    for line in source.splitlines():
        if not (m := re.match(r'\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*)', line)):
            if line.strip():
                break
            continue
        found[m[1]] = m[2].strip().strip('"\'')
    return found


def runs(cell, allowed=()):
    "Is this a cell to execute?"
    if cell.cell_type != 'code' or not cell.source.strip() or 'nbdev_export(' in cell.source:
        return False
    found = directives(cell.source)
    return found.get('eval', '').lower() != 'false' and not (left_out - set(allowed)) & set(found)


def keep(output):
    "Is a new output worth saving? Nobody can see live widgets and progress bars again"
    if output.output_type == 'stream' and output.name == 'stderr':
        lines = output.text.splitlines(True)
        output.text = ''.join(line for line in lines if '\r' not in line and '%|' not in line)
        return bool(output.text.strip())
    return widget not in output.get('data', {})


def kernel_for(nb, path, timeout):
    "A client that runs the cells of a notebook in its own folder"
    return NotebookClient(
        nb,
        timeout=timeout,
        kernel_name='python3',
        coalesce_streams=True,
        record_timing=False,
        extra_arguments=['--log-level=ERROR'],
        resources={'metadata': {'path': str(path.parent)}},
    )


def with_library():
    "The environment in which a notebook finds this tree's library first"
    above = os.environ.get('PYTHONPATH')
    return {**os.environ, 'PYTHONPATH': os.pathsep.join([str(root), *([above] if above else [])])}


def first_line(cell):
    "The first line of a cell that is code"
    lines = (line.strip() for line in cell.source.splitlines())
    return next((line for line in lines if line and not line.startswith('#')), '')


def run_cell(client, path, i, around):
    "Run one cell, or end with a sentence that says which one failed"
    cell = client.nb.cells[i]
    try:
        with around(cell):
            client.execute_cell(cell, i)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as e:
        which = f'{shown(path)}: cell {i} (id {cell.get("id")})'
        raise SystemExit(
            f'{which}, which starts with `{first_line(cell)}`, failed; '
            f'the notebook was left as it was.\n{e}'
        ) from e
    cell.outputs = [o for o in cell.outputs if keep(o)]


def alone(cell):
    "Run a cell within nothing"
    return contextlib.nullcontext()


def execute(path, allowed=(), timeout=None, around=alone, dry=False):
    "Run a notebook, each cell within `around(cell)`; unless `dry`, write it back clean"
    nb = nbformat.read(path, 4)
    client = kernel_for(nb, path, timeout)
    chosen = [i for i, cell in enumerate(nb.cells) if runs(cell, allowed)]
    with client.setup_kernel(env=with_library()):
        for i in chosen:
            run_cell(client, path, i, around)
    nb.metadata.pop('widgets', None)
    if not dry:
        write(nb, path)
    return len(chosen)


def write(nb, path):
    "Write what nbdev-clean would leave, in one step"
    from fastcore.nbio import nb2str
    from nbdev.clean import clean_nb
    from nbdev.config import get_config

    from lopa.files import write_files

    nb = loads(nbformat.writes(nb))
    cfg = get_config(path=root)
    clean_nb(nb, allowed_metadata_keys=cfg.allowed_metadata_keys)
    write_files(path.parent, {path.name: nb2str(nb).encode()})


def shown(path):
    path = Path(path).resolve()
    return path.relative_to(root) if path.is_relative_to(root) else path


def arguments(argv):
    "What the command line asks for"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    path = 'notebooks or folders; all of nbs/ when none is named'
    parser.add_argument('path', nargs='*', type=Path, help=path)
    for flag in FLAGS:
        text = f'run the cells marked {flag} too'
        parser.add_argument(f'--{flag}', action='store_true', help=text)
    timeout = 'seconds that one cell may take (default: as long as it likes)'
    parser.add_argument('--timeout', type=int, help=timeout)
    dry = 'run, and leave the notebooks as they are'
    parser.add_argument('--dry', action='store_true', help=dry)
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    allowed = {flag for flag in FLAGS if getattr(args, flag)}
    for given in args.path or [root / 'nbs']:
        if not given.exists():
            raise SystemExit(f'{given}: no such notebook')
        for path in notebooks(given.resolve()) if given.is_dir() else [given.resolve()]:
            print(f'{shown(path)} ...', end=' ', flush=True)
            print(f'{execute(path, allowed, args.timeout, dry=args.dry)} cells run', flush=True)


if __name__ == '__main__':
    main()
