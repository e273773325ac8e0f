"Scores against other people's code, and against counting"

import json
import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Dataset
from helpers import few, one_sentence
from hypothesis import given
from hypothesis import strategies as st

from lopa.evaluate import (
    bootstrap_ci,
    check_metrics,
    compare_methods,
    difference_ci,
    evaluate,
    main_score,
    pass_at_k,
    rescore,
    score,
    score_lines,
    show_score,
    wilson_ci,
    write_predictions,
)
from lopa.evaluate.floor import majority
from lopa.evaluate.metrics import accuracy, f1, linear_probe, majority_baseline, metric_ci
from lopa.evaluate.predictions import judging, score_texts
from lopa.figures import plot_accuracy, plot_training
from lopa.records import load_results
from lopa.tasks import Task
from lopa.train import recipe, train

classes = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30)


def refused(f, *mentions):
    with pytest.raises(ValueError) as e:
        f()
    one_sentence(e.value, *mentions)


@few
@given(classes)
def test_as_scikit_learn_counts(pairs):
    "Accuracy and F1, also where a class never occurs"
    from sklearn.metrics import accuracy_score, f1_score

    p, y = map(list, zip(*pairs, strict=True))
    assert accuracy(p, y) == accuracy_score(y, p)
    assert f1(p, y) == f1_score(y, p, zero_division=0)
    assert f1(p, y) == (2 * sum(a and b for a, b in pairs) / (sum(p) + sum(y)) if any(p + y) else 0)


NOBODY = SimpleNamespace(encoder_tokenizer=None)  # looks like a model, and cannot be asked


@pytest.mark.parametrize('share', [0, 0.3, 0.9])
def test_mean_of_accuracy_and_f1(share):
    "GLUE's score for MRPC and QQP, inside its interval; elsewhere accuracy is the score"
    from sklearn.metrics import accuracy_score, f1_score

    p, y = (np.random.default_rng(0).random((2, 40)) < share).astype(int)
    s = score(p, y, ('accuracy', 'f1'), mean=True)
    assert main_score(s) == pytest.approx(
        (accuracy_score(y, p) + f1_score(y, p, zero_division=0)) / 2
    )
    assert s['n'] == 40
    assert 0 <= s['low'] <= s['high'] <= 1
    assert f'{100 * s["score"]:.1f} %' in show_score(s)
    assert main_score(score(p, y)) == accuracy_score(y, p)
    assert 'score' not in score(p, y)


def test_one_example_is_not_much():
    "Its interval is wide, not a point; no example is no score"
    for mean in False, True:
        s = score([1], [1], ('accuracy', 'f1'), mean)
        assert s['low'] < 0.5 < s['high'] == main_score(s) == 1
    refused(lambda: score([], []), 'no examples')
    refused(lambda: score([1, 0], [1]), '2 examples', '1 labels')
    refused(lambda: wilson_ci([]), 'no examples')
    refused(lambda: wilson_ci([0.5, 2]), 'from 0.5 to 2', 'bootstrap_ci')
    refused(lambda: bootstrap_ci([]), 'no examples')
    refused(lambda: bootstrap_ci([7, 7]), 'from 7 to 7')


@pytest.mark.parametrize('n', [1, 2, 10, 164, 1066])
def test_intervals_at_the_edges(n):
    "Nothing right, or all: the other end is not there, too; as scipy has it"
    from scipy.stats import binomtest

    wrong, right = np.zeros(n, int), np.ones(n, int)
    for k, answers in (0, wrong), (n, right):
        theirs = binomtest(k, n).proportion_ci(method='wilson')
        for low, high in (wilson_ci(answers), bootstrap_ci(answers)):
            assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
        s = score(answers, right)
        assert (s['low'], s['high']) == pytest.approx(wilson_ci(answers))
        for metrics, mean in [(('f1',), False), (('accuracy', 'f1'), True)]:
            s = score(answers, right, metrics, mean)
            assert 0 <= s['low'] < s['high'] <= 1 and s['low'] <= s['score'] <= s['high']
    lines = [{'correct': [False] * 5}] * n
    assert score_texts(lines)['low'] == 0 < score_texts(lines)['high']
    alike = compare_methods(right, right)
    assert alike['low'] < 0 == alike['difference'] < alike['high']
    won = compare_methods(right, wrong)
    assert won['low'] < 1 == won['high'] == won['difference']
    assert difference_ci(np.zeros(n)) == (alike['low'], alike['high'])
    refused(lambda: difference_ci([]), 'no examples')


