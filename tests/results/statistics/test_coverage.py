"""Intervals cover and tests err as often as they say, for both questions, on made data.

The bounds leave one case in a thousand to chance; the whole grid is the study ``calibration``.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from advens.benchmarks.studies.calibration import (
    CLOSE,
    MILD,
    STRONG,
    binomial_bounds,
    intervals,
    levels,
    ranks,
    trainings,
)

DRAWS = 200
LEAST, _ = binomial_bounds(0.95, DRAWS)
_, MOST = binomial_bounds(0.05, DRAWS)
EFFECTS = {"mild": MILD, "strong": STRONG}
SIZES = [(50, 5), (50, 20), (150, 10), (500, 5)]


@pytest.mark.parametrize("effects", EFFECTS)
@pytest.mark.parametrize(("images", "targets"), SIZES)
@pytest.mark.parametrize("rate", [0.02, 0.5, 0.98])
def test_intervals_cover(effects, rate, images, targets):
    made = replace(EFFECTS[effects], rates=(rate,), images=images, targets=targets)
    found = intervals(made, DRAWS)
    assert found["new"] >= LEAST
    assert found["cell"] >= LEAST
    rare = min(rate, 1 - rate) * images < 10  # the bootstrap over images is then too short
    assert found["these"] >= (0.83 if rare else LEAST)
    if effects == "strong" and images == 500:
        assert found["these as new"] < 0.75, "what holds for these targets is no claim about others"


@pytest.mark.parametrize("effects", EFFECTS)
@pytest.mark.parametrize(("images", "targets"), SIZES)
@pytest.mark.parametrize("rate", [0.02, 0.5])
def test_tests_err_as_often_as_they_say(effects, rate, images, targets):
    made = replace(EFFECTS[effects], rates=(rate,), images=images, targets=targets)
    found = levels(made, DRAWS)
    assert found["these"] <= MOST
    assert found["new"] <= MOST
    assert found["difference"] >= LEAST
    if effects == "strong" and images == 500:
        assert found["these as new"] > 2 * MOST, "equal over new targets is another question"


@pytest.mark.parametrize("targets", [5, 10])
def test_rank_intervals_hold_the_ranks_of_close_rows(targets):
    found = ranks(replace(STRONG, rates=CLOSE, images=150, targets=targets), DRAWS)
    assert found["least"] >= LEAST


@pytest.mark.parametrize("points", [0, 3, 6])
@pytest.mark.parametrize("rate", [0.5, 0.95])
def test_equal_defenses_are_seldom_told_apart(rate, points):
    for images, count in ((100, 5), (250, 10)):
        found = trainings(rate, points, images, count, DRAWS)
        assert found["told apart"] <= MOST
        assert found["interval"] >= LEAST
