"""Kill -9 at every file operation of saving: what is there afterwards is old or new, or made anew

Each attempt is a fork of this process that dies before its k-th operation on files, or half-way
through the file that it is writing, for k = 1, 2, … until it comes to its end.
"""

import json
import os
import shutil
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import example, prompted, tiny

import lopa.files
from lopa.assets import is_converted, list_files
from lopa.baselines import BaselineConfig, BaselineModel
from lopa.encoders import keep_features, stored_features
from lopa.evaluate import judging, read_predictions, write_predictions
from lopa.files import HIDDEN, mark, remove_folder, settle, write_files, write_whole
from lopa.tasks import Task
from lopa.train.loop import put_away
from lopa.train.resume import (
    begin_part,
    begin_run,
    check_saved,
    keep_only,
    last_checkpoint,
    make_ready,
    needed_files,
    put_in_place,
)

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='needs fork')


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    "A kill takes no power: what was written is there"
    monkeypatch.setattr(os, 'fsync', lambda descriptor: None)


WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OTHERS = 'os.rename', 'os.remove', 'os.rmdir', 'os.mkdir', 'os.link', 'os.symlink', 'os.truncate'


def dying(folder, k):
    "From now on this process dies before its k-th operation on files"
    left = [k]

    def step():
        left[0] -= 1
        return not left[0]

    def watch(event, args):
        here = str(args[0]).startswith(str(folder)) if args else False
        writes = event == 'open' and isinstance(args[2], int) and args[2] & WRITES and here
        if (writes or event in OTHERS) and step():
            os.kill(os.getpid(), signal.SIGKILL)

    def half(path, data, real=lopa.files.write_new):
        if step():
            path.write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        real(path, data)

    lopa.files.write_new = half
    sys.addaudithook(watch)


def came_to_its_end(folder, k, save):
    "Fork, save, and die at the k-th operation"
    if not (child := os.fork()):
        signal.alarm(60)  # a fork of a process with threads may wait for ever
        try:
            dying(folder, k)
            save(folder)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    assert not os.WIFSIGNALED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return not os.WIFSIGNALED(status)


def left_over(folder):
    return [path.name for path in folder.rglob('*') if HIDDEN.fullmatch(path.name)]


def states(place, begin, save, look, operations):
    "What `look` finds after each kill; and that a next save leaves the new state and nothing else"
    found = []
    begin(place / 'before')
    for k in range(1, 500):
        folder = shutil.copytree(place / 'before', place / 'now')
        ended = came_to_its_end(folder, k, save)
        found.append(look(folder))
        if k % 3 == 0 or ended:
            save(folder)
            assert look(folder) == 'new' and left_over(folder) == [], k
        shutil.rmtree(folder)
        if ended:
            break
    assert found[-1] == 'new' and found == sorted(found, reverse=True), found  # old …, new …
    assert len(found) > operations, found
    return set(found)


def test_files(tmp_path):
    names = 'a', 'b', 'c'

    def look(folder):
        settle(folder)
        [state] = {(folder / name).read_text() for name in names}
        return state

    write = lambda state: lambda folder: write_files(folder, dict.fromkeys(names, state))
    assert states(tmp_path, write(b'old'), write(b'new'), look, 15) == {'old', 'new'}


@pytest.mark.parametrize('there', [False, True], ids=['nothing', 'an older one'])
def test_a_folder(tmp_path, there):
    "A converted model: whole, or made anew"

    def write(state):
        def files(new):
            (new / 'config.json').write_text(json.dumps({'it': state}))
            (new / 'model.safetensors').write_text(state)
            list_files(new)

        return lambda folder: write_whole(folder / 'model', files)

    def look(folder):
        settle(folder)
        if not is_converted(folder / 'model'):
            assert not (folder / 'model').exists()
            return 'nothing'
        [state] = {json.loads((folder / 'model' / 'config.json').read_text())['it']}
        assert (folder / 'model' / 'model.safetensors').read_text() == state
        return state

    before = 'old' if there else 'nothing'
    begin = write('old') if there else lambda folder: folder.mkdir()
    assert states(tmp_path, begin, write('new'), look, 12) == {before, 'new'}


def test_a_folder_that_is_removed(tmp_path):
    "Whole, or gone"

    def begin(folder):
        mark(folder / 'ours')
        (folder / 'ours' / 'sub').mkdir()
        (folder / 'ours' / 'sub' / 'a').write_text('a')

    def look(folder):
        if not (folder / 'ours').exists():
            return 'new'
        assert (folder / 'ours' / 'sub' / 'a').exists() and lopa.files.is_marked(folder / 'ours')
        return 'old'

    def remove(folder):
        remove_folder(folder / 'ours')
        lopa.files.sweep_up(folder)

    assert states(tmp_path, begin, remove, look, 3) == {'old', 'new'}