@pytest.mark.parametrize('truth', [0.005, 0.01, 0.05, 0.5, 0.99])
def test_intervals_of_rare_answers_cover(truth):
    "At n = 164 at least 92 in 100 hold the truth, whatever it is; also of five texts a row"
    rng = np.random.default_rng(0)
    covers = lambda found: np.mean([low <= truth <= high for low, high in found])
    assert covers(wilson_ci(rng.random(164) < truth) for _ in range(1000)) > 0.92
    assert covers(wilson_ci(rng.binomial(5, truth, 164) / 5) for _ in range(1000)) > 0.92


def test_intervals_of_f1_cover():
    "Also where few are of the class, and where nearly all is right"
    rng = np.random.default_rng(0)
    for n, share, found, called in [(100, 0.05, 0.5, 0.01), (200, 0.7, 0.99, 0.02)]:
        hits = share * found
        truth = 2 * hits / (share + hits + (1 - share) * called)
        held = 0
        for _ in range(500):
            y = rng.random(n) < share
            p = rng.random(n) < np.where(y, found, called)
            low, high = metric_ci('f1', p.astype(int), y.astype(int))
            held += low <= truth <= high
        assert held > 0.92 * 500


def test_interval_covers():
    "95 in 100 intervals hold the true share (90 to 99 in 300 tries); 80 % ones miss more"
    rng = np.random.default_rng(0)
    tries = [rng.random(120) < 0.7 for _ in range(300)]
    covers = lambda level: np.mean(
        [low <= 0.7 <= high for low, high in (bootstrap_ci(t, level) for t in tries)]
    )
    assert 0.90 <= covers(0.95) <= 0.99
    assert 0.72 <= covers(0.8) <= 0.87
    low, high = bootstrap_ci(tries[0])
    assert low < tries[0].mean() < high
    assert (high - low) == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 120), rel=0.25)
    assert bootstrap_ci(tries[0]) == (low, high) != bootstrap_ci(tries[0], seed=1)


@few
@given(classes)
def test_two_methods(pairs):
    "McNemar's exact test as scipy has it; the other way round only the sign changes"
    from scipy.stats import binomtest

    a, b = map(list, zip(*pairs, strict=True))
    one = compare_methods(a, b)
    other = compare_methods(b, a)
    only_a = sum(x > y for x, y in pairs)
    only_b = sum(y > x for x, y in pairs)
    assert (one['only_a'], one['only_b']) == (only_a, only_b) == (other['only_b'], other['only_a'])
    assert (
        one['p']
        == other['p']
        == (binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1)
    )
    assert one['difference'] == pytest.approx((only_a - only_b) / len(pairs))
    assert one['difference'] == pytest.approx(-other['difference'])
    assert one['low'] == pytest.approx(-other['high'])
    assert one['low'] <= one['difference'] <= one['high']


def test_different_examples_are_not_compared():
    refused(lambda: compare_methods([1, 0, 1], [1, 0]), 3, 2, 'same examples')
    refused(lambda: compare_methods([], []), 'no examples')


@pytest.mark.parametrize('n', [1, 2, 5, 7])
def test_pass_at_k_by_counting(n):
    "The share of all ways to draw k of n in which one passes; no way to draw more than n"
    for c in range(n + 1):
        for k in range(1, n + 1):
            draws = list(combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(d) for d in draws]))


@few
@given(
    st.integers(1, 300).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))
    )
)
def test_pass_at_k_grows(nck):
    "With attempts and with right programs, from 0 to 1; one attempt is the share that is right"
    n, c, k = nck
    p = pass_at_k(n, c, k)
    assert 0 <= p <= 1
    assert (p == 0) == (c == 0)
    assert (p == 1) >= (n - c < k)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    if k < n:
        assert pass_at_k(n, c, k + 1) >= p
    if c < n:
        assert pass_at_k(n, c + 1, k) >= p


