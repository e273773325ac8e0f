"""Run what needs a GPU, and nothing else, and write a report

    make test-gpu                    # tests marked `cuda`; notebooks that have `#| cuda` cells
    python -m tools.gpu --tests      # the tests only
    python -m tools.gpu --list       # what would run

A notebook is run as a whole, since its `#| cuda` cells stand on the others, and keeps its new outputs. Cells that need a model hub, too,
are run if it can be reached. The report, results/gpu/DEVICE.json, holds device, versions, and seconds and peak memory of every test and cell.
"""
import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as xml
from pathlib import Path

import nbformat

from tools.execute import directives, execute, notebooks, shown

root = Path(__file__).resolve().parents[1]


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
    def __enter__(self):
        self.most, self.done = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self):
        ask = ['nvidia-smi', '--query-gpu=memory.used', '--format=csv,noheader,nounits']
        while not self.done.wait(.5):
            with contextlib.suppress(OSError, ValueError): self.most = max(self.most, *map(int, subprocess.run(ask, capture_output=True, text=True).stdout.split()))

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def run_tests():
    "Run the tests marked `cuda` → one entry each"
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp)/'tests.xml'
        code = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-m', 'cuda', 'tests', f'--junitxml={out}'], cwd=root).returncode
        cases = list(xml.parse(out).iter('testcase'))
    state = lambda case: next((kind for kind in ('failure', 'error', 'skipped') if case.find(kind) is not None), 'passed')
    return code, [{'test': f"{c.get('classname')}::{c.get('name')}", 'result': state(c), 'seconds': round(float(c.get('time')), 2),
                   **{p.get('name'): json.loads(p.get('value')) for p in c.iter('property')}} for c in cases]


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


def machine():
    "Device and versions"
    import torch
    from lopa.hardware import environment
    where = environment(torch.device('cuda', 0))
    return {k: where[k] for k in ('device', 'versions')} | {'memory_mb': torch.cuda.get_device_properties(0).total_memory >> 20, 'cuda': torch.version.cuda, 'date': time.strftime('%Y-%m-%d')}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--tests', action='store_true', help='run the tests only')
    parser.add_argument('--list', action='store_true', help='say what would run')
    args = parser.parse_args(argv)
    with_cells = {p: gpu_cells(p) for p in notebooks(root/'nbs')}
    if args.list:
        subprocess.run([sys.executable, '-m', 'pytest', '-q', '-m', 'cuda', '--collect-only', 'tests'], cwd=root)
        for path, cells in with_cells.items():
            for c in cells: print(f'{shown(path)}: cell {c.id}' + (', needs a model hub' if 'hub' in directives(c.source) else ''))
        return
    import torch
    if not torch.cuda.is_available(): raise SystemExit('No CUDA GPU here, and nothing was run; `python -m tools.gpu --list` says what would be.')
    code, tests = run_tests()
    allowed = {'cuda', 'hub'} if hub_answers() else {'cuda'}
    report = machine() | {'hub': 'hub' in allowed, 'tests': tests, 'cells': []}
    for path, cells in {} if args.tests else with_cells.items():
        if any(set(directives(c.source)) & {'cuda', 'hub'} <= allowed for c in cells): report['cells'] += run_notebook(path, allowed)
    out = root/'results'/'gpu'/f"{re.sub('[^a-z0-9]+', '-', report['device'].lower())}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1))
    print(f"{out.relative_to(root)}: {report['device']}, {len(tests)} tests, {len(report['cells'])} cells, {sum(e['seconds'] for e in tests + report['cells']):.0f} s")
    return code


if __name__ == '__main__': sys.exit(main())
