"""The share of time in which workers are busy, and the script on one worker."""

from __future__ import annotations

import pytest

from advens.benchmarks.speed.executors import busy, measured
from advens.errors import InputError


def test_only_what_lies_between_the_moments_counts() -> None:
    spans = [[(0.0, 2.0), (3.0, 5.0)], [(1.0, 4.0)]]
    assert busy(spans, 1.0, 4.0) == pytest.approx((1 + 1 + 3) / 6)
    assert busy(spans, 0.0, 5.0) == pytest.approx(7 / 10)


def test_one_worker() -> None:
    found = measured("local", 1, 4, 0.02)
    assert found["tasks"] == 4
    assert 0 < found["busy over the whole time"] <= found["busy"] <= 1


def test_too_few_tasks() -> None:
    with pytest.raises(InputError, match=r"1 of 2 workers had a task; give more --tasks"):
        measured("local", 2, 1, 0.01)