@pytest.mark.parametrize('nck', [(5, 6, 1), (5, -1, 1), (5, 2, 0), (5, 2, 6), (0, 0, 1)], ids=str)
def test_pass_at_k_refuses(nck):
    refused(lambda: pass_at_k(*nck), *(f'{name}={v}' for name, v in zip('nck', nck, strict=True)))


def test_majority_comes_from_training():
    assert majority_baseline([0, 1, 1], [0, 0, 0, 1]) == 0.25


# --- the score that counts ---


def test_the_first_metric_counts():
    "A constant answer that is right nine times in ten has an F1 of 0, and that is its score"
    y = [0] * 9 + [1]
    s = score([0] * 10, y, ('f1', 'accuracy'))
    assert s['accuracy'] == 0.9 and s['f1'] == main_score(s) == s['low'] == 0 < s['high'] < 1
    assert show_score(s).startswith('F1 0.0 % [0.0, ')
    s = score([0] * 10, y, ('accuracy', 'f1'))
    assert main_score(s) == 0.9 and 'score' not in s and show_score(s).startswith('90.0 % [')
    s = score([0] * 10, y, ('f1', 'accuracy'), mean=True)
    assert main_score(s) == 0.45 and show_score(s).startswith('mean of F1 and accuracy 45.0 %')


@pytest.mark.parametrize('k', [3, 4, 6])
def test_macro_f1(k):
    "Of more than two classes, as scikit-learn has it; the score says what it is"
    from sklearn.metrics import f1_score

    p, y = np.random.default_rng(k).integers(k, size=(2, 60))
    s = score(p, y, ('f1',), classes=k)
    assert s['macro_f1'] == main_score(s) == f1_score(y, p, average='macro', zero_division=0)
    assert s['metric'] == 'macro F1' and show_score(s).startswith('macro F1 ')
    assert s['low'] < s['score'] < s['high'] and s['accuracy'] == np.mean(p == y)
    every = score(y, y, ('f1',), classes=k)
    assert every['low'] < every['score'] == 1
    two = score(p % 2, y % 2, ('f1',), classes=k)  # two of the classes occur
    assert 'macro_f1' in two and 'f1' not in two


@pytest.mark.parametrize(
    'metrics,classes',
    [
        (('recall',), 2),
        (('accuracy', 'F1'), 2),
        ('f1', 2),
        ((), 2),
        ([['f1']], 2),
        ((None,), 3),
        (('f1',), 0),
        (('accuracy', 'f1'), 0),
    ],
    ids=str,
)
def test_metrics_are_checked_first(tmp_path, metrics, classes):
    "Before a model is asked: there is none here"
    refused(lambda: check_metrics(metrics, classes), 'metrics', 'received', 'expected')
    rows = Dataset.from_list([{'text': 'a', 'label': 0, 'word': 'x'}] * 3)
    words = dict(verbalizer=tuple('abc'[:classes])) if classes else dict(target=' {word}')
    task = Task('own', {'train': rows, 'test': rows}, '{text}', **words)
    task.metrics = metrics
    refused(lambda: evaluate(NOBODY, task), 'own', 'metrics')
    run = lambda: train(None, task, recipe('rotten_tomatoes', 'pt', steps=1), tmp_path)
    refused(run, 'own', 'metrics')


@pytest.mark.parametrize('empty', ['train', 'validation', 'test'])
@pytest.mark.parametrize('answers', [{'verbalizer': (' a', ' b')}, {'target': ' {text}'}], ids=str)
def test_empty_splits_are_refused_first(tmp_path, empty, answers):
    rows = Dataset.from_list([{'text': 'a', 'label': 0}])
    none = rows.select([])
    splits = dict.fromkeys(['train', 'validation', 'test'], rows) | {empty: none}
    task = Task('own', splits, '{text}', **answers)
    plan = recipe('rotten_tomatoes', 'pt', steps=1)
    refused(lambda: train(None, task, plan, tmp_path), 'own', empty, 'no rows')
    refused(lambda: evaluate(NOBODY, task, empty), 'own', empty, 'no rows')
    if empty != 'validation':
        refused(lambda: majority(task), 'own', empty, 'no rows')
    refused(lambda: score_lines(judging(task, empty), []), 'own', empty, 'no answers')


