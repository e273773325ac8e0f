"""What is inside the soft prompts of trained LoPAs, in results/inside.json: how far gates move, and, of the usual one, singular values and gates

    python -m tools.inside                         # trains with the sweep's seed 0 (some minutes on a CPU), or goes on with it

Rotten Tomatoes comes from a package under MIT's licence, so the three sentences may stand in the file.
"""

import json
from pathlib import Path

import torch

from lopa.ablate import experiment
from lopa.ablate.experiments import file_name, identity
from lopa.ablate.runs import cut, train_one
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
OTHERS = {
    'usual': {},
    'heads at 5e-3': {'head_lr': 0.005},
    'foundation model as encoder': {'encoder_name_or_path': 'self', 'encoder_pooling': 'mean'},
    '200 steps': {'steps': 200},
    '200 steps, heads at 5e-3': {'steps': 200, 'head_lr': 0.005},
}
SENTENCES = 100


def inside(overrides):
    "Train, or take what was trained: record, test sentences, their features' mean length, logits and soft prompts"
    about, folder = (
        experiment(overrides),
        ROOT / 'runs' / 'inside' / identity(experiment(overrides)),
    )
    result, task = train_one(about, folder, progress=True), cut(about)
    model = load_adapted(load_foundation_model(), folder / 'adapter')
    features = torch.tensor(prepare(model, task)[0]['test']['instance_features'][:SENTENCES])
    with torch.no_grad():
        logits, z = model.generator.logits(features), model.generator(features)
    return (
        result,
        task.splits['test']['text'][:SENTENCES],
        features.norm(dim=-1).mean().item(),
        logits.float(),
        z.float(),
    )


def movement(result, length, logits, z):
    "How far the gate is from one half, how much it differs between sentences, and how much of the prompt does"
    gates, centre = logits.sigmoid(), z.mean(0)
    numbers = {
        'feature_length': length,
        'gate_from_half': (gates - 0.5).abs().mean(),
        'gate_between_sentences': gates.std(0).mean(),
        'prompt_between_sentences': (z - centre).flatten(1).norm(dim=1).mean() / centre.norm(),
    }
    return {k: float(f'{float(v):.4g}') for k, v in numbers.items()} | {'test': result['test']}


def main():
    about, moved = experiment(USUAL), {}
    for name, change in OTHERS.items():
        result, sentences, *rest = inside(USUAL | change)
        moved[name] = movement(result, *rest)
        if name == 'usual':
            logits, z, three = *rest[1:], sentences[:3]
    values = lambda x: [
        [float(f'{v:.4g}') for v in row] for row in torch.linalg.svdvals(x).tolist()
    ]
    rounded = lambda x: [[round(v, 3) for v in row] for row in x.tolist()]
    found = {
        'of': f'{file_name(about)}.json',
        'id': identity(about),
        'experiment': USUAL,
        'moved': moved,
        'sentences': three,
        'gates': [rounded(gate) for gate in logits[:3].sigmoid()],
        'mean_gate': rounded(logits.sigmoid().mean(0)),
        'singular_values': {
            'UVᵀ': values(logits),
            'σ(UVᵀ)': values(logits.sigmoid()),
            'Z = Z_S ∘ σ(UVᵀ)': values(z),
        },
    }
    write_files(ROOT / 'results', {'inside.json': json.dumps(found, ensure_ascii=False).encode()})
    print(
        f'results/inside.json: {SENTENCES} sentences',
        *(f'{name}: {about}' for name, about in moved.items()),
        sep='\n',
    )


if __name__ == '__main__':
    main()
