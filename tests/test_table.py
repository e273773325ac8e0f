"Every architecture, every law: right or refused, as results/architectures.json says"

import json
import re

import pytest
import torch
from architectures import ARCHITECTURES, FAMILIES, configuration, family, make

from tools import architectures as tool
from tools.laws import LAWS, MODELS, TOLERANCE, ask_law, ask_laws, length, longest, sentence

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::UserWarning')
FILE = json.loads(tool.FILE.read_text())
SHARE = 6  # of the other models, a test asks every sixth; `python -m tools.architectures` asks all
UPDATE = 'run `python -m tools.architectures --json-file results/architectures.json`'
ALWAYS = ['no prompt', 'LoPA']


def asked():
    "(architecture, model) of the cells that are tried here: each architecture and each model"
    for i, name in enumerate(ARCHITECTURES):
        for j, kind in enumerate(LAWS):
            if kind in ALWAYS or (i + j) % SHARE == 0:
                yield name, kind


def known(laws):
    "Law → `right`, or what a refusal says, but for its numbers"
    return {law: re.sub(r'[\d.]+', '#', cell.get('refused', 'right')) for law, cell in laws.items()}


def same_versions():
    "Was the file made with the installed versions?"
    return FILE['versions'] == tool.versions()


@pytest.mark.parametrize('name,kind', list(asked()))
def test_right_or_refused(name, kind):
    found = ask_laws(name, kind)
    neither = {law: cell for law, cell in found.items() if not {'right', 'refused'} & set(cell)}
    assert not neither
    if same_versions():
        stored = FILE['architectures'][name]['laws'][kind]
        assert known(found) == known(stored), f'The table is out of date: {UPDATE}.'


# --- the file ---


def test_the_file_knows_all():
    rows = FILE['architectures']
    assert list(rows) == list(ARCHITECTURES), UPDATE
    for name, row in rows.items():
        assert row['family'] == family(name) and row['class'] == ARCHITECTURES[name][0]
        assert {kind: list(laws) for kind, laws in row['laws'].items()} == {
            kind: list(laws) for kind, laws in LAWS.items()
        }, f'{name}: {UPDATE}'


def test_the_file_has_no_cell_that_is_neither():
    for name, kind, law, cell in tool.cells(FILE):
        ((verdict, what),) = cell.items()
        assert verdict in ('right', 'refused'), tool.line(name, kind, law, cell)
        if verdict == 'right':
            assert 0 <= what <= TOLERANCE
        else:
            assert '\n' not in what and what.endswith(('.', '?', '!'))


def test_at_least_sixty_can_have_a_prompt():
    laws = [row['laws'] for row in FILE['architectures'].values()]
    right = [
        all('right' in cell for law, cell in row['LoPA'].items() if law != 'generation')
        for row in laws
    ]
    assert sum(right) >= 60


def test_the_file_is_written_as_the_tool_writes_it(tmp_path):
    tool.write(FILE, tmp_path / 'again.json')
    assert (tmp_path / 'again.json').read_bytes() == tool.FILE.read_bytes()


# --- the makers ---


@pytest.mark.parametrize('name', ARCHITECTURES)
def test_makers(name):
    "The same model again, in evaluation mode and 32 bits, with no tensor of zeros"
    one, other = make(name), make(name)
    assert not one.training and one.name_or_path == f'tiny-{name}'
    for (key, weight), again in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, again) and weight.any(), key
        assert weight.dtype == torch.float32 and weight.requires_grad, key


def test_families_do_not_share_names():
    assert sum(map(len, FAMILIES.values())) == len(ARCHITECTURES)
    assert configuration('Llama').vocab_size == 64
    assert family('T5') == 'sequence-to-sequence' and family('BERT') == 'masked'


# --- the laws notice ---


def broken(model, change):
    "The same model, whose `forward` does one thing wrong"
    forward = model.forward

    def changed(**inputs):
        out = forward(**inputs)
        out.logits = change(out.logits, inputs)
        return out

    model.forward = changed
    return model


def sees_the_label(logits, inputs):
    "The last token of the input moves every logit"
    return logits + inputs['input_ids'][:, -1:, None]


def sees_the_padding(logits, inputs):
    "The width of the batch moves every logit"
    return logits * (1 + 0.01 * inputs['input_ids'].shape[1])


BREAKS = {
    'label': sees_the_label,
    'padding': sees_the_padding,
    'next token': sees_the_padding,
    'same logits': sees_the_padding,
    'generation': lambda logits, inputs: -logits,
    'reloaded': lambda logits, inputs: logits + 1,
    'padding, not a number': lambda logits, inputs: logits * torch.nan,
}


@pytest.mark.parametrize('wrong', BREAKS)
def test_the_laws_notice(wrong):
    law = wrong.partition(',')[0]
    kind = 'no prompt' if law == 'same logits' else 'LoPA'
    model = MODELS[kind](make('Llama'))
    check = LAWS[kind][law]
    assert set(ask_law(check, model, 'Llama')) == {'right'}
    assert set(ask_law(check, broken(model, BREAKS[wrong]), 'Llama')) == {'wrong'}


def test_the_law_of_lengths_notices(monkeypatch):
    "GPT-2 has 64 positions, and Mamba has no limit"
    assert longest('GPT-2') == 64 and longest('RoBERTa') == 63 and longest('Mamba') == 68
    model = MODELS['LoPA'](make('GPT-2'))
    assert length(model, 'GPT-2') == 0
    assert length(model, 'Mamba') == 0  # nothing is too long for it, and 64 are allowed
    shorter = MODELS['LoPA'](make('GPT-2', n_positions=59))
    assert length(shorter, 'GPT-2') == 1  # it refuses what the larger one can read


def test_only_our_own_sentences_are_refusals():
    "What transformers or PEFT say in passing is an error"

    def ours():
        from lopa import PromptConfig

        PromptConfig('nothing')

    def theirs():
        raise ValueError('Received nothing.')

    said = []
    for call in (ours, theirs):
        try:
            call()
        except ValueError as error:
            said.append(sentence(error))
    assert 'nothing' in said[0] and said[1] is None


# --- the program ---


def test_the_program(capsys, tmp_path):
    path = tmp_path / 'table.json'
    assert tool.main(['--only', 'Llama', '--json-file', str(path)]) == 0
    assert '1 architectures' in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert list(found['architectures']) == ['Llama'] and found['versions'] == tool.versions()


def test_the_program_knows_its_architectures(capsys):
    with pytest.raises(SystemExit):
        tool.main(['--only', 'Lama'])
    assert 'Lama' in capsys.readouterr().err
