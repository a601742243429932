"""Intervals over images cover what they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from advens.results.statistics import (
    bootstrap_mean,
    bootstrap_means,
    content_seed,
    images,
    nanmean,
    wilson,
)
from advens.results.statistics.pairs import paired_tests


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
    monkeypatch.setattr(images, "_AT_ONCE", 50)
    assert bootstrap_mean(values, seed=3).value == before[0].value
    assert bootstrap_mean(values, seed=3).low == pytest.approx(before[0].low, abs=0.02)
    assert paired_tests(differences, seed=3) == pytest.approx(before[1], abs=0.02)
    assert [list(images.chunks(*given)) for given in ((7, 20), (4, 0), (5, 1000), (0, 3))] == [
        [2, 2, 2, 1], [4], [1] * 5, []
    ]  # fmt: skip


def test_resamples_are_rows_of_counts():
    found = np.concatenate(list(images.resample_counts(5, 400, np.random.default_rng(0))))
    assert found.shape == (400, 5)
    assert (found.sum(axis=1) == 5).all()
    assert found.mean(axis=0) == pytest.approx(np.ones(5), abs=0.15)


def test_nanmean():
    values = np.array([[1.0, np.nan], [3.0, np.nan]])
    assert nanmean(values, axis=0) == pytest.approx([2.0, np.nan], nan_ok=True)
    assert nanmean(values, axis=1) == pytest.approx([1.0, 3.0])
    assert nanmean(values) == 2


def test_wilson_by_hand():
    """z = 1 at 68.27 %: (1/2 + 1/8) / (1 + 1/4) and so on for 2 of 4."""
    confidence = 0.6826894921370859
    assert wilson(2, 4, confidence) == pytest.approx((0.5 - 5**0.5 / 10, 0.5 + 5**0.5 / 10))
    low, high = wilson(np.array([[1, 0]]), 4)
    assert low.shape == high.shape == (1, 2)
    assert isinstance(wilson(1, 4)[0], float)
    assert wilson(0, 0) == (0, 1)
    assert content_seed("a") < 2**60
