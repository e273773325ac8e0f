"""Run on a real GPU what matters there, in under 8 minutes, and write a report

    make test-gpu                         # tests, the main job, a sweep, the race of steps
    make test-gpu ARGS='--only tests'     # one part; several are separated by commas
    make test-gpu ARGS=--list             # what would run, and what would be left out
    make test-gpu ARGS=--notebooks        # the notebooks that have `#| cuda` cells, too: takes long
    python -m tools.gpu --rehearse --out /tmp/gpu    # the same on the CPU with tiny sizes, to test this tool

Nothing is installed, and no network is asked. Each part (tools/gpu_parts.py) is a process with a time limit; what it
leaves over goes to the next. results/gpu/DEVICE.json is written whole after every part, with the log of each beside
it: device, versions, what the parts found, seconds, and in `left_out` what did not run or failed, and why.
"""
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tools.gpu_parts import PARTS, left, root

REHEARSAL = {'CUDA_VISIBLE_DEVICES': '', 'LOPA_TEST_DEVICE': 'cpu', 'LOPA_TEST_LENGTHS': '1,53,63'}
NO_GPU = ('No CUDA GPU here, and nothing was run: `python -m tools.gpu --list` says what would be, '
          '`python -m tools.gpu --rehearse --out FOLDER` tries it on the CPU.')


def gpu():
    "What the first GPU is; None where there is none"
    with suppress(ImportError):
        import torch
        if torch.cuda.is_available():
            about = torch.cuda.get_device_properties(0)
            return {'device': about.name, 'memory_mb': about.total_memory >> 20, 'cuda': torch.version.cuda}


def versions():
    "Of Python and of what is installed"
    found = {'python': sys.version.split()[0]}
    for name in ('torch', 'transformers', 'accelerate', 'peft', 'datasets', 'nvidia-cudnn-cu12', 'nvidia-cudnn-cu13'):
        with suppress(PackageNotFoundError): found[name] = version(name)
    from lopa import __version__
    return found | {'lopa': __version__}


def commit():
    "What is checked out, with `-dirty` if it was changed since; None without git"
    ask = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    with suppress(OSError): return subprocess.run(ask, cwd=root, capture_output=True, text=True).stdout.strip() or None


def last_lines(log, n=15):
    "The end of a log; a progress bar does not hide what follows it on its line"
    lines = log.read_text(encoding='utf-8', errors='replace').replace('\r', '\n').splitlines()
    return [line.rstrip() for line in lines if line.strip()][-n:]


def why(code, log, limit):
    "One sentence on a process that did not end well"
    if code is None: return f'ran out of time after {limit:.0f} s'
    last = (last_lines(log, 1) or ['said nothing'])[0].strip()
    return f'ended by signal {-code}: {last[:300]}' if code < 0 else f'ended with status {code}: {last[:300]}'


def environment(part, folder, rehearse):
    "Environment variables of a part"
    path = os.pathsep.join(filter(None, [str(root), os.environ.get('PYTHONPATH')]))
    env = os.environ | {'PYTHONPATH': path, 'TOKENIZERS_PARALLELISM': 'false', 'PYTHONUNBUFFERED': '1', 'LOPA_TEST_LOG': str(folder/'tests.jsonl')}
    return env | ({'HF_HUB_OFFLINE': '1'} if part.offline else {}) | (REHEARSAL if rehearse else {})


def carry_out(command, log, limit, **where):
    "Run python → its exit status, or None if it took longer than allowed; whatever it started ends with it"
    with open(log, 'w', encoding='utf-8') as out:
        process = subprocess.Popen([sys.executable, *command], stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True, **where)
        try: return process.wait(limit)
        except subprocess.TimeoutExpired: return None
        finally:
            with suppress(ProcessLookupError, PermissionError): os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def attempt(part, log, limit, rehearse):
    "Run a part → (what it found or None, entries of `left_out`)"
    if missing := part.missing(): return None, [left(part.name, f"needs what is not installed: {', '.join(missing)}", False)]
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        code = carry_out(part.command(folder, rehearse), log, limit, cwd=root, env=environment(part, folder, rehearse))
        failed = [left(part.name, why(code, log, limit))] if code != 0 else []
        try: found, out = part.read(folder)
        except (OSError, ValueError, LookupError, TypeError) as e:
            return None, failed or [left(part.name, f'left nothing that can be read ({type(e).__name__}: {e})')]
    return found, failed + out


