"Adapters: what is saved comes back to the last bit; what is not an adapter is refused"

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import FEATURES, WIDTH, example, few, one_sentence, prompted, rows, shake, tiny
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save

import lopa.files
from lopa import PromptConfig, PromptModel
from lopa.adapter import CONFIG_FILE, WEIGHTS_FILE, read_adapter, seal
from lopa.gating import GATES

both = CONFIG_FILE, WEIGHTS_FILE


@pytest.fixture
def folder(llama, tmp_path):
    "An adapter that may be damaged"
    prompted(llama).save_pretrained(tmp_path / 'adapter')
    return tmp_path / 'adapter'


def contents(folder):
    return {p.name: p.read_bytes() for p in Path(folder).iterdir()}


def refused(base, folder, *mentions, error=ValueError):
    "Loading fails with one sentence, and neither the adapter nor the foundation model changes"
    files = contents(folder)
    weights = {k: v.clone() for k, v in base.state_dict().items()}
    with pytest.raises(error) as e:
        PromptModel.from_pretrained(base, folder)
    one_sentence(e.value, *mentions)
    assert contents(folder) == files
    assert all(torch.equal(v, weights[k]) for k, v in base.state_dict().items())


def rewrite(folder, about=None, state=None):
    "Replace contents and keep the mark right, as only someone who means it would"
    about = about or json.loads((folder / CONFIG_FILE).read_bytes())
    state = state or load_file(folder / WEIGHTS_FILE)
    text = json.dumps(seal(about, state), indent=2).encode()
    (folder / CONFIG_FILE).write_bytes(text)
    (folder / WEIGHTS_FILE).write_bytes(
        save(state, metadata={'config': hashlib.sha256(text).hexdigest()})
    )


# --- what is saved comes back ---


@torch.no_grad()
def test_identical_logits(model, tmp_path):
    "Every gate, and prompt tuning"
    model.save_pretrained(tmp_path)
    again = PromptModel.from_pretrained(model.base_model, tmp_path)
    batch = example(model, (3, 6))
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert not again.training
    assert sorted(contents(tmp_path)) == sorted(both)


@pytest.mark.parametrize('pooling', ['mean', 'cls', 'last', 'pooler'])
@pytest.mark.parametrize('tuned', [False, True])
@torch.no_grad()
def test_identical_logits_with_encoder(llama, encoder_folder, tmp_path, tuned, pooling):
    "A tuned encoder is in the adapter, a frozen one is named in it"
    model = prompted(
        llama, encoder_name_or_path=encoder_folder, train_encoder=tuned, encoder_pooling=pooling
    )
    if tuned:
        shake(model.encoder, 0.1)
    model.save_pretrained(tmp_path)
    assert any(k.startswith('encoder.') for k in read_adapter(tmp_path)[1]) == tuned
    again = PromptModel.from_pretrained(llama, tmp_path)
    ids, _ = rows((5, 5))
    batch = dict(
        input_ids=torch.stack(ids),
        instance_input_ids=torch.tensor([[3, 4, 5, 0], [6, 7, 8, 9]]),
        instance_attention_mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
    )
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert again.adapter_config.feature_width == FEATURES


