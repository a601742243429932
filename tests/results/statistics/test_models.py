"""Intervals, tests and ranks for new models and new images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp

from advens.results.statistics import (
    images,
    rank_intervals,
    two_way,
    two_way_difference,
    two_way_test,
    two_way_tests,
)
from advens.results.statistics.models import _Variance


def made(images=60, targets=6, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.random((images, 1)) / 2 + rng.random((images, targets)) / 2 < 0.4).astype(float)


def test_below_five_targets_nothing_is_claimed():
    values = made(targets=5)
    found = two_way(values)
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high
    assert two_way(values[:, :4])[0] == pytest.approx(values[:, :4].mean())
    assert np.isnan(two_way(values[:, :4])[1:]).all()
    assert np.isnan(two_way_difference(values[:, :4])[1:]).all()
    assert np.isnan(two_way_test(values[:, :4]))
    values[:, 4] = np.nan
    assert np.isnan(two_way(values)[1:]).all(), "a target without images is none"
    assert np.isnan(two_way(np.empty((0, 6)))).all()
    assert np.isnan(two_way(np.empty((6, 0)))).all()


def test_variances_are_those_of_the_analysis_of_variance():
    """On a whole table, mean squares between images, between targets, and of what is left."""
    x = made(40, 7)
    n, k = x.shape
    rows, columns = x.mean(axis=1), x.mean(axis=0)
    left = x - rows[:, None] - columns + x.mean()
    parts = _Variance.of(x)
    assert parts.images == pytest.approx(rows.var(ddof=1) / n)
    assert parts.by_target == pytest.approx(columns.var(ddof=1) / k)
    assert parts.residual == pytest.approx((left**2).sum() / ((n - 1) * (k - 1)) / (n * k))
    assert parts.total == pytest.approx(parts.images + parts.by_target - parts.residual)


def test_the_total_is_no_less_than_images_or_targets():
    rng = np.random.default_rng(0)
    floors = set()
    for _ in range(40):
        parts = _Variance.of(rng.integers(0, 2, (12, 5)).astype(float))
        assert parts.total >= max(parts.images, parts.by_target)
        floors |= {name for name in ("images", "by_target") if parts.total == getattr(parts, name)}
    assert floors == {"images", "by_target"}


def test_means_are_over_targets_and_missing_images_count_nowhere():
    values = made(50, 5)
    values[10:, 0] = np.nan
    found = two_way(values)
    assert found.value == pytest.approx((values[:10, 0].mean() + values[:, 1:].mean(axis=0).sum()) / 5)
    padded = np.vstack([values, np.full((30, 5), np.nan)])
    assert two_way(padded) == pytest.approx(found)
    assert two_way_test(padded - 0.3) == pytest.approx(two_way_test(values - 0.3))


def test_differences_between_targets_alone_are_students_test():
    """Images that all behave the same leave the test over the targets' means."""
    by_target = np.array([0.1, 0.3, -0.1, 0.2, 0.4, 0.2])
    table = np.tile(by_target, (100, 1))
    expected = ttest_1samp(by_target, 0)
    assert two_way_test(table) == pytest.approx(expected.pvalue)
    found = two_way_difference(table, 0.9)
    assert found[1:] == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert two_way_test(-table) == pytest.approx(expected.pvalue)


def test_the_interval_of_a_difference_ends_where_the_test_does():
    difference = made(80, 8, seed=1) - made(80, 8, seed=2) + 0.12
    low = two_way_difference(difference, 0.95).low
    assert two_way_test(difference - low) == pytest.approx(0.05)


def test_what_does_not_vary_is_still_uncertain():
    none, every = two_way(np.zeros((200, 5))), two_way(np.ones((200, 5)))
    square = t.ppf(0.975, 4) ** 2
    assert none == pytest.approx((0, 0, square / (200 + square)))
    assert every == pytest.approx((1, 200 / (200 + square), 1))
    half = two_way(np.full((9, 6), 0.5))
    assert half.low < 0.5 < half.high
    assert two_way_test(np.zeros((50, 5))) == 1
    assert two_way_difference(np.zeros((50, 5))).high == pytest.approx(np.sqrt(square) / 50)
    assert 0 < two_way_test(np.ones((50, 5))) < 1e-5


def test_rank_intervals_hold_the_rank_and_tell_clear_rows_apart():
    rng = np.random.default_rng(0)
    blocks = [(rng.random((300, 8)) < rate).astype(float) for rate in (0.2, 0.8, 0.5, 0.51)]
    assert rank_intervals(blocks, seed=1).tolist() == [[4, 4], [1, 1], [2, 3], [2, 3]]
    assert rank_intervals([blocks[0]] * 2, seed=1).tolist() == [[1, 2], [1, 2]], "rows that tie share"
    assert rank_intervals([], seed=1).shape == (0, 2)
    missing = [np.where(rng.random((300, 8)) < 0.3, np.nan, block) for block in blocks]
    assert rank_intervals(missing, seed=1).tolist() == [[4, 4], [1, 1], [2, 3], [2, 3]]


def test_rank_intervals_know_that_targets_differ():
    """Row one wins on three targets of five and loses on two: images are many, and yet nothing is sure."""
    first = np.tile([1.0, 1.0, 1.0, 0.0, 0.2], (400, 1))
    assert rank_intervals([first, np.full((400, 5), 0.5)], seed=0).tolist() == [[1, 2], [1, 2]]


def test_rank_intervals_know_that_images_differ():
    first = np.repeat([[1.0], [0.0]], [6, 4], axis=0) * np.ones((10, 6))
    assert rank_intervals([first, np.full((10, 6), 0.5)], seed=0).tolist() == [[1, 2], [1, 2]]


def test_rank_intervals_in_little_memory(monkeypatch):
    blocks = [made(seed=k) for k in range(4)]
    before = rank_intervals(blocks, seed=3)
    monkeypatch.setattr(images, "_AT_ONCE", 500)
    assert (abs(rank_intervals(blocks, seed=3) - before) <= 1).all()


@pytest.mark.parametrize("missing", ["nowhere", "the same", "others"])
def test_many_pairs_at_once_are_as_each_alone(missing):
    rng = np.random.default_rng(0)
    hard = rng.random((40, 6))
    blocks = [(hard < rate).astype(float) for rate in (0.3, 0.5, 0.5, 0.9)]
    for k, block in enumerate(blocks):
        block[rng.random(block.shape) < 0.1] = 1 - 0.5 * k / 3
        if missing != "nowhere":
            block[rng.random(40) < 0.2 if missing == "others" else slice(0, 7), 2] = np.nan
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (2, 3), (1, 1)]
    found = two_way_tests(blocks, pairs)
    assert found == pytest.approx([two_way_test(blocks[a] - blocks[b]) for a, b in pairs], rel=1e-9)
    assert found[-1] == 1
    assert np.isnan(two_way_tests([block[:, :4] for block in blocks], pairs)).all()
    assert two_way_tests(blocks, []).shape == (0,)


@pytest.mark.parametrize("shape", [(5, 0), (0, 5), (0, 0)])
def test_rank_intervals_of_nothing_say_nothing(shape):
    assert rank_intervals([np.empty(shape)] * 2, seed=0).tolist() == [[1, 2], [1, 2]]
    assert rank_intervals([np.full((5, 5), np.nan), np.ones((5, 5))], seed=0)[0].tolist() == [1, 2]
