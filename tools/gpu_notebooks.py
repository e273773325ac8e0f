"""Run the notebooks that have `#| cuda` cells; `make test-gpu ARGS=--notebooks` does

    python -m tools.gpu_notebooks --out cells.json      # with the seconds and the peak memory of every such cell
    python -m tools.gpu_notebooks                       # only list the cells

A notebook is run as a whole, since its `#| cuda` cells stand on the others, and keeps its new outputs. Cells that
need a model hub, too, are run if it can be reached.
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

from tools.execute import directives, execute, notebooks, root, shown


def gpu_cells(path):
    "Cells of a notebook that need a GPU"
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == 'code' and 'cuda' in directives(c.source)]


def hub_answers():
    "Can a model hub be reached?"
    if os.environ.get('HF_HUB_OFFLINE') == '1': return False
    from huggingface_hub import HfApi
    try: return bool(HfApi().model_info('roberta-large', timeout=10))
    except Exception: return False


class Peak:
    "Most memory in use on the GPU (MiB), by any process, as nvidia-smi sees it twice a second"
    ask = ['nvidia-smi', '--query-gpu=memory.used', '--format=csv,noheader,nounits']

    def __enter__(self):
        self.most, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(.5):
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
        if 'cuda' not in directives(cell.source): yield; return
        start = time.perf_counter()
        with Peak() as peak: yield
        entries.append({'notebook': str(shown(path)), 'cell': cell.get('id'), 'seconds': round(time.perf_counter() - start, 1), 'gpu_peak_mb': peak.most})
    execute(path, allowed, around=around)
    return entries


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='where the entries go; without it, cells are only listed')
    args, entries = parser.parse_args(argv), []
    allowed = {'cuda', 'hub'} if args.out and hub_answers() else {'cuda'}
    for path, cells in ((p, gpu_cells(p)) for p in notebooks(root/'nbs')):
        if not args.out:
            for c in cells: print(f'{shown(path)}: cell {c.id}' + (', needs a model hub' if 'hub' in directives(c.source) else ''))
        elif any(set(directives(c.source)) & {'cuda', 'hub'} <= allowed for c in cells):
            print(shown(path), flush=True)
            entries += run_notebook(path, allowed)
            args.out.write_text(json.dumps(entries), encoding='utf-8')


if __name__ == '__main__': sys.exit(main())
