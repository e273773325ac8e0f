"""What is kept in the cache is believed only if it is whole and unchanged

Features of an encoder, and the converted foundation model; and folders that are no models.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as tf
from damage import SEEDS, damage, damage_folder
from datasets import Dataset
from helpers import one_sentence, tiny
from safetensors.torch import load_file, save_file

from lopa import assets
from lopa.encoders import encode_dataset, make_encoder, stored_features
from lopa.files import MARKER, hash_bytes, write_whole

TEXTS = ['abc', 'a', 'abcdefgh', 'bb', 'cabd', '']


class Letters:
    "A tokenizer that knows a letter by its number"

    def __call__(self, texts, truncation=True, max_length=None):
        ids = [[ord(c) - 96 for c in t[:max_length]] for t in texts]
        return tf.BatchEncoding({'input_ids': ids})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "A cache of its own"
    monkeypatch.setenv('LOPA_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture(scope='module')
def encoder():
    return make_encoder('embeddings', tiny())


@pytest.fixture
def passes(encoder, monkeypatch):
    "The list grows with every pass through the encoder"
    seen, forward = [], encoder.forward
    monkeypatch.setattr(encoder, 'forward', lambda *args: seen.append(1) or forward(*args))
    return seen


def encoded(encoder, texts=TEXTS, **how):
    data = Dataset.from_dict({'text': texts, 'label': range(len(texts))})
    return encode_dataset(data, encoder, Letters(), **how)['instance_features'][:]


def only(cache):
    (file,) = (cache / 'features').glob('*.safetensors')
    return file


# --- features ---


def test_features_are_read_back(encoder, cache, passes):
    first = encoded(encoder)
    assert passes and len(first) == len(TEXTS)
    passes.clear()
    assert encoded(encoder) == first and not passes
    assert encoded(encoder, TEXTS[:2]) == first[:2] and passes
    assert encoded(encoder, []) == []


def test_a_column_of_features_is_replaced(encoder, cache):
    "As that of another encoder would be; other columns, and an order, stay as they are"
    first = encoded(encoder)
    data = Dataset.from_dict({'text': TEXTS, 'label': range(6)})
    again = encode_dataset(data, encoder, Letters())
    other = encode_dataset(again.select([2, 0]), make_encoder('self', tiny()), Letters())
    assert other['label'] == [2, 0] and other['text'] == [TEXTS[2], TEXTS[0]]
    back = encode_dataset(other, encoder, Letters())
    assert back['instance_features'][:] == [first[2], first[0]]


@pytest.mark.parametrize('seed', SEEDS)
def test_damaged_features_are_computed_anew(encoder, cache, seed, passes):
    first = encoded(encoder)
    file = only(cache)
    whole = file.read_bytes()
    file.write_bytes(damage(whole, seed))
    changed = file.read_bytes() != whole
    passes.clear()
    assert encoded(encoder) == first and (changed or not passes)
    passes.clear()
    assert encoded(encoder) == first and not passes  # put in its place again


@pytest.mark.parametrize('seed', list(SEEDS)[:10])
def test_a_damaged_folder_of_features(encoder, cache, seed):
    "A folder, a link or a pipe in the place of a file: the right features, or one sentence"
    first = encoded(encoder)
    damage_folder(cache / 'features', seed)
    assert encoded(encoder) == first


def test_random_features_are_not_believed(encoder, cache, passes):
    "A file of the right form, with numbers, name and shape of its own"
    first = encoded(encoder)
    file = only(cache)
    good, key = load_file(file), file.stem
    numbers = torch.randn_like(good['features'])
    right = {'key': key, 'hash': hash_bytes(numbers.numpy().tobytes())}
    wrong = [
        ({'features': numbers}, {'key': key, 'hash': hash_bytes(b'')}),
        ({'features': numbers}, {'key': key}),
        ({'features': numbers}, None),
        ({'features': numbers}, right | {'key': 'another'}),
        ({'features': numbers.T.contiguous()}, right),
        ({'features': numbers.double()}, right),
        ({'feature': numbers}, right),
        ({'features': numbers, 'more': numbers[:1].clone()}, right),
    ]
    for tensors, told in wrong:
        save_file(tensors, file, told)
        assert stored_features(key, tuple(numbers.shape)) is None
    passes.clear()
    assert encoded(encoder) == first and passes


def test_a_header_that_promises_too_much(cache):
    "Nothing is allocated for what is not there"
    header = {'features': {'dtype': 'F32', 'shape': [10**9, 10], 'data_offsets': [0, 4 * 10**10]}}
    text = json.dumps(header).encode()
    (cache / 'features').mkdir(parents=True)
    file = cache / 'features' / 'abc.safetensors'
    file.write_bytes(len(text).to_bytes(8, 'little') + text)
    assert stored_features('abc', (10**9, 10)) is None
    file.write_bytes((10**15).to_bytes(8, 'little'))
    assert stored_features('abc', (0, 10)) is None


def test_foreign_files_in_the_cache_are_left_alone(encoder, cache):
    (cache / 'features').mkdir(parents=True)
    (cache / 'thesis').mkdir()
    for path in cache / 'thesis' / 'a.txt', cache / 'features' / 'b.arrow', cache / '.c':
        path.write_text('mine')
    encoded(encoder)
    kept = [cache / 'thesis' / 'a.txt', cache / 'features' / 'b.arrow', cache / '.c']
    assert [path.read_text() for path in kept] == ['mine'] * 3


@pytest.mark.parametrize('place', ['file', 'features', 'below a file'])
def test_a_cache_that_cannot_be_written(encoder, tmp_path, monkeypatch, place, passes):
    "One sentence, before the encoder is asked"
    (tmp_path / 'file').write_text('mine')
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / 'features').write_text('mine')
    where = {'file': 'file', 'features': 'cache', 'below a file': 'file/deep'}[place]
    monkeypatch.setenv('LOPA_CACHE', str(tmp_path / where))
    with pytest.raises(OSError) as e:
        encoded(encoder)
    one_sentence(e.value, 'LOPA_CACHE')
    assert not passes and (tmp_path / 'file').read_text() == 'mine'


# --- the converted model ---


def write_tiny(folder):
    "What a conversion writes, made small"
    tiny().save_pretrained(folder)
    (folder / 'tokenizer.json').write_text('{}')
    assets.list_files(folder)


@pytest.fixture
def conversions(cache, monkeypatch):
    "The list grows with every conversion, which is a quick one"
    made = []

    def convert(source, target):
        made.append(target)
        return write_whole(target, write_tiny)

    monkeypatch.setattr(assets, 'convert_gguf', convert)
    monkeypatch.setattr(assets, 'package_folder', lambda package: Path(package))
    return made


def converted():
    return Path(assets.resolve(assets.FOUNDATION_MODEL))


def test_a_model_is_converted_once(conversions, cache):
    folder = converted()
    assert folder == converted() and len(conversions) == 1 and folder.parent == cache
    assert tf.AutoModelForCausalLM.from_pretrained(folder).config.vocab_size == 100


@pytest.mark.parametrize('seed', SEEDS)
def test_a_damaged_model_is_converted_anew(conversions, seed):
    folder = converted()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    file = sorted(folder.iterdir())[seed % len(before)]
    file.write_bytes(damage(file.read_bytes(), seed))
    if file.name == MARKER and not file.read_bytes().startswith(b'Written by lopa'):
        assert converted() == folder and len(conversions) == 1  # the model is whole
        return
    changed = file.read_bytes() != before[file.name] and file.name != MARKER
    again = {path.name: path.read_bytes() for path in converted().iterdir()}
    if file.name != assets.LIST:  # where a wrong time of change only makes us look
        assert len(conversions) == 1 + changed
    weights = 'model.safetensors'
    assert again[weights] == before[weights] and again['config.json'] == before['config.json']


@pytest.mark.parametrize('what', ['missing', 'more', 'folder', 'pipe', 'link'])
def test_a_model_with_other_files_is_converted_anew(conversions, tmp_path, what):
    folder = converted()
    file = folder / 'model.safetensors'
    if what == 'more':
        (folder / 'adapter_config.json').write_text('{}')
    else:
        file.rename(tmp_path / 'kept')
    if what == 'folder':
        file.mkdir()
    elif what == 'pipe':
        os.mkfifo(file)
    elif what == 'link':
        file.symlink_to('/dev/zero')
    assert assets.is_converted(converted()) and len(conversions) == 2


def test_a_copied_model_is_believed(conversions, monkeypatch):
    "Other times, the same content: hashed, once per process"
    folder = converted()
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert converted() == folder and len(conversions) == 1
    monkeypatch.setattr(assets, 'hash_file', None)
    assert converted() == folder


def test_a_foreign_folder_is_not_replaced(conversions, cache):
    "Neither one of that name without our marker, nor a link to a folder elsewhere"
    folder = converted()
    (folder / MARKER).unlink()
    (folder / 'config.json').write_text('mine')
    with pytest.raises(PermissionError) as e:
        converted()
    one_sentence(e.value, folder)
    assert (folder / 'config.json').read_text() == 'mine' and len(conversions) == 1


def test_leftovers_of_killed_conversions_are_swept_up(conversions, cache):
    "513 MB each, hidden; those of an earlier lopa, too; folders of others are not"
    cache.mkdir()
    half = cache / f'.{assets.EARLIER}-abcd1234'
    foreign = cache / f'.{assets.EARLIER}-abcd5678'
    for folder, name in ((half, 'model.safetensors'), (foreign, 'thesis.pdf')):
        folder.mkdir()
        (folder / name).write_bytes(bytes(100))
    code = (
        'import os, sys; from pathlib import Path; from lopa.files import write_whole\n'
        'def write(tmp): (tmp / "model.safetensors").write_bytes(bytes(100)); os._exit(9)\n'
        'write_whole(Path(sys.argv[1]) / "smollm2-135m-v2", write)'
    )
    ran = subprocess.run([sys.executable, '-c', code, cache])
    assert ran.returncode == 9 and len(list(cache.glob('.lopa-*'))) == 1
    converted()
    assert not list(cache.glob('.lopa-*')) and not half.exists() and foreign.exists()


def test_two_processes_convert_one_model(cache):
    "One converts, the other waits"
    code = (
        'import time; from pathlib import Path; from lopa import assets\n'
        'from lopa.files import write_whole\n'
        'def write(tmp):\n'
        '    time.sleep(1); (tmp / "config.json").write_text("{}"); assets.list_files(tmp)\n'
        '    print("converted")\n'
        'assets.convert_gguf = lambda source, target: write_whole(target, write)\n'
        'assets.package_folder = Path\n'
        'assert assets.is_converted(Path(assets.resolve(assets.FOUNDATION_MODEL)))'
    )
    start = lambda: subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)
    both = [start(), start()]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(said) == [b'', b'converted\n']


# --- folders that are no models ---


@pytest.fixture
def model_folder(tmp_path):
    tiny().save_pretrained(tmp_path / 'model')
    return tmp_path / 'model'


def change_config(folder, **how):
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps(config | how))


def as_pickle(folder):
    torch.save(load_file(folder / 'model.safetensors'), folder / 'pytorch_model.bin')
    (folder / 'model.safetensors').unlink()


def cut_weights(folder):
    weights = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(weights[:-100])


def without_a_layer(folder):
    weights = load_file(folder / 'model.safetensors')
    kept = {k: v for k, v in weights.items() if '.1.' not in k}
    save_file(kept, folder / 'model.safetensors', {'format': 'pt'})


def with_number(value):
    "The last number of a matrix becomes this one"

    def spoil(folder):
        weights = load_file(folder / 'model.safetensors')
        weights['model.layers.1.mlp.up_proj.weight'][-1, -1] = value
        save_file(weights, folder / 'model.safetensors', {'format': 'pt'})

    return spoil


REFUSED = {
    'NaN': (with_number(float('nan')), 'layers.1.mlp.up_proj'),
    'infinite': (with_number(-float('inf')), 'layers.1.mlp.up_proj'),
    'no weights': (lambda f: (f / 'model.safetensors').unlink(), 'weights'),
    'no configuration': (lambda f: (f / 'config.json').unlink(), 'config.json'),
    'no JSON': (lambda f: (f / 'config.json').write_text('{"a": '), 'config.json'),
    'a list': (lambda f: (f / 'config.json').write_text('[]'), 'config.json'),
    'no kind': (lambda f: change_config(f, model_type='nobody'), 'nobody'),
    'pickle': (as_pickle, 'unpickling'),
    'cut': (cut_weights, 'model'),
    'empty': (lambda f: (f / 'model.safetensors').write_bytes(b''), 'model'),
    'a layer less': (without_a_layer, 'layers.1'),
    'a layer more': (lambda f: change_config(f, num_hidden_layers=1), 'layers.1'),
    'another width': (lambda f: change_config(f, intermediate_size=48), 'model'),
    'remote code': (
        lambda f: change_config(f, model_type='own', auto_map={'AutoConfig': 'a.B'}),
        'auto_map',
    ),
}


@pytest.mark.parametrize('load', ['load_foundation_model', 'load_encoder'])
@pytest.mark.parametrize('name', REFUSED)
def test_what_is_no_complete_model_is_refused(model_folder, name, load):
    "One sentence that names it; transformers never asks anything"
    spoil, said = REFUSED[name]
    spoil(model_folder)
    with pytest.raises((OSError, ValueError)) as e:
        getattr(assets, load)(str(model_folder), device='cpu')
    one_sentence(e.value, model_folder, said)


@pytest.mark.parametrize('load', ['load_foundation_model', 'load_encoder', 'load_tokenizer'])
def test_remote_code_is_never_run(model_folder, load, monkeypatch):
    "Nor asked for: with code of its own for a class that transformers has, that one is taken"
    monkeypatch.setattr('builtins.input', None)
    with pytest.raises(ValueError) as e:
        getattr(assets, load)(str(model_folder), trust_remote_code=True)
    one_sentence(e.value, 'trust_remote_code')
    change_config(model_folder, auto_map={'AutoModel': 'mine.Model', 'AutoConfig': 'mine.Config'})
    (model_folder / 'mine.py').write_text('raise SystemExit("was run")')
    if load != 'load_tokenizer':
        assert type(getattr(assets, load)(str(model_folder), device='cpu')).__name__[:5] == 'Llama'


def test_a_tokenizer_of_its_own_is_refused(model_folder):
    own = {'tokenizer_class': 'Mine', 'auto_map': {'AutoTokenizer': ['mine.Mine', None]}}
    (model_folder / 'tokenizer_config.json').write_text(json.dumps(own))
    (model_folder / 'mine.py').write_text('raise SystemExit("was run")')
    with pytest.raises(ValueError) as e:
        assets.load_tokenizer(str(model_folder))
    one_sentence(e.value, model_folder)


def test_an_encoder_as_foundation_model_is_refused(tmp_path):
    "Its head would be drawn at random; and so would a classifier's"
    tiny('roberta').roberta.save_pretrained(tmp_path / 'encoder')
    config = tiny('bert').config
    tf.BertForSequenceClassification(config).save_pretrained(tmp_path / 'classifier')
    for name in 'encoder', 'classifier':
        with pytest.raises(ValueError) as e:
            assets.load_foundation_model(str(tmp_path / name), device='cpu')
        one_sentence(e.value, tmp_path / name, 'at random')


def test_an_encoder_without_a_pooler(tmp_path):
    "That of a masked language model would be drawn at random: it is taken off, for other poolings"
    tiny('bert').save_pretrained(tmp_path)
    found = [assets.load_encoder(str(tmp_path), 'cpu') for _ in range(2)]
    assert found[0].pooler is None
    base = tiny()
    assert make_encoder(str(tmp_path), base, 'mean').width == 32
    with pytest.raises(ValueError, match='pooler'):
        make_encoder(str(tmp_path), base, 'pooler')(torch.ones(1, 3, dtype=torch.long))