PAIRS = [{'text': str(i), 'label': int(i < 27)} for i in range(40)]  # 67.5 % are equal


@pytest.mark.parametrize(
    'how,counts',
    [
        (dict(metrics=('accuracy', 'f1'), mean=True), (27 / 40 + 54 / 67) / 2),
        (dict(metrics=('f1', 'accuracy')), 54 / 67),
        (dict(metrics=('f1',)), 54 / 67),
        (dict(metrics=('accuracy', 'f1')), 27 / 40),
    ],
    ids=str,
)
def test_a_constant_answer_by_the_tasks_own_score(how, counts):
    "As on MRPC: the mean rewards it, and says so"
    rows = Dataset.from_list(PAIRS)
    splits = {'train': rows, 'test': rows}
    task = Task('pairs', splits, '{text}', verbalizer=(' no', ' yes'), **how)
    found = majority(task)['test']
    labels = [row['label'] for row in PAIRS]
    assert main_score(found) == pytest.approx(counts)
    again = majority_baseline(labels, labels, task.metrics, task.mean)
    assert again == pytest.approx(counts)
    assert found['low'] < main_score(found) < found['high']


def test_the_probe_is_chosen_by_the_score():
    "On validation, by what is handed over"
    rng = np.random.default_rng(0)
    split = lambda n: Dataset.from_dict(
        {'instance_features': rng.normal(size=(n, 3)), 'label': rng.integers(0, 2, n)}
    )
    asked = []

    def count(predictions, labels):
        asked.append(len(labels))
        return f1(predictions, labels)

    linear_probe(split(20), split(7), split(5), count)
    assert asked == [7] * 4


def test_predictions_keep_what_counts(tmp_path):
    "A file scored by F1 is scored by it again; a table of results has the score"
    splits = {'test': Dataset.from_list(PAIRS)}
    task = Task('pairs', splits, '{text}', verbalizer=(' no', ' yes'), metrics=('f1', 'accuracy'))
    lines = [
        {'answer': 'no', 'right': ('no', 'yes')[r['label']], 'correct': not r['label'], 'row': r}
        for r in PAIRS
    ]
    path = tmp_path / 'p.jsonl'
    write_predictions(path, judging(task, 'test'), lines)
    now, saved = rescore(path)
    assert now == saved and main_score(now) == 0 < now['accuracy']
    record = {'schema': 1, 'task': 'pairs', 'method': 'pt', 'test': now}
    (tmp_path / 'r.json').write_text(json.dumps(record))
    table = load_results(tmp_path / 'r.json')
    assert table.score.tolist() == [0] and table.high.tolist() == [now['high']]


def test_pictures_show_what_counts():
    "The curve and the point of a task that is scored by F1"
    looks = [{'step': 1, 'loss': 1.0}, {'step': 1, 'eval_accuracy': 0.9, 'eval_score': 0.1}]
    right = plot_training(looks).figure.axes[1]
    assert right.get_ylabel() == 'validation score (%)'
    assert right.lines[0].get_ydata()[0] == pytest.approx(10) and right.get_ylim()[0] <= 10
    row = {'name': 'a', 'parameters': 9, **score([0] * 10, [0] * 9 + [1], ('f1', 'accuracy'))}
    ax = plot_accuracy([row])
    assert ax.get_ylabel() == 'score (%)' and ax.containers[0][0].get_ydata()[0] == 0


@pytest.mark.parametrize('contents', [None, '', '{', '[]', 'null', b'\xff', '[' * 99_999], ids=str)
def test_predictions_that_are_none(tmp_path, contents):
    "One sentence, and the path, for whatever is no file of predictions"
    path = tmp_path / 'p.jsonl'
    if contents is not None:
        path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        rescore(path)
    one_sentence(e.value, str(path), 'expected')
