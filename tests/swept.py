"""Sweeps that are killed, and sweeps that share a folder (see test_sweep.py)

    python swept.py FOLDER SEED

FOLDER/whole: nobody disturbs it. FOLDER/alone-1, …: in one process, killed with -9 at five random
moments in all. FOLDER/pool-1, …: two workers, killed twice, the second time only their owner.
FOLDER/shared: two sweeps at the same time. Everything is imported once, and every attempt is a
fork; the workers of a pool import this file, so that experiments take as long there. Prints a line
for every sweep, then what was seen.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ |= {
    'HF_HUB_OFFLINE': '1',
    'HF_DATASETS_DISABLE_PROGRESS_BARS': '1',
    'HF_HUB_DISABLE_PROGRESS_BARS': '1',
}
sys.path.insert(0, str(Path(__file__).parent))

import psutil
import torch

torch.set_num_threads(1)  # no thread pool: it would not survive the fork

import lopa.ablate.runs
from lopa.ablate import make_executor
from lopa.train import Execution

FOLDER = Path(sys.argv[1])
score_one, train_one = lopa.ablate.runs.score_one, lopa.ablate.runs.train_one


def told(do, slower):
    "Carry an experiment out slowly, and say so in a log"

    def carry_out(about, *args, **how):
        with open(FOLDER / 'log', 'a') as log:
            log.write(f'{lopa.ablate.runs.file_name(about)}\n')
        time.sleep(slower)
        return do(about, *args, **how)

    return carry_out


lopa.ablate.runs.score_one, lopa.ablate.runs.train_one = told(score_one, 0.15), told(train_one, 0)


def grid():
    "Two short trainings of a tiny model, and four that train nothing"
    few = {'train_rows': 24, 'validation_rows': 8, 'test_rows': 16}
    return [
        {
            'method': 'pt',
            'base_model': str(FOLDER / 'model'),
            'seed': [0, 1],
            'steps': 6,
            'batch_size': 4,
            'num_virtual_tokens': 3,
            **few,
        },
        {'method': 'majority', 'train_rows': [20, 30, 40, 50], 'test_rows': 100},
    ]


def sweep(name, workers=0):
    "A checkpoint after every step"
    how = dict(progress=False, execution=Execution(save_steps=1))
    if not workers:
        return lopa.ablate.runs.sweep(grid(), FOLDER / name, **how)
    with make_executor('processes', workers) as pool:
        return lopa.ablate.runs.sweep(grid(), FOLDER / name, pool, **how)


def begun(name, workers=0):
    "A fork in a process group of its own that sweeps, prints its report, and ends"
    if child := os.fork():
        return child
    os.setpgid(0, 0)
    torch.set_num_threads(
        1
    )  # mends torch's pool after the fork, before the loader's threads run for it at the same time
    try:
        print(json.dumps({'folder': name} | sweep(name, workers)), flush=True)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ended(child):
    "Wait for it; True if it came to its end, False if it was killed"
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit('an attempt failed by itself')
    return os.WIFEXITED(status)


def lines():
    return len((FOLDER / 'log').read_text().splitlines()) if (FOLDER / 'log').exists() else 0


def finished(name):
    return {str(p): p.stat().st_mtime_ns for p in (FOLDER / name).glob('*.json')}


def killed_after(child, name, experiments, results, seconds, group):
    """Kill it, alone or with its workers; True if it came to its end before

    The moment: so long after it began so many experiments and so many results were there.
    """
    enough = lines() + experiments
    while (lines() < enough or len(finished(name)) < results) and not os.waitid(
        os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
    ):
        time.sleep(0.01)
    time.sleep(seconds)
    (os.killpg if group else os.kill)(child, signal.SIGKILL)
    return ended(child)


def outlives(group, seconds=20):
    "Is a process of this group still there after so long?"

    def there(p):
        try:
            return os.getpgid(p.pid) == group and p.status() != psutil.STATUS_ZOMBIE
        except (OSError, psutil.Error):
            return False

    deadline = time.time() + seconds
    while left := any(map(there, psutil.process_iter())):
        if time.time() > deadline:
            break
        time.sleep(0.1)
    return left


def interrupt(kind, n, workers, chance, whole):
    """Kill sweeps at n random moments, the last one with a result there

    One that comes to its end makes room for the next. Which results were there when, and were they
    touched again?
    """
    killed, runs, seen, left = 0, 1, {}, 0
    while killed < n:
        child = begun(f'{kind}-{runs}', workers)
        over = killed_after(
            child,
            f'{kind}-{runs}',
            chance.randint(1, 2),
            int(killed == n - 1),
            chance.uniform(0, 0.15) * whole,
            group=not (workers and killed),
        )
        left += outlives(child)
        seen = finished(f'{kind}-{runs}') | seen
        killed, runs = killed + (not over), runs + over
    ended(begun(f'{kind}-{runs}', workers))
    now = {k: v for i in range(runs) for k, v in finished(f'{kind}-{i + 1}').items()}
    return {
        'runs': runs,
        'kept': len(seen),
        'touched': [k for k in seen if seen[k] != now[k]],
        'left': left,
    }


if __name__ == '__main__':
    from helpers import one_tokenizer, tiny

    tokenizer, chance = one_tokenizer(), random.Random(int(sys.argv[2]))
    tokenizer.save_pretrained(FOLDER / 'model')
    tiny(vocab_size=len(tokenizer), max_position_embeddings=256).save_pretrained(FOLDER / 'model')
    start = time.perf_counter()
    ended(begun('whole'))
    whole, before = time.perf_counter() - start, lines()
    for child in [begun('shared'), begun('shared')]:
        ended(child)
    print(
        json.dumps(
            {
                'shared': lines() - before,
                **{
                    kind: interrupt(kind, n, workers, chance, whole)
                    for kind, n, workers in [('alone', 5, 0), ('pool', 2, 2)]
                },
            }
        )
    )
