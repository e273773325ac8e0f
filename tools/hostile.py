"""Every hostile program on every rung, as root and as an ordinary user: results/sandbox.json

    python -m tools.hostile            # prints the table (some minutes)
    python -m tools.hostile --write    # and writes the file, which the notebook of the ladder shows

The programs are those of tests/hostile.py (which reach for what is not theirs) and
tests/hostile_runs.py (which stay, or take too much memory). Run as root, to have both users.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tests'))

from hostile import REACHES, USER, Victim, as_user, ordinary_python, several
from hostile_runs import has_held, new_mark, programs

from lopa.files import write_files
from lopa.sandbox import GAPS, GAPS_AS_YOURSELF, LADDER, nobody, run_program, why_not

RESULTS = ROOT / 'results' / 'sandbox.json'


def runs_of(marks):
    "Name → (gap or None, program, limits): what is run once on each rung for each user"
    return {name: programs(mark)[name] for name, mark in marks.items()}


def as_root(jobs):
    "The same as `as_user`, in this process"
    done = {}
    for name, rung, source, limits in jobs:
        needs = {'timeout': 20, **limits}
        o = run_program(source, rung=rung, allow_weak_isolation=True, **needs)
        done[name] = o.status, repr(o.value), o.stderr
    return done


def column(rung, user):
    "All programs on one rung, by one user: name → what came of it"
    with tempfile.TemporaryDirectory(dir='/tmp', prefix='hostile-') as folder:
        os.chmod(folder, 0o777)
        marks = {name: new_mark() for name in programs('')}
        with Victim(folder, user) as victim:
            before = victim.state()
            runs = runs_of(marks)
            jobs = [(name, rung, source, limits) for name, (_, source, limits) in runs.items()]
            jobs.append(('reaches', rung, several(REACHES, victim.known), {}))
            done = as_user(jobs, folder, user) if user else as_root(jobs)
            came = {
                name: verdict(rung, user, runs[name][0], marks[name], *done[name]) for name in runs
            }
            came |= reached(rung, done['reaches'])
            unharmed = rung == 'child' or victim.state() == before
            came['reaches: the victim is as it was'] = 'held' if unharmed else 'OPEN'
    return came


def listed(rung, user):
    "Gaps of a rung, for a user"
    as_yourself = user or nobody() is None
    return {**GAPS[rung], **(GAPS_AS_YOURSELF[rung] if as_yourself else {})}


def verdict(rung, user, gap, mark, status, value, _errors):
    "Did the rung hold?"
    if has_held(mark, status, value.strip("'")):
        return 'held'
    return f'gap: {gap}' if gap in listed(rung, user) else 'OPEN'


def reached(rung, done):
    "The verdicts on programs that reach for what is not theirs"
    status, value, errors = done
    if status != 'ok':
        return {f'reaches: {name}': f'OPEN ({status}: {errors[-80:]})' for name in REACHES}
    came = eval(value, {})
    gap = 'gap: calls' if 'calls' in GAPS[rung] else 'OPEN'
    if rung == 'bubblewrap':
        came.pop('a signal to everybody')  # everybody in there is itself; the victim will tell
    return {f'reaches: {name}': gap if came.get(name) == 'DONE' else 'held' for name in REACHES}


def all_columns():
    "(rung, whose) → what came of each program, or why none was run"
    users = {'root': None, 'an ordinary user': USER} if os.geteuid() == 0 else {'yourself': None}
    found = {}
    for rung in LADDER:
        for whose, user in users.items():
            why = why_not(rung)
            if user and not ordinary_python():
                why = 'no Python that an ordinary user can start'
            found[rung, whose] = why or column(rung, user)
            print(rung, whose, 'done', file=sys.stderr)
    return found


def machine():
    "What it ran on"
    bwrap = subprocess.run(['bwrap', '--version'], capture_output=True, text=True).stdout.strip()
    python = platform.python_version()
    system = f'{platform.system()} {platform.release()}'
    return dict(system=system, machine=platform.machine(), python=python, bubblewrap=bwrap)


def main():
    warnings.simplefilter('ignore')
    found = all_columns()
    names = [f'{rung}, {whose}' for rung, whose in found]
    programs_run = next(came for came in found.values() if isinstance(came, dict))
    rows = {}
    for program in programs_run:
        came = [c[program] if isinstance(c, dict) else f'not run: {c}' for c in found.values()]
        rows[program] = came
        print(f'{program:60}', *(f'{c:14}' for c in came), sep=' ')
    about = 'Hostile programs on every rung (Written by lopa, python -m tools.hostile)'
    if '--write' in sys.argv:
        text = json.dumps(dict(about=about, ran_on=machine(), columns=names, rows=rows), indent=1)
        write_files(RESULTS.parent, {RESULTS.name: f'{text}\n'.encode()})
    return any('OPEN' in c for came in rows.values() for c in came)


if __name__ == '__main__':
    sys.exit(main())
