"The command line: one sentence for whatever goes wrong, and nothing written or deleted"

import itertools
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import FEATURES, adapted, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lopa import cli

root = Path(__file__).resolve().parents[1]
HUGE = '9' * 30
FAR = '/proc/nowhere/x'  # not even root can write there


def entries(folder):
    "Whatever is in a folder, with sizes and times of change"
    found = {}
    for path in sorted(folder.rglob('*')):
        about = path.lstat()
        found[str(path)] = about.st_size, about.st_mtime_ns, about.st_mode
    return found


def word_tokenizer(folder, **special):
    "A hundred words, one token each"
    words = {'[PAD]': 0} | {f'w{i}': i for i in range(1, 100)}
    kind = Tokenizer(models.WordLevel(words, unk_token='[PAD]'))
    kind.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = dict(pad_token='[PAD]', **special)
    PreTrainedTokenizerFast(tokenizer_object=kind, **known).save_pretrained(folder)


def make_models(folder):
    "A tiny model that works, one without weights, one whose texts never end, and an encoder"
    for name in 'model', 'bare', 'endless':
        tiny().save_pretrained(folder / name)
        word_tokenizer(folder / name, **({} if name == 'endless' else {'eos_token': 'w1'}))
    (folder / 'bare' / 'model.safetensors').unlink()
    how = dict(num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=32)
    small = BertConfig(vocab_size=50, hidden_size=FEATURES, intermediate_size=16, **how)
    BertModel(small).save_pretrained(folder / 'encoder')
    word_tokenizer(folder / 'encoder')


def make_files(folder):
    "What one may find in a folder, and what one may not"
    (folder / 'folder').mkdir()
    (folder / 'folder' / 'note.txt').write_text('mine')
    (folder / 'file').write_text('mine')
    (folder / 'deep.json').write_text('[' * 100_000)
    (folder / 'grid.json').write_text('{"method": "majority"}')
    (folder / 'cut.json').write_text('{"rank": [1, ')
    (folder / 'bytes.json').write_bytes(b'\xff\xfe\x00')
    (folder / 'empty.json').touch()
    (folder / 'inf.json').write_text('{"steps": Infinity}')
    (folder / 'nested.jsonl').write_text('{"task": {"a": [1]}, "score": []}\n{"id": {}}\n[1]\n')
    os.mkfifo(folder / 'fifo')
    (folder / 'nowhere').symlink_to(folder / 'gone' / 'away')
    (folder / 'device').symlink_to('/dev/null')
    adapted('llama', 'pt').save_pretrained(folder / 'adapter')
    shutil.copytree(folder / 'adapter', folder / 'torn')
    (folder / 'torn' / 'adapter_config.json').write_text('{"method": [')
    (folder / 'run').mkdir()
    (folder / 'run' / 'result.json').write_text('{"schema": ')


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A folder to work in"
    folder = tmp_path_factory.mktemp('world')
    with torch.random.fork_rng():
        make_models(folder)
    make_files(folder)
    return folder


@pytest.fixture
def lopa(world, monkeypatch, capfd):
    "Call the command in that folder: exit status, output, complaints; nothing may change there"
    monkeypatch.chdir(world)
    monkeypatch.delenv('LOPA_TRACEBACK', raising=False)
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')

    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['lopa', *map(str, args)])
        before = entries(world)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capfd.readouterr()
        assert entries(world) == before, 'something was written or deleted'
        return end.value.code, said.out, said.err

    return call


def one_line(status, err, mention=''):
    "One sentence, after the usage if it is about the form of the command"
    assert 'Traceback' not in err and status in (1, 2), err
    if err.startswith('Usage: lopa'):
        usage, _, told = err.partition('\n\n')
        assert len(usage.splitlines()) == 2 and told.startswith('Error: ') and status == 2, err
    else:
        told = err
        assert told.startswith('lopa: ') and told.rstrip().endswith(('.', '?', '!')), err
    assert told.count('\n') == 1 and mention in told, err
    return told


def refused(lopa, args, mention=''):
    "The command says one sentence, and nothing else"
    status, out, err = lopa(*args)
    assert out == '', out
    return one_line(status, err, mention)


# --- numbers ---

