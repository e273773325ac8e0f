"""Run on a real GPU what matters there, in under 8 minutes, and write a report

    make test-gpu                         # tests, the main job, a sweep, the race of steps
    make test-gpu ARGS='--only tests'     # one part; several are separated by commas
    make test-gpu ARGS=--list             # what would run, and what would be left out
    make test-gpu ARGS=--notebooks        # also the notebooks that have `#| cuda` cells; takes long
    python -m tools.gpu --rehearse --out /tmp/gpu    # on the CPU with tiny sizes, to test this tool

Nothing is installed, and no network is asked. Each part (tools/gpu_parts.py) is a process with a
time limit; what it leaves of that goes to the next. results/gpu/DEVICE.json is written whole after
every part, with a log of each beside it: device, versions, what the parts found, seconds, and in
`left_out` what did not run or failed, and why.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lopa.files import check_replaceable, write_files
from tools.gpu_parts import PARTS, root
from tools.gpu_read import left
from tools.gpu_run import carry_out, environment, last_lines, why

REAL = root / 'results' / 'gpu'
NO_GPU = (
    'No CUDA GPU here, and nothing was run: `python -m tools.gpu --list` says what would be, '
    '`python -m tools.gpu --rehearse --out FOLDER` tries it on the CPU.'
)


def gpu():
    "What the first GPU is; None where there is none"
    with suppress(ImportError):
        import torch

        if torch.cuda.is_available():
            about = torch.cuda.get_device_properties(0)
            return {
                'device': about.name,
                'memory_mb': about.total_memory >> 20,
                'cuda': torch.version.cuda,
                'cudnn': torch.backends.cudnn.version(),
            }


def versions():
    "Of Python and of what is installed"
    from lopa import __version__

    found = {'python': sys.version.split()[0], 'lopa': __version__}
    for name in ('torch', 'transformers', 'accelerate', 'peft', 'datasets'):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def commit():
    "What is checked out, with `-dirty` if it was changed since; None without git"
    ask = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    with suppress(OSError):
        return subprocess.run(ask, cwd=root, capture_output=True, text=True).stdout.strip() or None


def attempt(part, log, limit, rehearse):
    "Run a part → (what it found or None, entries of `left_out`)"
    if missing := part.missing():
        return None, [left(part.name, f'needs what is not installed: {", ".join(missing)}', False)]
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        env = environment(folder, root, part.offline, rehearse)
        code = carry_out(part.command(folder, rehearse), log, limit, cwd=root, env=env)
        failed = [left(part.name, why(code, log, limit))] if code != 0 else []
        try:
            found, out = part.read(folder)
        except Exception as e:  # the other parts run all the same
            nothing = f'left nothing that can be read ({type(e).__name__}: {e})'
            return None, failed or [left(part.name, nothing)]
    return found, failed + out


def write(report, path):
    "The whole report, or the one that was there"
    text = json.dumps(report, indent=1, ensure_ascii=False)
    write_files(path.parent, {path.name: text.encode()})


def log_of(path, part):
    "The log of a part, beside the report"
    return path.with_name(f'{path.stem}-{part.name}.log')


def check_places(path, parts, parser):
    "Refuse to replace what is no earlier report, or no file, before anything is run"
    ours = lambda report: '"left_out"' in report.read_text(encoding='utf-8', errors='replace')
    try:
        check_replaceable(path, ours, None)
        for part in parts:
            check_replaceable(log_of(path, part), lambda log: log.is_file(), None)
    except OSError as e:
        parser.error(f'--out: {e}')


def tell(part, seconds, out, log):
    "A line for a part; if it failed, the end of its log"
    failed = [e for e in out if e['failed']]
    whole = [e['why'] for e in out if e['what'] == part.name]
    said = '; '.join(f'{e["what"]}: {e["why"]}' for e in failed[:3]) or ' '.join(whole) or 'done'
    print(f'{part.name:10} {seconds:5.0f} s  {said}', flush=True)
    if not (failed and log.exists()):
        return
    for line in last_lines(log):
        print('   ', line[:300])
    print(f'    ({log})', flush=True)


def run_parts(parts, report, path, rehearse):
    "Carry out the parts one after the other; the report is on disk after each"
    spare = 0
    for part in parts:
        log, start = log_of(path, part), time.perf_counter()
        limit = spare + (part.limit_tiny if rehearse else part.limit)
        log.unlink(missing_ok=True)
        report[part.name], out = attempt(part, log, limit, rehearse)
        seconds = time.perf_counter() - start
        spare = max(limit - seconds, 0)
        report['seconds'][part.name] = round(seconds, 1)
        report['left_out'] += out
        write(report, path)
        tell(part, seconds, out, log)


def conclude(report, parts, path):
    "The last lines; the exit status is 0 if something ran and nothing failed"
    out = [e for e in report['left_out'] if not e['failed']]
    failed, seconds = len(report['left_out']) - len(out), sum(report['seconds'].values())
    for e in out:
        print(f'left out: {e["what"]}: {e["why"]}')
    print(f'{path}: {report["device"]}, {seconds:.0f} s, {failed} failed, {len(out)} left out')
    return int(failed > 0 or all(report[p.name] is None for p in parts))


def chosen(args, parser):
    "The parts that were asked for, in their order"
    known = [p.name for p in PARTS]
    names = args.only.split(',') if args.only else [n for n in known if n != 'notebooks']
    for name in names:
        if name not in known:
            parser.error(f'--only: received {name!r}, expected some of {", ".join(known)}')
    return [p for p in PARTS if p.name in names or args.notebooks and p.name == 'notebooks']


def show(parts):
    "What would run"
    for part in parts:
        missing = ', '.join(part.missing())
        lacks = f'; left out here, {missing} not installed' if missing else ''
        print(f'{part.name:10} {part.what}: at most {part.limit} s{lacks}')


def place(args, device, parser):
    "File of the report; a rehearsal's is nowhere near those of real GPUs"
    if args.rehearse and (not args.out or args.out.resolve().is_relative_to(REAL)):
        parser.error('--rehearse: expected --out FOLDER, and not results/gpu, where real GPUs are')
    folder = (args.out or REAL).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        parser.error(f'--out: {folder} cannot be made a folder ({e.strerror})')
    return folder / f'{re.sub("[^a-z0-9]+", "-", device.lower()).strip("-")}.json'


def options():
    "What can be asked for"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ', '.join(p.name for p in PARTS)
    parser.add_argument('--only', metavar='PARTS', help=f'of {names}, separated by commas')
    parser.add_argument('--out', metavar='FOLDER', type=Path, help='in place of results/gpu')
    flags = {
        'list': 'say what would run',
        'notebooks': 'run notebooks with cells for a GPU, too',
        'rehearse': 'on the CPU with tiny sizes; needs --out',
    }
    for name in flags:
        parser.add_argument(f'--{name}', action='store_true', help=flags[name])
    return parser


def main(argv=None):
    parser = options()
    args = parser.parse_args(argv)
    parts = chosen(args, parser)
    if args.list:
        return show(parts)
    about = {'device': 'CPU'} if args.rehearse else gpu()
    if not about:
        raise SystemExit(NO_GPU)
    path = place(args, about['device'], parser)
    check_places(path, parts, parser)
    report = about | {
        'versions': versions(),
        'date': time.strftime('%Y-%m-%d'),
        'commit': commit(),
        'rehearsal': args.rehearse,
        'seconds': {},
        'left_out': [],
    }
    run_parts(parts, report, path, args.rehearse)
    return conclude(report, parts, path)


if __name__ == '__main__':
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the part at work, too
    sys.exit(main())
