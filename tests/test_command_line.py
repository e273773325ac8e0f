"The command line: one sentence for whatever goes wrong, and nothing written or deleted"

import itertools
import json
import os
import random
import shutil
import subprocess
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


def test_no_results_no_table(lopa):
    "A table without a line would take the place of an earlier one"
    status, out, _ = lopa('results', 'folder', '--csv', 'table.csv')
    assert status == 1 and out.startswith('no results\n')


# --- names ---

NAMES = [
    'train --task {}',
    'train --method {}',
    'train --variant {}',
    'train --dtype {}',
    'train --attn-implementation {}',
    'train --report-to {}',
    'train --base-model {}',
    'train --base-model model --encoder {}',
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
    if not name and call in ('{}', 'train --{}', 'train {}'):
        pytest.skip('means nothing, or something else')
    refused(lopa, [part.replace('{}', name) for part in call.split()])


# --- models, adapters, files ---

WHOLE = {
    'an encoder as foundation model': 'bench --base-model encoder',
    'a folder without weights': 'bench --base-model bare',
    'a folder without anything': 'bench --base-model folder',
    'a file as foundation model': 'bench --base-model file',
    'an adapter that is torn': 'evaluate --adapter torn',
    'answers that begin alike': 'train --base-model model --method pt --limit 40 --steps 2 --json',
    'texts that never end': 'train --base-model endless --method pt --task mbpp --limit 4 --json',
    'texts without an end': 'evaluate --base-model endless --task mbpp --limit 4 --json',
    'samples of classes': 'evaluate --samples 3 --temperature 0.5',
    'a huge batch in plan': f'plan --base-model model --batch-size {2**20} --length {2**20}',
    'a huge batch in bench': f'bench --base-model model --batch-size {2**20} --length 50',
    'rows longer than the model': 'bench --base-model model --length 1000',
    'sizes with a batch': 'bench --sizes tiny --batch-size 3',
    'an encoder where none is used': 'plan --method pt --encoder encoder',
    'passes that do not divide': 'plan --batch-size 8 --gradient-accumulation-steps 3 --length 9',
    'a damaged result': 'results run/result.json',
    'no command that exists': 'trian',
}


@pytest.mark.parametrize('args', WHOLE.values(), ids=WHOLE)
def test_refused(lopa, args):
    refused(lopa, args.split())


# --- where it runs ---

LINE = [sys.executable, '-m', 'lopa']
FEW = 'plan', '--length', '9', '--base-model', 'nowhere-to-be-found'


def ran(world, *args, cwd=None, **changes):
    "The command in a process of its own; None takes a variable away"
    env = os.environ | {'HF_HUB_OFFLINE': '1', 'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'}
    env = {k: v for k, v in (env | changes).items() if v is not None}
    return subprocess.run([*LINE, *args], cwd=world, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    'changes',
    [
        {'HOME': None, 'LOPA_DATA': FAR, 'LOPA_CACHE': FAR},
        {'HOME': FAR, 'HF_HOME': None, 'LOPA_CACHE': None},
    ],
    ids=str,
)
def test_surroundings(world, changes):
    done = ran(world, *FEW, **changes)
    assert done.stdout == ''
    one_line(done.returncode, done.stderr, 'nowhere-to-be-found')


def test_modules_are_commands(world):
    "python -m lopa and python -m lopa.cli"
    for module in 'lopa', 'lopa.cli':
        call = [sys.executable, '-m', module, 'trian']
        env = os.environ | {'PYTHONPATH': str(root)}
        done = subprocess.run(call, cwd=world, env=env, capture_output=True, text=True)
        assert done.returncode == 2 and "'trian'" in done.stderr


def test_nobody_reads_the_output(world):
    "A closed pipe is quiet, a closed stream too, a full disk is told"
    env = os.environ | {'PYTHONPATH': str(root)}
    for shell in '{} --help | true', '{} --help >&-':
        call = shell.format(' '.join(LINE))
        done = subprocess.run(call, shell=True, cwd=world, env=env, capture_output=True, text=True)
        assert done.stderr == '', shell
    done = subprocess.run(
        f'{" ".join(LINE)} --help > /dev/full',
        shell=True,
        cwd=world,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    one_line(done.returncode, done.stderr)


# --- what nobody foresaw ---


def broken(error):
    "A command that ends in this way"

    def command(*args, **kwargs):
        raise error

    return command


@pytest.mark.parametrize(
    'error,status,mention',
    [
        (KeyError('x'), 1, 'KeyError'),
        (TypeError('a\nb'), 1, 'TypeError (a b)'),
        (AssertionError(), 1, 'AssertionError'),
        (MemoryError(), 1, 'not enough memory'),
        (torch.OutOfMemoryError('CUDA out of memory'), 1, 'not enough memory'),
        (json.JSONDecodeError('Expecting value', '', 0), 1, 'JSONDecodeError'),
        (OSError(28, 'No space left on device', 'result.json'), 1, 'result.json: no space left'),
        (PermissionError(13, 'Permission denied', 'a/b'), 2, 'a/b: permission denied'),
        (ModuleNotFoundError("No module named 'ray'", name='ray'), 2, "'ray'"),
    ],
    ids=repr,
)
def test_the_last_resort(lopa, monkeypatch, error, status, mention):
    monkeypatch.setattr('lopa.cli.app', broken(error))
    found, out, err = lopa('plan')
    assert found == status and out == ''
    one_line(found, err, mention)


def test_a_bug_says_what_to_report(lopa, monkeypatch):
    monkeypatch.setattr('lopa.cli.app', broken(KeyError('x')))
    monkeypatch.setattr('lopa.cli.address', lambda: 'https://example.org/lopa')
    said = refused(lopa, ['plan'], 'https://example.org/lopa')
    assert 'lopa plan' in said and 'LOPA_TRACEBACK=1' in said and cli.lopa.__version__ in said


def test_tracebacks_on_demand(lopa, monkeypatch):
    monkeypatch.setattr('lopa.cli.app', broken(KeyError('x')))
    monkeypatch.setenv('LOPA_TRACEBACK', '1')
    monkeypatch.setattr(sys, 'argv', ['lopa', 'plan'])
    with pytest.raises(KeyError):
        cli.main()


def test_control_c(lopa, monkeypatch):
    "One line, as a shell counts it; anywhere"
    for where in 'lopa.cli.app', 'lopa.plan.plan_run':
        with monkeypatch.context() as patch:
            patch.setattr(where, broken(KeyboardInterrupt()))
            assert lopa('plan', '--length', '9') == (130, '', 'lopa: interrupted.\n')


def test_warnings_are_lines(lopa, monkeypatch, capfd):
    "Ours is a line, shown once; those of others stay away"

    def command(**kwargs):
        import warnings

        exec(compile('warnings.warn("ours")\n' * 2, f'{cli.HERE}/x.py', 'exec'))
        warnings.warn('of others', stacklevel=1)

    monkeypatch.setattr('lopa.cli.app', command)
    assert lopa('plan') == (0, '', 'lopa: warning: ours\n')


# --- at random ---

OPTIONS = {
    'train': 'task method variant seed steps batch-size encoder output-dir save-steps bits dtype '
    'attn-implementation base-model data-dir limit report-to',
    'evaluate': 'adapter task split predictions samples temperature top-p seed base-model limit',
    'plan': 'task method variant gpu batch-size encoder bits length base-model data-dir',
    'bench': 'rounds batch-size length base-model sizes json-file',
    'score': '',
    'sweep': 'out executor workers',
    'results': 'csv',
    'gallery': 'results out',
}
VALUES = ['', '0', '-1', HUGE, 'inf', 'nan', '1e9', 'gone', 'file', 'folder', 'fifo', 'device']
VALUES += ['nowhere', FAR, 'deep.json', 'bytes.json', '\n', '\udcff', 'x' * 300, '../..', '{}']


def drawn(seed):
    "A command line with a few options, at least one of them wrong in any case"
    rng = random.Random(seed)
    command = rng.choice(list(OPTIONS))
    known = OPTIONS[command].split()
    asked = rng.sample(known, min(len(known), rng.randint(1, 4)))
    args = [f'--{name}={rng.choice(VALUES)}' for name in asked]
    if command in ('score', 'sweep', 'results'):
        args.append(rng.choice(VALUES))
    never = {'train': '--task=gpt-9', 'evaluate': '--split=gpt-9', 'plan': '--gpu=gpt-9'}
    never |= {'bench': '--sizes=gpt-9', 'gallery': '--results=gone'}
    return [command, *args, *([never[command]] if command in never else [])]


@pytest.mark.parametrize('seed', range(int(os.environ.get('LOPA_FUZZ', 40))))
def test_at_random(lopa, seed):
    status, out, err = lopa(*drawn(seed))
    assert status in (1, 2) and 'Traceback' not in out + err
    if err:
        one_line(status, err)
    else:
        assert out.startswith('no results')
