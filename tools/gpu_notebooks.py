"""Run the notebooks that have `#| cuda` cells; `make test-gpu ARGS=--notebooks` does

    python -m tools.gpu_notebooks --out cells.json      # seconds and peak memory of every such cell
    python -m tools.gpu_notebooks                       # only list the cells

A notebook is run as a whole, since its `#| cuda` cells stand on the others, and keeps its new
outputs. Cells that need a model hub, too, are run if it can be reached.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat

from lopa.files import check_replaceable, write_files
from tools.execute import directives, execute, notebooks, root, shown


def gpu_cells(path):
    "Cells of a notebook that need a GPU"
    return [
        c
        for c in nbformat.read(path, 4).cells
        if c.cell_type == 'code' and 'cuda' in directives(c.source)
    ]


def hub_answers():
    "Can a model hub be reached?"
    if os.environ.get('HF_HUB_OFFLINE') == '1':
        return False
    from huggingface_hub import HfApi

    try:
        return bool(HfApi().model_info('roberta-large', timeout=10))
    except Exception:
        return False


class Peak:
    "Most memory in use on the GPU (MiB), by any process, as nvidia-smi sees it twice a second"

    ask = ['nvidia-smi', '--query-gpu=memory.used', '--format=csv,noheader,nounits']

    def __enter__(self):
        self.most, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.5):
            with contextlib.suppress(OSError, ValueError):
                used = subprocess.run(self.ask, capture_output=True, text=True).stdout.split()
                self.most = max(self.most, *map(int, used))

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def run_notebook(path, allowed):
    "Run one notebook → one entry for each cell that needs a GPU"
    entries = []

    @contextlib.contextmanager
    def around(cell):
        if 'cuda' not in directives(cell.source):
            yield
            return
        start = time.perf_counter()
        with Peak() as peak:
            yield
        seconds = round(time.perf_counter() - start, 1)
        entries.append(
            {
                'notebook': str(shown(path)),
                'cell': cell.get('id'),
                'seconds': seconds,
                'gpu_peak_mb': peak.most,
            }
        )

    execute(path, allowed, around=around)
    return entries


def needs(cell):
    "What a cell needs of the machine"
    return set(directives(cell.source)) & {'cuda', 'hub'}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', type=Path, help='where the entries go; without, cells are listed')
    args, entries = parser.parse_args(argv), []
    cells = {path: gpu_cells(path) for path in notebooks(root / 'nbs')}
    if not args.out:
        for place, cell in [(path, cell) for path in cells for cell in cells[path]]:
            print(f'{shown(place)}: cell {cell.id} needs {", ".join(sorted(needs(cell)))}')
        return
    check_replaceable(args.out, lambda path: path.read_bytes()[:1] in (b'', b'['), None)
    allowed = {'cuda', 'hub'} if hub_answers() else {'cuda'}
    write_files(args.out.parent, {args.out.name: b'[]'})
    for path in cells:
        if not any(needs(cell) <= allowed for cell in cells[path]):
            continue
        print(shown(path), flush=True)
        entries += run_notebook(path, allowed)
        write_files(args.out.parent, {args.out.name: json.dumps(entries).encode()})


if __name__ == '__main__':
    sys.exit(main())
