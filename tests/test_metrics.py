"Scores against other people's code, and against counting"

import math
import warnings
from itertools import combinations

import numpy as np
import pytest
from helpers import few, one_sentence
from hypothesis import given
from hypothesis import strategies as st

from lopa.evaluate import bootstrap_ci, compare_methods, main_score, pass_at_k, score, show_score
from lopa.evaluate.metrics import accuracy, f1, majority_baseline

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


def test_one_example_is_enough():
    "Its interval is the score itself; no example is no score"
    for mean in False, True:
        s = score([1], [1], ('accuracy', 'f1'), mean)
        assert s['low'] == s['high'] == main_score(s) == 1
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            refused(lambda: score([], []), 'no examples')
    assert bootstrap_ci([1, 1, 1]) == (1, 1)
    assert bootstrap_ci([0]) == (0, 0)


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
