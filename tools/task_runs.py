"""Fill results/TASK with one run of each method on tasks other than Rotten Tomatoes

    python -m tools.task_runs                      # RTE, CruxEval-O and HumanEval-IO-O: some hours on 2 cores
    python -m tools.task_runs rte --seeds 3
    python -m tools.task_runs humaneval-io-o

A run whose JSON is there is not run again. The budget is small, since it has to fit on a laptop: what is cut stands in BUDGET and in
every JSON. Predictions hold rows of the data set, so they are kept only where its licence is that of a package (HumanEval: MIT).
"""

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

from transformers import set_seed

from lopa.assets import load_foundation_model
from lopa.baselines import adapt_model
from lopa.demo import majority_row, probe_row
from lopa.evaluate import evaluate, judging, score_lines
from lopa.evaluate.judges import judge_all
from lopa.files import write_files
from lopa.prompts import PromptConfig
from lopa.tasks import load_task
from lopa.train import environment, recipe, train

ROOT = Path(__file__).resolve().parents[1] / 'results'
BUDGET = {  # task → rows kept of each split, and what is changed in the recipe
    'humaneval-io-o': (dict(test=80), dict(steps=30, batch_size=4, eval_batch_size=8)),
    'cruxeval-o': (dict(test=80), dict(steps=20, batch_size=4, eval_batch_size=8)),
    'rte': (dict(validation=50), dict(steps=15)),
}
METHODS = ['pt', 'lopa', 'lora']


def write(task, name, about):
    write_files(
        ROOT / task.name,
        {
            f'{name}.json': json.dumps(
                {'task': task.name, 'source': task.source, 'method': name, **about}, indent=1
            ).encode()
        },
    )


def commonest(task):
    "Always the answer that is commonest in training"
    if task.verbalizer:
        return {
            k: v
            for k, v in majority_row(task).items()
            if k not in ('name', 'parameters', 'seconds')
        }
    answer = Counter(task.target.format(**r) for r in task.splits['train']).most_common(1)[0][0]
    rows = task.splits['test']
    judged = judge_all(task, [[answer]] * len(rows), rows, progress=False)
    lines = [{'correct': [v['correct'] for v in vs]} for vs in judged]
    return score_lines(judging(task, 'test'), lines) | {'answer': answer.strip()}


def bare(task):
    "The foundation model with a prompt of length zero"
    model = adapt_model(load_foundation_model(), PromptConfig('pt', num_virtual_tokens=0))
    score, _ = evaluate(model, task, batch_size=8, predictions=predictions(task, 'zero-shot'))
    return score, environment(model.device)


def predictions(task, name):
    return ROOT / task.name / f'{name}.jsonl' if task.name.startswith('humaneval') else None


def run(task, method, seed, changes):
    "One method, trained and tested, unless its JSON is there"
    name = f'{method}-tuned-seed{seed}'
    if (ROOT / task.name / f'{name}.json').exists():
        return
    print(task.name, name, flush=True)
    plan, folder = (
        recipe(task.name, method, 'tuned', **changes),
        Path('runs') / 'tasks' / task.name / name,
    )
    base = load_foundation_model()
    set_seed(seed)
    train(adapt_model(base, plan.config), task, plan, folder, seed)
    (ROOT / task.name).mkdir(exist_ok=True)
    shutil.copy(folder / 'result.json', ROOT / task.name / f'{name}.json')
    if kept := predictions(task, name):
        shutil.copy(folder / 'predictions.jsonl', kept)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('tasks', nargs='*', help=f'of {", ".join(BUDGET)}; default: all')
    parser.add_argument('--seeds', type=int, default=1)
    args = parser.parse_args()
    if wrong := set(args.tasks) - set(BUDGET):
        parser.error(f'received {sorted(wrong)[0]!r}, expected one of {", ".join(BUDGET)}')
    for name in args.tasks or BUDGET:
        limits, changes = BUDGET[name]
        task = load_task(name).limit(**limits)
        there = lambda row: (ROOT / name / f'{row}.json').exists()
        if not there('majority'):
            write(task, 'majority', {'test': commonest(task)})
        if not there('zero-shot'):
            score, where = bare(task)
            write(task, 'zero-shot', {'test': score, **where})
        if task.verbalizer and not there('encoder-alone'):
            write(
                task,
                'encoder-alone',
                {
                    'test': {
                        k: v
                        for k, v in probe_row('all-minilm-l6-v2', task).items()
                        if k not in ('name', 'parameters', 'seconds')
                    }
                },
            )
    for seed in range(args.seeds):
        for name in args.tasks or BUDGET:
            limits, changes = BUDGET[name]
            for method in METHODS:
                run(load_task(name).limit(**limits), method, seed, changes)


if __name__ == '__main__':
    main()