COUNTS = {
    'train': 'steps batch-size save-steps gradient-accumulation-steps limit',
    'evaluate': 'samples limit',
    'bench': 'rounds batch-size length',
    'plan': 'batch-size gradient-accumulation-steps length',
    'sweep grid.json': 'workers',
    'figures': 'port',
}
NUMBERS = {
    'train': 'seed bits',
    'evaluate': 'seed temperature top-p',
    'plan': 'bits',
}


def numbers(table, values):
    "Every option with every value"
    for command, options in table.items():
        for option, value in itertools.product(options.split(), values):
            yield command.split(), f'--{option}', value


ODD = [
    *numbers(COUNTS, ['0', '-1', HUGE, 'inf', 'nan', '1.5', '']),
    *numbers(NUMBERS, ['-1', HUGE, 'inf', 'nan', 'two', '']),
]


@pytest.mark.parametrize('command,option,value', ODD, ids=lambda x: ' '.join(x) or '-')
def test_numbers(lopa, command, option, value):
    assert option in refused(lopa, [*command, f'{option}={value}'])


# --- paths ---

FOLDERS = {'train': '--output-dir', 'demo': '--output-dir', 'sweep grid.json': '--out'}
FOLDERS |= {'gallery --results .': '--out'}
FILES = {'evaluate': '--predictions', 'bench': '--json-file', 'results run': '--csv'}
READ = {
    'evaluate --adapter': 'folder file fifo device nowhere gone torn file/x empty.json',
    'train --data-dir': 'file fifo device nowhere gone file/x',
    'score': 'folder file fifo device nowhere gone nested.jsonl deep.json bytes.json empty.json',
    'sweep': 'folder file fifo device nowhere gone cut.json deep.json bytes.json inf.json',
    'gallery --results': 'file fifo device nowhere gone',
}
UNTOLD = ['', 'a\nb', 'a\x1b[2J', b'\xff\xfe'.decode(errors='surrogateescape'), 'x' * 300]
NO_FOLDER = [*UNTOLD, 'file', 'file/x', 'fifo', 'nowhere', 'device', FAR]
NO_FILE = [*UNTOLD, 'file', 'file/x', 'fifo', 'nowhere', 'device', FAR, 'folder', '.']


def places(table, values):
    "Every option with every place"
    for call, option in table.items():
        for value in values:
            yield [*call.split(), f'{option}={value}'], option


@pytest.mark.parametrize('args,option', [*places(FOLDERS, NO_FOLDER), *places(FILES, NO_FILE)])
def test_where_nothing_can_be_written(lopa, args, option):
    assert option in refused(lopa, args)


READS = [[*call.split(), name] for call, names in READ.items() for name in names.split()]
READS += [[*call.split(), text] for call in READ for text in UNTOLD]


@pytest.mark.parametrize('args', READS, ids=ascii)
def test_what_cannot_be_read(lopa, args):
    refused(lopa, args, '' if args[-1] in UNTOLD else args[-1])


@pytest.mark.parametrize('name', ['fifo', 'device', 'nowhere', 'gone', 'folder', 'run', 'file'])
def test_results_that_are_none(lopa, name):
    status, out, err = lopa('results', name)
    assert status in (1, 2)
    if err:
        assert out == ''
        one_line(status, err, name)
    else:
        assert out.startswith('no results\n') and 'Traceback' not in out


# --- names ---

NAMES = [
    'train --task {}',
    'train --method {}',
    'train --variant {}',
    'train --dtype {}',
    'train --attn-implementation {}',
    'train --report-to {}',
    'train --base-model {}',
    'train --encoder {}',
    'evaluate --task {}',
    'evaluate --split {}',
    'evaluate --base-model {}',
    'bench --sizes {}',
    'bench --sizes tiny,{}',
    'bench --base-model {}',
    'plan --task {}',
    'plan --method {}',
    'plan --variant {}',
    'plan --gpu {}',
    'plan --base-model {}',
    'sweep grid.json --executor {}',
    '{}',
    'train --{}',
    'train {}',
]


@pytest.mark.parametrize('name', ['gpt-9', '', 'a/b/c', '../x', 'ä b', '-'])
@pytest.mark.parametrize('call', NAMES)
def test_unknown_names(lopa, call, name):
    if not name and call in ('{}', 'train --{}', 'train --encoder {}', 'train {}'):
        pytest.skip('means nothing, or something else')
    refused(lopa, [part.replace('{}', name) for part in call.split()])