@few
@given(
    gate=st.sampled_from(sorted(GATES)),
    num_virtual_tokens=st.integers(0, 6),
    rank=st.integers(1, 5),
    head_width=st.integers(1, 6),
    feature_width=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@torch.no_grad()
def test_saving_loses_nothing(llama, seed, **config):
    "Save, then load: the same configuration and the same tensors, whatever the sizes"
    model = prompted(llama, seed=seed, **config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again = PromptModel.from_pretrained(llama, folder)
    assert again.adapter_config == model.adapter_config == PromptConfig(**config)
    mine = model.generator.state_dict()
    yours = again.generator.state_dict()
    assert mine.keys() == yours.keys() and all(torch.equal(mine[k], yours[k]) for k in mine)


@torch.no_grad()
def test_fresh_process_needs_nothing_else(llama, folder):
    "An adapter loads onto a foundation model that was built anew, and onto one in 16 bits"
    model = prompted(llama)
    batch = example(model)
    assert torch.equal(
        PromptModel.from_pretrained(tiny(), folder)(**batch).logits, model(**batch).logits
    )
    half = PromptModel.from_pretrained(tiny().bfloat16(), folder)
    assert half(**batch).logits.dtype is torch.bfloat16


def test_saving_again_replaces(llama, folder):
    "The second adapter in a folder is the one that is loaded, even if its tensors differ in shape"
    model = prompted(llama, rank=4, seed=1)
    model.save_pretrained(folder)
    assert PromptModel.from_pretrained(llama, str(folder)).adapter_config.rank == 4


# --- what is not an adapter is refused ---

truncated = lambda data: data[: len(data) // 2]
DAMAGE = {
    'empty': lambda data: b'',
    'cut off': truncated,
    'last byte missing': lambda data: data[:-1],
    'zeros': lambda data: bytes(len(data)),
    'a pickle': lambda data: pickle.dumps({'generator.prompt': [1.0]}),
    'a web page': lambda data: b'<!doctype html>\n<p>404</p>',
}


@pytest.mark.parametrize('damage', DAMAGE)
@pytest.mark.parametrize('name', both)
def test_damaged_file(llama, folder, name, damage):
    (folder / name).write_bytes(DAMAGE[damage]((folder / name).read_bytes()))
    refused(llama, folder, folder / name)


@pytest.mark.parametrize(
    'text',
    [
        '[]',
        'null',
        '3',
        '"lopa"',
        '{}',
        '{"config": 1, "base_model": 2}',
        '{"config": {"rank": 4}}',
    ],
)
def test_other_json(llama, folder, text):
    (folder / CONFIG_FILE).write_text(text)
    refused(llama, folder, folder / CONFIG_FILE)


@pytest.mark.parametrize('name', both)
def test_missing_file(llama, folder, name):
    (folder / name).unlink()
    refused(llama, folder, folder, name, error=FileNotFoundError)


def test_missing_folder(llama, tmp_path):
    with pytest.raises(FileNotFoundError) as e:
        PromptModel.from_pretrained(llama, tmp_path / 'nowhere')
    one_sentence(e.value, tmp_path / 'nowhere')
    assert not (tmp_path / 'nowhere').exists()


@pytest.mark.parametrize(
    'edit', [('"rank": 2', '"rank": 3'), ('"gate": "sigmoid"', '"gate": "add"'), ('{', '{ ')]
)
def test_edited_configuration(llama, folder, edit):
    "Whoever edits the configuration gets no silently different model"
    text = (folder / CONFIG_FILE).read_text()
    assert edit[0] in text
    (folder / CONFIG_FILE).write_text(text.replace(*edit, 1))
    refused(llama, folder, folder, 'edited')


@pytest.mark.parametrize('other', [dict(rank=3), dict(gate='add')])
@pytest.mark.parametrize('name', both)
def test_halves_of_two_adapters(llama, folder, tmp_path, name, other):
    "Also when the shapes happen to fit"
    prompted(llama, seed=1, **other).save_pretrained(tmp_path / 'other')
    shutil.copy(tmp_path / 'other' / name, folder / name)
    refused(llama, folder, folder, 'do not belong together')


@pytest.mark.parametrize(
    'change',
    [
        lambda s: {**s, 'generator.prompt': s['generator.prompt'][:, :-1].contiguous()},
        lambda s: {k: v for k, v in s.items() if k != 'generator.prompt'},
        lambda s: {**s, 'generator.more': torch.zeros(1)},
    ],
    ids=['shape', 'one missing', 'one too many'],
)
def test_other_tensors(llama, folder, change):
    rewrite(folder, state=change(load_file(folder / WEIGHTS_FILE)))
    refused(llama, folder, folder)


@pytest.mark.parametrize(
    'key,value',
    [
        ('rank', 0),
        ('gate', 'sigmiod'),
        ('method', 'lora'),
        ('train_encoder', 'yes'),
        ('num_tokens', 3),
    ],
)
def test_impossible_configuration(llama, folder, key, value):
    "The configuration in an adapter is checked as one that is typed in"
    about = json.loads((folder / CONFIG_FILE).read_bytes())
    about['config'][key] = value
    rewrite(folder, about)
    refused(llama, folder, key, repr(value) if key != 'num_tokens' else '')


@pytest.mark.parametrize(
    'change',
    [
        lambda a: {**a, 'config': [1]},
        lambda a: {**a, 'config': {**a['config'], 'gate': ['add']}},
        lambda a: {**a, 'base_model': {'norms': []}},
        lambda a: {k: v for k, v in a.items() if k != 'base_model_name_or_path'},
    ],
    ids=['prompt is a list', 'gate is a list', 'no width', 'no name'],
)
def test_configuration_of_another_shape(llama, folder, change):
    "JSON of another shape, with a right mark"
    rewrite(folder, change(json.loads((folder / CONFIG_FILE).read_bytes())))
    refused(llama, folder, folder)


@pytest.mark.parametrize(
    'make',
    [lambda: tiny(seed=1), lambda: tiny(width=2 * WIDTH), lambda: tiny('gpt2')],
    ids=['weights', 'width', 'kind'],
)
def test_another_foundation_model(folder, make):
    "A prompt says nothing to a model that it was not trained for, even one of the same shape"
    base = make()
    refused(base, folder, folder, 'tiny-llama', base.name_or_path)


def test_same_embeddings_other_layers(llama, folder):
    "A foundation model that was tuned further, with its embeddings left alone"
    other = tiny()
    shake(other.model.layers)
    refused(other, folder, folder)


# --- saving is all or nothing ---


@pytest.mark.parametrize('n', range(3), ids=['weights', 'configuration', 'note'])
@pytest.mark.parametrize('there', [False, True], ids=['new folder', 'over an old adapter'])
def test_saving_fails_midway(llama, tmp_path, monkeypatch, n, there):
    "The disk is full once, at any file: what was there still loads, and nothing is left over"
    if there:
        prompted(llama).save_pretrained(tmp_path)
    before = contents(tmp_path)
    real = lopa.files.write_new
    written = []

    def fail(path, data):
        written.append(path)
        if len(written) != n + 1:
            return real(path, data)
        real(path, data[:10])
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(lopa.files, 'write_new', fail)
    with pytest.raises(OSError, match='No space left'):
        prompted(llama, seed=1, rank=4).save_pretrained(tmp_path)
    assert len(written) == n + 1 and contents(tmp_path) == before
    if there:
        assert PromptModel.from_pretrained(llama, tmp_path).adapter_config.rank == 2


@pytest.mark.parametrize('name', both)
@pytest.mark.parametrize('there', [False, True], ids=['new folder', 'over an old adapter'])
@pytest.mark.parametrize('locked', [False, True], ids=['', 'read only'])
def test_moving_fails(llama, tmp_path, monkeypatch, name, there, locked):
    "A file that is complete cannot be moved to its place: the new adapter loads all the same"
    if there:
        prompted(llama).save_pretrained(tmp_path)
    real = os.replace

    def fail(source, target):
        if Path(target).name == name:
            raise OSError(30, 'Read-only file system')
        real(source, target)

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='Read-only'):
        prompted(llama, seed=1, rank=4).save_pretrained(tmp_path)
    if not locked:
        monkeypatch.setattr(os, 'replace', real)
    assert PromptModel.from_pretrained(llama, tmp_path).adapter_config.rank == 4
    assert locked or sorted(contents(tmp_path)) == sorted(both)
