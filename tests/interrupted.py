"""A small run that other processes kill (see test_interruption.py)

    python interrupted.py FOLDER kills SEED N
        # FOLDER/whole, and further runs that are killed with -9 at N random moments in all
    python interrupted.py FOLDER operations K K ...
        # a run for each K, which dies before the K-th file operation of saving

All that were interrupted go on until they are done. Everything is imported and the rows are
prepared once, and every attempt is a fork, so that ten attempts do not cost ten starts of torch.
"""

import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

os.environ['HF_HUB_OFFLINE'] = '1'
sys.path.insert(0, str(Path(__file__).parent))

import torch

torch.set_num_threads(1)  # no thread pool: it would not survive the fork

from datasets import disable_progress_bars
from helpers import one_tokenizer, tiny, word_task
from transformers import set_seed

import lopa.train.loop
from lopa.model import get_prompt_model
from lopa.prompts import PromptConfig
from lopa.train import Execution, Recipe

disable_progress_bars()
STEPS = 20
TOKENIZER = one_tokenizer()


def model():
    "A tuned encoder, and dropout in it and in the heads"
    set_seed(3)
    base = tiny(vocab_size=len(TOKENIZER), max_position_embeddings=80, attention_dropout=0.1)
    size = dict(num_virtual_tokens=3, rank=2, head_width=8)
    reads = dict(encoder_name_or_path='self', train_encoder=True)
    return get_prompt_model(base, PromptConfig('lopa', **size, **reads))


PREPARED = lopa.train.loop.training_data(model(), word_task())
lopa.train.loop.training_data = lambda *_: PREPARED


def run(folder):
    "Four epochs, a look at validation every fifth step, a checkpoint after every second"
    mine = model()
    plan = Recipe(
        mine.adapter_config,
        prompt_lr=0.05,
        head_lr=0.01,
        encoder_lr=1e-3,
        steps=STEPS,
        eval_steps=5,
        eval_batch_size=8,
    )
    return lopa.train.loop.train(
        mine,
        word_task(),
        plan,
        folder,
        seed=5,
        progress=False,
        resume=True,
        execution=Execution(save_steps=2, gradient_accumulation_steps=2),
    )


def attempt(do, kill_after=None):
    "Fork, do it, perhaps kill it; True if it came to its end"
    if not (child := os.fork()):
        try:
            do()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
        raise SystemExit('an attempt failed by itself')
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


WRITES = 'os.rename', 'os.remove', 'os.mkdir', 'os.rmdir', 'shutil.rmtree'


def writes(event, args):
    "Is this an operation that changes a file or folder?"
    opened = event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wxa+')
    return opened or event in WRITES


def dying(folder, k):
    "Run, and die before the k-th operation on a file in the folder"
    left = [k]

    def look(event, args):
        if not writes(event, args) or not str(args[0]).startswith(str(folder)):
            return
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    sys.addaudithook(look)
    run(folder)
    print('file operations:', k - left[0], file=sys.stderr)


def interrupt(folder, n, seed):
    "Kill runs at n random moments; one that comes to its end makes room for the next"
    chance = random.Random(seed)
    start = time.perf_counter()
    attempt(partial(run, folder / 'whole'))
    whole = time.perf_counter() - start
    killed, runs = 0, 1
    while killed < n:
        moment = chance.uniform(0.1, 0.9) * whole
        if not attempt(partial(run, folder / str(runs)), moment):
            killed += 1
        else:
            runs += 1
            whole = moment  # it had come to its end: the first run was slow
    attempt(partial(run, folder / str(runs)))
    print(killed, runs)


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    what, *rest = sys.argv[2:]
    if what == 'kills':
        interrupt(folder, int(rest[1]), int(rest[0]))
    if what == 'operations':
        for k in map(int, rest):
            died = not attempt(partial(dying, folder / f'operation-{k}', k))
            attempt(partial(run, folder / f'operation-{k}'))
            print(died)