def write(report, path):
    "The whole report or the one before"
    part = path.with_name(f'.{path.name}.{os.getpid()}')
    part.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding='utf-8')
    part.replace(path)


def tell(part, seconds, out, log):
    "A line for a part; if it failed, the end of its log"
    failed = [entry for entry in out if entry['failed']]
    said = '; '.join(f"{e['what']}: {e['why']}" for e in failed[:3]) or next((e['why'] for e in out if e['what'] == part.name), 'done')
    print(f'{part.name:10} {seconds:5.0f} s  {said}', flush=True)
    if failed and log.exists(): print(*(f'    {line[:300]}' for line in last_lines(log)), f'    ({log})', sep='\n', flush=True)


def run_parts(parts, report, path, rehearse=False):
    "Carry out the parts one after the other; the report is on disk after each"
    spare = 0
    for part in parts:
        limit, start = spare + (part.limit_tiny if rehearse else part.limit), time.perf_counter()
        log = path.with_name(f'{path.stem}-{part.name}.log')
        log.unlink(missing_ok=True)
        print(f'{part.name:10} ...  at most {limit:.0f} s', end='\r' if sys.stdout.isatty() else '\n', flush=True)
        report[part.name], out = attempt(part, log, limit, rehearse)
        seconds = time.perf_counter() - start
        report['seconds'][part.name], spare = round(seconds, 1), max(limit - seconds, 0)
        report['left_out'] += out
        write(report, path)
        tell(part, seconds, out, log)
    return report


def chosen(only, with_notebooks, parser):
    "Parts by name, in their order"
    names = only.split(',') if only else [p.name for p in PARTS if p.name != 'notebooks']
    names += ['notebooks']*with_notebooks
    for name in names:
        if name not in (known := [p.name for p in PARTS]): parser.error(f"--only: received {name!r}, expected some of {', '.join(known)}")
    return [p for p in PARTS if p.name in names]


def show(parts):
    "What would run"
    for part in parts:
        missing = part.missing()
        print(f'{part.name:10} {part.what}: at most {part.limit} s' + (f"; left out here, {', '.join(missing)} not installed" if missing else ''))


def place(args, device, parser):
    "File of the report; a rehearsal's is nowhere near those of real GPUs"
    real = root/'results'/'gpu'
    if args.rehearse and (not args.out or args.out.resolve().is_relative_to(real)):
        parser.error('--rehearse: expected --out FOLDER, and not results/gpu, which is for real GPUs')
    folder = (args.out or real).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder/f"{re.sub('[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--only', metavar='PARTS', help=f"of {', '.join(p.name for p in PARTS)}, separated by commas")
    parser.add_argument('--list', action='store_true', help='say what would run')
    parser.add_argument('--notebooks', action='store_true', help='run the notebooks that have cells for a GPU, too')
    parser.add_argument('--rehearse', action='store_true', help='on the CPU with tiny sizes; needs --out')
    parser.add_argument('--out', type=Path, metavar='FOLDER', help='for report and logs; default: results/gpu')
    args = parser.parse_args(argv)
    parts = chosen(args.only, args.notebooks, parser)
    if args.list: return show(parts)
    about = {'device': 'CPU', 'memory_mb': None, 'cuda': None} if args.rehearse else gpu()
    if not about: raise SystemExit(NO_GPU)
    path = place(args, about['device'], parser)
    report = about | {'rehearsal': args.rehearse, 'versions': versions(), 'date': time.strftime('%Y-%m-%d'), 'commit': commit(), 'seconds': {}, 'left_out': []}
    run_parts(parts, report, path, args.rehearse)
    return conclude(report, parts, path)


def conclude(report, parts, path):
    "The last lines; not 0 if anything failed, or nothing ran"
    failed, out = [e for e in report['left_out'] if e['failed']], [e for e in report['left_out'] if not e['failed']]
    for entry in out: print(f"left out: {entry['what']}: {entry['why']}")
    print(f"{path}: {report['device']}, {sum(report['seconds'].values()):.0f} s, {len(failed)} failed, {len(out)} left out")
    return int(bool(failed) or all(report[p.name] is None for p in parts))


if __name__ == '__main__': sys.exit(main())
