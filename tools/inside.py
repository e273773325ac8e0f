"""What is inside the soft prompts of trained LoPAs, in results/inside.json

    python -m tools.inside    # trains with the sweep's seed 0 (minutes on a CPU), or goes on

It says how far gates move, and, of the usual LoPA, singular values and gates. Rotten Tomatoes
comes from a package under MIT's licence, so the three sentences may stand in the file.
"""

import json
from pathlib import Path

import torch

from lopa.ablate import cut, experiment, file_name, identity, train_one
from lopa.assets import load_foundation_model
from lopa.baselines import load_adapted
from lopa.evaluate import prepare
from lopa.files import write_files

ROOT = Path(__file__).resolve().parents[1]
USUAL = {
    'seed': 0,
    'method': 'lopa',
    'num_virtual_tokens': 10,
    'steps': 50,
    'validation_rows': 0,
    'test_rows': 500,
}
SELF = {'encoder_name_or_path': 'self', 'encoder_pooling': 'mean'}
OTHERS = {
    'usual': {},
    'heads at 5e-3': {'head_lr': 0.005},
    'foundation model as encoder': SELF,
    '200 steps': {'steps': 200},
    '200 steps, heads at 5e-3': {'steps': 200, 'head_lr': 0.005},
}  # name → what differs from the usual run
SENTENCES = 100


def short(number, digits=4):
    "A number with few digits, as it stands in the file"
    return float(f'{float(number):.{digits}g}')


def rounded(matrix):
    "A matrix with three decimals, as lists"
    return [[round(value, 3) for value in row] for row in matrix.tolist()]


def singular_values(matrices):
    "Singular values of each matrix, as lists"
    return [[short(value) for value in row] for row in torch.linalg.svdvals(matrices).tolist()]


def inside(overrides):
    "Train, or take what was trained: record, sentences, their features, logits and soft prompts"
    about = experiment(overrides)
    folder = ROOT / 'runs' / 'inside' / identity(about)
    result, task = train_one(about, folder, progress=True), cut(about)
    model = load_adapted(load_foundation_model(), folder / 'adapter')
    features = torch.tensor(prepare(model, task)[0]['test']['instance_features'][:SENTENCES])
    with torch.no_grad():
        logits, z = model.generator.logits(features), model.generator(features)
    sentences = task.splits['test']['text'][:SENTENCES]
    return result, sentences, features, logits.float(), z.float()


def movement(result, features, logits, z):
    "How far the gate is from one half, and how much it and the prompt differ between sentences"
    gates = logits.sigmoid()
    centre = z.mean(0)
    apart = (z - centre).flatten(1).norm(dim=1).mean() / centre.norm()
    numbers = {
        'feature_length': features.norm(dim=-1).mean().item(),
        'gate_from_half': (gates - 0.5).abs().mean(),
        'gate_between_sentences': gates.std(0).mean(),
        'prompt_between_sentences': apart,
    }
    return {name: short(number) for name, number in numbers.items()} | {'test': result['test']}


def pictures(sentences, logits, z):
    "Gates of three sentences, their mean, and singular values of all"
    gates = logits.sigmoid()
    matrices = {'UVᵀ': logits, 'σ(UVᵀ)': gates, 'Z = Z_S ∘ σ(UVᵀ)': z}
    return {
        'sentences': sentences[:3],
        'gates': [rounded(gate) for gate in gates[:3]],
        'mean_gate': rounded(gates.mean(0)),
        'singular_values': {name: singular_values(m) for name, m in matrices.items()},
    }


def main():
    about = experiment(USUAL)
    moved, shown = {}, {}
    for name, change in OTHERS.items():
        result, sentences, features, logits, z = inside(USUAL | change)
        moved[name] = movement(result, features, logits, z)
        if name == 'usual':
            shown = pictures(sentences, logits, z)
    found = {'of': f'{file_name(about)}.json', 'id': identity(about), 'experiment': USUAL}
    found |= {'moved': moved} | shown
    text = json.dumps(found, ensure_ascii=False).encode()
    write_files(ROOT / 'results', {'inside.json': text})
    print(f'results/inside.json: {SENTENCES} sentences')
    for name, numbers in moved.items():
        print(f'{name}: {numbers}')


if __name__ == '__main__':
    main()
