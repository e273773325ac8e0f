"""What is read from the files that the parts of `make test-gpu` leave

Each reader gets the part's folder, and returns what goes into the report and a list of entries for
`left_out`. A file that is not there raises OSError.
"""

import json
from collections import defaultdict


def left(what, why, failed=True):
    "An entry of `left_out`"
    return {'what': what, 'why': why, 'failed': failed}


def load(path):
    return json.loads(path.read_text(encoding='utf-8'))


def only(name):
    "A reader that takes a file as it is"
    return lambda folder: (load(folder / name), [])


# --- tests, from tools/gpu_log.py ---


def spans(numbers):
    "[1, 2, 3, 7] → '1–3, 7'"
    numbers = sorted(set(numbers))
    first = [n for n in numbers if n - 1 not in numbers]
    last = [n for n in numbers if n + 1 not in numbers]
    return ', '.join(str(a) if a == b else f'{a}–{b}' for a, b in zip(first, last, strict=True))


def kernels(tests):
    "Attention kernel → cases compared with the plain one, and the largest relative difference"
    found = {}
    for name, new in (item for t in tests for item in t.pop('kernels', {}).items()):
        old = found.setdefault(name, {'compared': 0, 'worst': 0.0})
        old['compared'] += new['compared']
        old['worst'] = max(old['worst'], float(f'{new["worst"]:.2g}'))
    return found


def refused(tests):
    "What kernels did not take, an entry for each, with all lengths"
    lengths = defaultdict(list)
    for e in (e for t in tests for e in t.pop('left_out', [])):
        lengths[e['what'], e['why']] += e['lengths']
    return [
        left(f'tests: {what}, lengths {spans(at)}', why, False)
        for (what, why), at in lengths.items()
    ]


def not_run(tests):
    "Tests that skipped themselves, an entry for each reason"
    names = defaultdict(list)
    for t in tests:
        name = t['test'].rpartition('::')[2].split('[')[0]
        if t['result'] == 'skipped':
            names[t.get('why', '')].append(name)
    return [
        left(f'tests: {", ".join(sorted(set(them)))} ({len(them)})', why, False)
        for why, them in names.items()
    ]


def read_tests(folder):
    "Counts, kernels, and every test"
    lines = (folder / 'tests.jsonl').read_text(encoding='utf-8').splitlines()
    tests = [json.loads(line) for line in lines]
    count = {
        kind: sum(t['result'] == kind for t in tests) for kind in ('passed', 'failed', 'skipped')
    }
    bad = [left(f'tests: {t["test"]}', t.get('why', '')) for t in tests if t['result'] == 'failed']
    out = bad + refused(tests) + not_run(tests)
    return count | {'kernels': kernels(tests), 'cases': tests}, out


# --- runs ---


def left_out_steps(runs):
    "Steps without a finite gradient, over all runs; None if no run keeps count"
    counts = [len(r['left_out']) for r in runs if 'left_out' in r]
    return sum(counts) if counts else None


def unhealthy(name, runs):
    "In bfloat16 no step should be left out; a run in float16 begins with a few"
    n = left_out_steps([r for r in runs if r.get('dtype') != 'float16'])
    return [left(f'{name}: {n} training steps', 'their gradients were not finite')] if n else []


def kept(run, *names):
    "Some fields of a result"
    return {name: run.get(name) for name in names}


def read_demo(folder):
    "The rows of the table that were computed here, and the run"
    table, run = load(folder / 'demo' / 'table.json'), load(folder / 'demo' / 'result.json')
    about = kept(run, 'dtype', 'seconds', 'peak_memory_mb', 'trainable_parameters', 'history')
    ours = [row for row in table['rows'] if not row.get('quoted')]
    found = {'rows': ours, 'run': about, 'left_out_steps': left_out_steps([run])}
    return found, unhealthy('demo', [run])


def read_sweep(folder):
    "How many runs ended well, what the others say, and a line for each"
    files = sorted((folder / 'runs').glob('*.json'))
    if not files:
        raise FileNotFoundError('no run came to an end')
    failed = {
        p.name.removesuffix('.failed.json'): load(p)['error']
        for p in files
        if p.name.endswith('.failed.json')
    }
    runs = {p.stem: load(p) for p in files if not p.name.endswith('.failed.json')}
    fields = 'method', 'seed', 'dtype', 'seconds', 'peak_memory_mb', 'test', 'left_out'
    rows = [{'run': name} | kept(run, *fields) for name, run in runs.items()]
    found = {
        'finished': len(runs),
        'failed': failed,
        'left_out_steps': left_out_steps(runs.values()),
        'runs': rows,
    }
    bad = [left(f'sweep: {name}', error) for name, error in failed.items()]
    return found, bad + unhealthy('sweep', runs.values())