@pytest.mark.parametrize('kind', ['adapter', 'baseline'])
@torch.no_grad()
def test_adapters(tmp_path, kind):
    "The old one or the new one, to the last bit"
    if kind == 'adapter':
        models = [prompted(tiny(), seed=seed) for seed in (0, 1)]
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            models = [BaselineModel(tiny(), BaselineConfig('lora', rank=rank)) for rank in (2, 3)]
            for model in models:
                for p in model.parameters():
                    if p.requires_grad:
                        p.normal_()
    load = type(models[0]).from_pretrained
    batch = example(models[0]) if kind == 'adapter' else {'input_ids': torch.tensor([[5, 6, 7]])}
    old, new = [model(**batch).logits for model in models]
    assert not torch.equal(old, new)

    def look(folder):
        logits = load(tiny(), folder)(**batch).logits
        assert torch.equal(logits, old) or torch.equal(logits, new)
        return 'old' if torch.equal(logits, old) else 'new'

    found = states(tmp_path, models[0].save_pretrained, models[1].save_pretrained, look, 12)
    assert found == {'old', 'new'}


@pytest.mark.parametrize('there', [False, True], ids=['nothing', 'older ones'])
def test_predictions(tmp_path, there):
    task = Task('toy', {}, '{a}', (' no', ' yes'))

    def write(right):
        lines = [
            {'answer': word, 'right': 'yes', 'correct': word == 'yes', 'row': {'a': 'x'}}
            for word in ['yes'] * right + ['no'] * (4 - right)
        ]
        return lambda folder: write_predictions(folder / 'p.jsonl', judging(task, 'test'), lines)

    def look(folder):
        if not (folder / 'p.jsonl').exists():
            return 'nothing'
        score = read_predictions(folder / 'p.jsonl')[0]['score']
        return {0.25: 'old', 0.75: 'new'}[score['accuracy']]

    begin = write(1) if there else lambda folder: folder.mkdir()
    before = 'old' if there else 'nothing'
    assert states(tmp_path, begin, write(3), look, 4) == {before, 'new'}


@pytest.mark.parametrize('there', [None, b'', b'random bytes'])
def test_a_feature_cache(tmp_path, monkeypatch, there):
    "The features, or none: then they are computed"
    features = torch.arange(6.0).reshape(3, 2)
    monkeypatch.setenv('LOPA_CACHE', str(tmp_path / 'now'))

    def begin(folder):
        (folder / 'features').mkdir(parents=True)
        if there is not None:
            (folder / 'features' / 'key.safetensors').write_bytes(there)

    def look(folder):
        found = stored_features('key', (3, 2))
        assert found is None or torch.equal(found, features)
        return 'nothing' if found is None else 'new'

    save = lambda folder: keep_features('key', features)
    assert states(tmp_path, begin, save, look, 4) == {'nothing', 'new'}


# --- runs ---

PLAN = dict.fromkeys(('task', 'method', 'config', 'recipe', 'base_model', 'data'), 'x') | {
    'seed': 0,
    'fingerprints': {},
}


def checkpoint(folder, step):
    "As a Trainer writes one"
    begin_part(folder, f'checkpoint-{step}')
    for name in needed_files():
        (folder / 'part' / f'checkpoint-{step}' / name).write_text(f'{name} {step}')
    put_in_place(folder, f'checkpoint-{step}', {'kept.json': b'{}'}, PLAN)
    keep_only(folder, {f'checkpoint-{step}'})


def step_that_goes_on(folder):
    newest = last_checkpoint(folder)
    check_saved(newest, needed_files(), PLAN)
    return int(newest.name.split('-')[1])


def test_a_checkpoint(tmp_path):
    "The run goes on from the old one or from the new one"

    def begin(folder):
        make_ready(folder, PLAN, afresh=True)
        checkpoint(folder, 2)

    def look(folder):
        return {2: 'old', 4: 'new'}[step_that_goes_on(folder)]

    def save(folder):
        make_ready(folder, PLAN, afresh=False)
        checkpoint(folder, 4)

    assert states(tmp_path, begin, save, look, 30) == {'old', 'new'}


def test_a_result(tmp_path):
    "The run has come to its end, or goes on from its last checkpoint"
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(wait_for_everyone=lambda: None),
        state=SimpleNamespace(global_step=4),
    )
    model = prompted(tiny())

    def begin(folder):
        make_ready(folder / 'checkpoints', PLAN, afresh=True)
        checkpoint(folder / 'checkpoints', 4)

    def look(folder):
        result = begin_run(folder, PLAN, resume=True)
        if result is None:
            assert step_that_goes_on(folder / 'checkpoints') == 4
            return 'old'
        return 'new' if result['answer'] == 42 else None

    def save(folder):
        r = SimpleNamespace(model=model, folder=folder)
        result = json.loads(json.dumps(PLAN)) | {'answer': 42, 'fingerprints': {}}
        if begin_run(folder, PLAN, resume=True) is None:
            put_away(trainer, r, PLAN, result)

    assert states(tmp_path, begin, save, look, 30) == {'old', 'new'}
