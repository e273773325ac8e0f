"""What LoPA's paper recipe scores when every sentence is given the average sentence's vector

    python -m tools.average              # seeds 0, 1, 2: some minutes each on a CPU, or goes on

This is no experiment of a grid: nothing else is trained. A trained adapter, that of the grid
`results/rotten_tomatoes.json` with `variant: paper`, is asked again with other vectors. So a
sweep cannot say it. The results stand in `results/rotten_tomatoes/explain`, beside the runs
whose heads stand still, which are experiments (`results/rotten_tomatoes-explain.json`).
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from lopa.ablate import cut, experiment, identity, train_one
from lopa.assets import load_foundation_model
from lopa.baselines import load_adapted
from lopa.evaluate import prepare, score
from lopa.evaluate.predict import predict
from lopa.files import write_files
from lopa.tasks import choice_ids

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'results' / 'rotten_tomatoes' / 'explain'
WHAT = 'every test sentence is given the average feature vector of the test sentences'


def trained(overrides):
    "Train an experiment, or take what was trained: the model, and its task"
    about = experiment(overrides)
    folder = ROOT / 'runs' / 'average' / identity(about)
    train_one(about, folder, progress=True)
    return load_adapted(load_foundation_model(), folder / 'adapter'), cut(about)


def blind_answers(model, task):
    "Predicted classes of the test split, if every sentence has the same vector: `(n,)`"
    splits, collate = prepare(model, replace(task, splits={'test': task.splits['test']}))
    average = np.array(splits['test']['instance_features'][:]).mean(0)
    blind = splits['test'].remove_columns('instance_features')
    blind = blind.map(lambda row: {'instance_features': average})
    choices = choice_ids(task.verbalizer, collate.tokenizer)
    return predict(model, blind, collate, choices).argmax(1)


def write(seed):
    "The record of one seed, unless its JSON is there"
    name = f'lopa-paper-seed{seed}'
    path = FOLDER / f'{name}-average.json'
    if path.exists():
        return
    model, task = trained({'seed': seed, 'method': 'lopa', 'variant': 'paper'})
    predicted = blind_answers(model, task)
    about = {'task': task.name, 'method': 'lopa', 'of': f'{name}.json', 'what': WHAT}
    about['test'] = score(predicted, task.splits['test']['label'])
    about['test_predictions'] = ''.join(map(str, predicted))
    write_files(FOLDER, {path.name: json.dumps(about, indent=1).encode()})


if __name__ == '__main__':
    for seed in range(3):
        write(seed)
