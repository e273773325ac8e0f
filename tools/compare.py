"""Fill results/rotten_tomatoes with the runs behind nbs/tutorials/3_methods_compared.ipynb

    python -m tools.compare                      # every run that is missing: some hours on 2 cores
    python -m tools.compare lora-tuned lopa-suffix
    python -m tools.compare --search             # the small search by which the tuned rates were found
    python -m tools.compare --search lora
    python -m tools.compare --explain            # LoPA's paper recipe with one thing taken away

A run that is there is not run again; two terminals may work on different rows (OMP_NUM_THREADS=1 for each).
Each JSON is what `lopa.train.train` returns. Here the validation split is its first 400 sentences.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import set_seed

from lopa.assets import load_foundation_model
from lopa.baselines import adapt_model, load_adapted
from lopa.demo import majority_row, probe_row, zero_shot_row
from lopa.evaluate import prepare, score
from lopa.evaluate.predict import predict
from lopa.files import write_files
from lopa.tasks import choice_ids, load_task
from lopa.train import RECIPES, recipe, train

TASK, SEEDS, FOLDER = (
    'rotten_tomatoes',
    range(3),
    Path(__file__).resolve().parents[1] / 'results' / 'rotten_tomatoes',
)
ROWS = [(method, variant) for task, method, variant in RECIPES if task == TASK]
SEARCH = [  # (method, variant, rates), seed 0, judged on validation only
    *[('pt', 'tuned', dict(prompt_lr=lr)) for lr in (1e-2, 3e-2)],
    *[
        ('lopa', 'tuned', dict(prompt_lr=p, head_lr=h))
        for p, h in ((2e-2, 3e-4), (5e-2, 3e-4), (5e-2, 3e-3))
    ],
    ('lopa', 'suffix', dict(prompt_lr=5e-2, head_lr=3e-4)),
    *[('idpg', 'tuned', dict(prompt_lr=3e-2, head_lr=h)) for h in (1e-3, 5e-3)],
    ('idpg-phm', 'tuned', dict(prompt_lr=3e-2, head_lr=1e-3)),
    *[('dept', 'tuned', dict(prompt_lr=p, head_lr=1e-3)) for p in (1e-2, 3e-2)],
    ('lopa', 'tuned-encoder', dict(prompt_lr=5e-2, head_lr=3e-4, encoder_lr=3e-5)),
    *[('p-tuning', 'tuned', dict(prompt_lr=lr)) for lr in (1e-3, 5e-3)],
    *[('lora', 'tuned', dict(prompt_lr=lr)) for lr in (1e-3, 3e-3)],
    *[('prefix', 'tuned', dict(prompt_lr=lr)) for lr in (1e-2, 3e-2)],
    *[('full', 'tuned', dict(prompt_lr=lr)) for lr in (3e-5, 1e-4)],
]


def run(name, plan, seed, task, test=True):
    "One run, unless its JSON is there"
    path = FOLDER / f'{name}.json'
    if path.exists():
        return
    print(name, flush=True)
    base = load_foundation_model()
    set_seed(seed)
    folder = Path('runs') / 'compare' / Path(name).name
    result = train(adapt_model(base, plan.config), task, plan, folder, seed)
    if not test:
        result = {k: v for k, v in result.items() if k not in ('test', 'test_predictions')}
    write_files(path.parent, {path.name: json.dumps(result, indent=1).encode()})


def average(name, task):
    "The test score of a stored run when every sentence is given the average sentence's vector, unless its JSON is there"
    path, adapter = (
        FOLDER / 'explain' / f'{name}-average.json',
        Path('runs') / 'compare' / name / 'adapter',
    )
    if path.exists():
        return
    if not adapter.exists():
        raise SystemExit(
            f'{adapter} is missing: delete {FOLDER / name}.json and make the run again.'
        )
    model = load_adapted(load_foundation_model(), adapter)
    splits, collate = prepare(model, replace(task, splits={'test': task.splits['test']}))
    h = np.array(splits['test']['instance_features'][:]).mean(0)
    blind = (
        splits['test'].remove_columns('instance_features').map(lambda row: {'instance_features': h})
    )
    predicted = predict(
        model, blind, collate, choice_ids(task.verbalizer, collate.tokenizer)
    ).argmax(1)
    result = {
        'task': TASK,
        'method': 'lopa',
        'of': f'{name}.json',
        'what': 'every test sentence is given the average feature vector of the test sentences',
        'test': score(predicted, blind['label']),
        'test_predictions': ''.join(map(str, predicted)),
    }
    write_files(path.parent, {path.name: json.dumps(result, indent=1).encode()})


def baselines(task):
    "Majority class, zero-shot, encoder alone"
    base = load_foundation_model()
    for name, make in {
        'majority': lambda: majority_row(task),
        'zero-shot': lambda: zero_shot_row(base, task),
        'encoder-alone': lambda: probe_row('all-minilm-l6-v2', task, base.device),
    }.items():
        if not (FOLDER / f'{name}.json').exists():
            row = make()
            write_files(
                FOLDER,
                {
                    f'{name}.json': json.dumps(
                        {
                            'task': TASK,
                            'method': name,
                            'trainable_parameters': row.pop('parameters'),
                            'seconds': {'total': round(row.pop('seconds'), 1)},
                            'test': {k: v for k, v in row.items() if k != 'name'},
                        },
                        indent=1,
                    ).encode()
                },
            )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'rows', nargs='*', help='method-variant, or with --search a method; default: all'
    )
    parser.add_argument(
        '--search', action='store_true', help='run the search on the validation split'
    )
    parser.add_argument(
        '--explain', action='store_true', help="LoPA's paper recipe with one thing taken away"
    )
    args = parser.parse_args()
    task = load_task(TASK).limit(validation=400)
    if args.search:
        for method, variant, rates in SEARCH:
            label = method if variant == 'tuned' else f'{method}-{variant}'
            name = '-'.join(
                [
                    'search/' + label,
                    *(
                        f'{k.removesuffix("_lr")}{v:.0e}'.replace('e-0', 'e-')
                        for k, v in rates.items()
                    ),
                ]
            )
            if not args.rows or method in args.rows:
                run(name, recipe(TASK, method, variant, **rates), 0, task.limit(test=1), test=False)
        return
    if args.explain:  # what makes LoPA's paper recipe better than prompt tuning's?
        for seed in SEEDS:
            run(
                f'explain/lopa-paper-still-heads-seed{seed}',
                recipe(TASK, 'lopa', 'paper', head_lr=0.0),
                seed,
                task,
            )  # the gate keeps its first values
            average(f'lopa-paper-seed{seed}', task)
        return
    known = {f'{m}-{v}': (m, v) for m, v in ROWS}
    if wrong := set(args.rows) - set(known):
        parser.error(f'received {sorted(wrong)[0]!r}, expected one of {", ".join(known)}')
    if not args.rows:
        baselines(task)
    for row in args.rows or known:
        for seed in SEEDS:
            run(f'{row}-seed{seed}', recipe(TASK, *known[row]), seed, task)


if __name__ == '__main__':
    main()
