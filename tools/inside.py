"""What is inside the soft prompts of a trained LoPA: singular values of 100 test sentences and the gates of three, in results/inside.json

    python -m tools.inside                         # trains the sweep's LoPA with seed 0 (some minutes on a CPU), or goes on with it

Rotten Tomatoes comes from a package under MIT's licence, so the three sentences may stand in the file.
"""
import json
from pathlib import Path

import torch

from lopa.ablate import cut, train_one
from lopa.assets import load_foundation_model, write_files
from lopa.baselines import load_adapted
from lopa.experiments import experiment, file_name, identity
from lopa.predict import prepare

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = {'seed': 0, 'method': 'lopa', 'num_virtual_tokens': 10, 'steps': 50, 'validation_rows': 0, 'test_rows': 500}
SENTENCES = 100


def main():
    about, folder = experiment(OVERRIDES), ROOT/'runs'/'inside'
    record = train_one(about, folder, progress=True)
    model, task = load_adapted(load_foundation_model(), folder/'adapter'), cut(about)
    splits, _ = prepare(model, task)
    features = torch.tensor(splits['test']['instance_features'][:SENTENCES])
    with torch.no_grad(): logits, z = model.generator.logits(features), model.generator(features)
    values = lambda x: [[float(f'{v:.4g}') for v in row] for row in torch.linalg.svdvals(x.float()).tolist()]
    three = [0, 1, 2]
    gates = [[[round(v, 3) for v in row] for row in gate] for gate in logits.sigmoid()[three].tolist()]
    found = {'of': f'{file_name(about)}.json', 'id': identity(about), 'experiment': OVERRIDES, 'test': record['test'], 'sentences': task.splits['test']['text'][:3], 'gates': gates,
             'mean_gate': [[round(v, 3) for v in row] for row in logits.sigmoid().mean(0).tolist()],
             'singular_values': {'UVᵀ': values(logits), 'σ(UVᵀ)': values(logits.sigmoid()), 'Z = Z_S ∘ σ(UVᵀ)': values(z)}}
    write_files(ROOT/'results', {'inside.json': json.dumps(found, ensure_ascii=False).encode()})
    print(f"results/inside.json: {SENTENCES} sentences, test accuracy {record['test']['accuracy']:.3f}")


if __name__ == '__main__': main()
