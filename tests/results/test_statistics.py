"""Intervals cover what they say; tests find what is there and nothing else; letters are right."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest

from advens.results import statistics
from advens.results.statistics import (
    bootstrap_mean,
    bootstrap_means,
    content_seed,
    holm,
    letters,
    nanmean,
    paired_tests,
    wilson,
)


def paired_test(a, b, seed, flips=10_000):
    """The p-value of one pair."""
    return float(paired_tests((np.asarray(a, float) - np.asarray(b, float))[:, None], seed, flips)[0])


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 10), (1, 1), (512, 1000)])
def test_wilson_is_scipys(k, n, confidence):
    expected = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert wilson(k, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_takes_arrays_and_nothing():
    low, high = wilson([0, 5, 2.5], [0, 10, 10])
    assert (low[0], high[0]) == (0, 1)
    assert (low[1], high[1]) == pytest.approx(wilson(5, 10))
    assert low[2] < 0.25 < high[2]


def test_bootstrap_covers_the_truth():
    rng = np.random.default_rng(1)
    truth, inside = 0.4, 0
    for k in range(200):
        ease = rng.random(120)[:, None]  # an easy image is easy for all targets
        draws = (0.5 * ease + 0.5 * rng.random((120, 4)) < truth).astype(float)
        expected = 2 * truth**2  # P(U/2 + V/2 < t) for t < 1/2
        _, low, high = bootstrap_mean(draws, seed=k, resamples=400)
        inside += low <= expected <= high
    assert 178 <= inside <= 199  # 95 % of 200 is 190


def test_bootstrap_means_over_targets_not_over_entries():
    values = np.array([[1.0, 0.0], [1.0, np.nan], [1.0, np.nan], [0.0, np.nan]])
    found = bootstrap_mean(values, seed=0)
    assert found.value == pytest.approx((0.75 + 0.0) / 2)
    assert found.low <= found.value <= found.high


def test_bootstrap_of_no_spread_and_of_nothing():
    found = bootstrap_mean(np.ones((50, 3)), seed=0)
    assert found == pytest.approx((1.0, *wilson(50, 50)))
    assert np.isnan(bootstrap_mean(np.full((5, 2), np.nan), seed=0)).all()
    assert np.isnan(bootstrap_mean(np.empty((5, 0)), seed=0)).all()
    assert bootstrap_means([], seed=0) == []


def test_bootstrap_depends_on_the_seed_alone():
    values = np.random.default_rng(0).random((40, 2))
    alone = bootstrap_mean(values, seed=3)
    assert alone == bootstrap_means([values[:, :1], values], seed=3)[1]
    assert alone != bootstrap_mean(values, seed=4)


def test_paired_test_finds_a_difference_and_only_that():
    rng = np.random.default_rng(0)
    hardness = rng.random(400)
    weak, strong = (hardness < 0.5).astype(float), (hardness < 0.55).astype(float)
    assert paired_test(strong, weak, seed=1) < 0.001
    assert paired_test(weak, weak, seed=1) == 1
    false = sum(
        paired_test(rng.integers(0, 2, 60), rng.integers(0, 2, 60), seed=k, flips=999) < 0.05
        for k in range(200)
    )
    assert 1 <= false <= 19  # at most 5 % of 200, within chance


def test_paired_test_is_the_sign_test_for_equal_steps():
    a, b = np.array([1.0] * 14 + [0.0] * 6), np.array([0.0] * 14 + [1.0] * 6)
    assert paired_test(a, b, seed=0) == pytest.approx(binomtest(14, 20).pvalue, abs=0.01)
    assert paired_test(b, a, seed=0) == paired_test(a, b, seed=0)


def test_paired_test_leaves_out_what_one_did_not_see():
    a, b = np.array([1.0, np.nan, 0.0, 1.0]), np.array([0.0, 0.0, np.nan, 1.0])
    assert paired_test(a, b, seed=0) == 1  # one difference: both flips reach it


def test_paired_test_is_finer_than_its_flips():
    clear = np.ones((200, 1))
    assert paired_tests(clear, seed=0)[0] < 1e-20
    assert paired_tests(np.ones((10, 1)), seed=0, flips=99)[0] <= 0.02


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1, 1])
    assert len(holm([])) == 0


def test_letters_by_hand():
    assert letters("xyz", []) == {"x": "a", "y": "a", "z": "a"}
    assert letters("xyz", [("x", "z")]) == {"x": "a", "y": "ab", "z": "b"}
    assert letters("xyz", [("x", "y"), ("x", "z"), ("z", "y")]) == {"x": "a", "y": "b", "z": "c"}
    assert letters("xyz", [("x", "z"), ("y", "z")]) == {"x": "a", "y": "a", "z": "b"}
    # the ends do not differ, but the first differs from the middle: not an interval of ranks
    assert letters("xyz", [("x", "y")]) == {"x": "a", "y": "b", "z": "ab"}
    assert letters([], []) == {}
    assert letters(["x"], []) == {"x": "a"}


def test_letters_say_what_the_tests_said():
    rng = np.random.default_rng(0)
    for _ in range(60):
        names = [f"n{i}" for i in range(rng.integers(2, 9))]
        different = {p for p in combinations(names, 2) if rng.random() < rng.choice([0.2, 0.7])}
        found = letters(names, sorted(different))
        for pair in combinations(names, 2):
            assert (not set(found[pair[0]]) & set(found[pair[1]])) == (pair in different)
        used = sorted(set("".join(found.values())))
        assert used == list("abcdefghijklmnopqrstuvwxyz"[: len(used)])
        assert "a" in found["n0"]


def test_content_seed_is_of_the_content():
    assert content_seed("a", ["b"]) == content_seed("a", ["b"]) != content_seed("a", ["c"])


@pytest.mark.parametrize(("value", "n"), [(0.0, 7), (1.0, 7), (0.5, 30)])
def test_constant_shares_have_wilsons_interval(value, n):
    found = bootstrap_mean(np.full((n, 2), value), seed=0)
    assert found == pytest.approx((value, *wilson(value * n, n)))


@pytest.mark.parametrize("value", [-0.5, 1.5])
def test_constants_that_are_no_shares_have_no_spread(value):
    assert bootstrap_mean(np.full((9, 2), value), seed=0) == pytest.approx((value, value, value))


def test_images_without_any_value_do_not_widen_nor_narrow():
    values = np.array([[1.0, np.nan]] * 6 + [[np.nan, np.nan]] * 4)
    assert bootstrap_mean(values, seed=0) == pytest.approx((1.0, *wilson(6, 6)))


def test_a_plain_bootstrap():
    """Against means of images drawn one by one; both have their Monte-Carlo error."""
    rng = np.random.default_rng(5)
    values = rng.random((60, 3))
    means = [values[rng.integers(0, 60, 60)].mean() for _ in range(4000)]
    for confidence, tail in ((0.95, 2.5), (0.8, 10.0)):
        found = bootstrap_mean(values, seed=1, resamples=4000, confidence=confidence)
        assert found.value == pytest.approx(values.mean())
        assert found.low == pytest.approx(np.percentile(means, tail), abs=0.006)
        assert found.high == pytest.approx(np.percentile(means, 100 - tail), abs=0.006)


def test_one_column_is_a_vector_and_many_blocks_share_resamples():
    values = np.random.default_rng(0).random(30)
    assert bootstrap_mean(values, seed=2) == bootstrap_mean(values[:, None], seed=2)
    one, two = bootstrap_means([values[:, None], values[:, None] + 1], seed=2)
    assert (two.low - one.low, two.high - one.high) == pytest.approx((1, 1))
    assert one.low == round(one.low, 12)


def test_chunks_change_nothing(monkeypatch):
    values = np.random.default_rng(0).random((20, 2))
    differences = values[:, :1] - values[:, 1:]
    before = bootstrap_mean(values, seed=3), paired_tests(differences, seed=3)
    monkeypatch.setattr(statistics, "_AT_ONCE", 50)
    assert bootstrap_mean(values, seed=3).value == before[0].value
    assert bootstrap_mean(values, seed=3).low == pytest.approx(before[0].low, abs=0.02)
    assert paired_tests(differences, seed=3) == pytest.approx(before[1], abs=0.02)
    assert [list(statistics._chunks(*given)) for given in ((7, 20), (4, 0), (5, 1000), (0, 3))] == [
        [2, 2, 2, 1], [4], [1] * 5, []
    ]  # fmt: skip


def test_resamples_are_rows_of_counts():
    found = np.concatenate(list(statistics._resamples(5, 400, np.random.default_rng(0))))
    assert found.shape == (400, 5)
    assert (found.sum(axis=1) == 5).all()
    assert found.mean(axis=0) == pytest.approx(np.ones(5), abs=0.15)


def test_flips_are_exact_for_few_images():
    """All signs by hand: 2 of 16 reach the total of equal ones; of 2, 1 and -1, all but the two zeros."""
    p = paired_tests(np.array([[1.0, 2.0], [1.0, 1.0], [1.0, -1.0], [1.0, 0.0]]), seed=0, flips=40_000)
    assert p[0] == pytest.approx(2 / 16, abs=0.005)
    assert p[1] == pytest.approx(12 / 16, abs=0.01)


def test_the_bound_is_hoeffdings():
    steps = np.full((64, 1), 0.5)
    assert paired_tests(steps, seed=0, flips=100)[0] == pytest.approx(2 * np.exp(-32), abs=0)
    assert paired_tests(np.ones((5000, 1)), seed=0, flips=10)[0] > 0


def test_nanmean():
    values = np.array([[1.0, np.nan], [3.0, np.nan]])
    assert nanmean(values, axis=0) == pytest.approx([2.0, np.nan], nan_ok=True)
    assert nanmean(values, axis=1) == pytest.approx([1.0, 3.0])
    assert nanmean(values) == 2


def test_letters_beyond_the_alphabet():
    names = [f"n{i:02}" for i in range(54)]
    found = letters(names, combinations(names, 2))
    assert found["n00"] == "a"
    assert [found[name] for name in names[50:]] == ["Y", "Z", "(53)", "(54)"]


def test_holm_keeps_the_order_of_ties():
    assert holm([0.02, 0.02, 0.01, 0.9]) == pytest.approx([0.06, 0.06, 0.04, 0.9])
    assert holm([0.01, 0.011, 0.012]) == pytest.approx([0.03, 0.03, 0.03])


def test_wilson_by_hand():
    """z = 1 at 68.27 %: (1/2 + 1/8) / (1 + 1/4) and so on for 2 of 4."""
    confidence = 0.6826894921370859
    assert wilson(2, 4, confidence) == pytest.approx((0.5 - 5**0.5 / 10, 0.5 + 5**0.5 / 10))
    low, high = wilson(np.array([[1, 0]]), 4)
    assert low.shape == high.shape == (1, 2)
    assert isinstance(wilson(1, 4)[0], float)
    assert wilson(0, 0) == (0, 1)
    assert content_seed("a") < 2**60
