"""Intervals, tests and ranks for new models and new images."""

from __future__ import annotations

import numpy as np
import pytest

from advens.results.statistics import rank_intervals, two_way, two_way_difference, two_way_test


def test_below_five_targets_nothing_is_claimed():
    values = np.random.default_rng(0).integers(0, 2, (60, 5)).astype(float)
    found = two_way(values)
    assert found.value == pytest.approx(values.mean())
    assert found.low < found.value < found.high
    assert np.isnan(two_way(values[:, :4])[1:]).all()
    assert np.isnan(two_way_difference(values[:, :4])[1:]).all()
    assert np.isnan(two_way_test(values[:, :4]))
    values[:, 4] = np.nan
    assert np.isnan(two_way(values)[1:]).all()


def test_rank_intervals_hold_the_rank_and_tell_clear_rows_apart():
    rng = np.random.default_rng(0)
    blocks = [(rng.random((300, 8)) < rate).astype(float) for rate in (0.2, 0.8, 0.5, 0.51)]
    assert rank_intervals(blocks, seed=1).tolist() == [[4, 4], [1, 1], [2, 3], [2, 3]]
    assert rank_intervals([blocks[0]] * 2, seed=1).tolist() == [[1, 2], [1, 2]]
    assert rank_intervals([], seed=1).shape == (0, 2)
