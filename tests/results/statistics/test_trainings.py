"""Over trainings: intervals for new trainings and images, and the test between defenses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm, t, ttest_1samp, ttest_ind

from advens.results.statistics import over_trainings, trainings_difference, trainings_test, wilson


@pytest.mark.parametrize("values", [[0.5, 0.6], [0.5, 0.6, 0.8], [3.0, 4.5, 3.5, 5.0, 4.0]])
def test_of_what_is_no_rate_the_interval_is_students(values):
    found = over_trainings(values)
    assert found.value == pytest.approx(np.mean(values))
    assert found[1:] == pytest.approx(tuple(ttest_1samp(values, 0.0).confidence_interval(0.95)))


def test_variances_over_trainings_and_images_add_up():
    """Of very many images it is Student's on logits; of trainings that agree, that of a rate."""
    rates = expit([-0.2, 0.1, 0.4])
    low, high = over_trainings(rates, 10**9)[1:]
    student = ttest_1samp([-0.2, 0.1, 0.4], 0).confidence_interval(0.95)
    assert np.log(high / (1 - high)) - np.log(low / (1 - low)) == pytest.approx(student.high - student.low)
    assert over_trainings([0.5] * 4, 1000)[1:] == pytest.approx(wilson(500, 1000), abs=1e-3)
    both = over_trainings([0.4, 0.5, 0.6], 50)
    assert both.high - both.low > over_trainings([0.4, 0.5, 0.6], 10**6).high - 0.4
    assert all(0 < end < 1 for end in over_trainings([0.9, 1.0, 1.0], 20)[1:])


def test_what_one_training_says_and_what_never_varies():
    assert over_trainings([0.5], 100) == pytest.approx((0.5, *wilson(50, 100)))
    assert np.isnan(over_trainings([0.5])[1:]).all(), "one training has no spread"
    assert over_trainings([0.0] * 3, 100) == pytest.approx((0, *wilson(0, 100)))
    assert over_trainings([1.0] * 3, 100) == pytest.approx((1, *wilson(100, 100)))


def left(rng, ease, trainings, shift, spread):
    """Images left by trainings that differ from one another by ``spread`` on the logit scale."""
    logits = ease[:, None] + shift + spread * rng.standard_normal(trainings)
    return (rng.random(logits.shape) < expit(logits)).astype(float)


def test_the_test_is_welchs_where_images_do_not_matter():
    a, b = np.array([0.2, 0.3, 0.4, 0.5, 0.6]), np.array([0.5, 0.62, 0.64, 0.66, 0.68, 0.7])
    expected = ttest_ind(np.log(a / (1 - a)), np.log(b / (1 - b)), equal_var=False).pvalue
    n = 400_000
    found = trainings_test(np.tile(a, (n, 1)), np.tile(b, (n, 1)))
    assert found == pytest.approx(expected, rel=1e-3)
    assert trainings_test(np.tile(b, (n, 1)), np.tile(a, (n, 1))) == pytest.approx(found)


def test_images_count_as_well():
    """Trainings that agree to the image leave the paired test over images."""
    rng = np.random.default_rng(0)
    ease = rng.random(200)
    a, b = ((ease < 0.5).astype(float), (rng.permutation(ease) < 0.58).astype(float))
    found = trainings_test(np.tile(a[:, None], 5), np.tile(b[:, None], 5))
    assert 0.02 < found < 0.5
    assert trainings_test(np.tile(a[:, None], 5), np.tile(a[:, None], 5)) == 1
    assert np.isnan(trainings_test(np.ones((50, 4)), np.zeros((50, 5))))
    assert 0 < trainings_test(np.ones((50, 5)), np.zeros((50, 5))) < 1e-3


@pytest.mark.parametrize("points", [0, 3, 6])
@pytest.mark.parametrize(("images", "trainings"), [(100, 5), (250, 10)])
def test_equal_defenses_are_seldom_told_apart_and_unequal_ones_are(points, images, trainings):
    rng = np.random.default_rng(points * images)
    spread = points / 100 / 0.25 * 1.5  # the images' spread flattens the slope of the mean
    apart = found = 0
    for _ in range(200):
        ease = 1.5 * rng.standard_normal(images)
        a, b = (left(rng, ease, trainings, 0.0, spread) for _ in range(2))
        apart += trainings_test(a, b) < 0.05
        found += trainings_test(a, left(rng, ease, trainings, 1.5, spread)) < 0.05
    assert apart <= 18, "5 % of 200 is 10; 99 % of such counts are 18 at most"
    assert found >= 180


def test_the_difference_of_defenses():
    truth = np.subtract(*norm.cdf(np.array([0.5, 0.2]) / np.sqrt(1 + 0.4**2 + 1)))
    draws = np.random.default_rng(0)
    hits, n, count = 0, 150, 400
    for _ in range(count):
        easy = draws.normal(size=(n, 1))  # images are easier or harder for both
        a, b = (
            ((easy + at + draws.normal(0, 0.4, size=(1, 5)) + draws.normal(size=(n, 5))) > 0).astype(float)
            for at in (0.5, 0.2)
        )
        found = trainings_difference(a, b)
        assert found.value == pytest.approx(a.mean() - b.mean())
        hits += found.low < truth < found.high
    assert 0.93 <= hits / count <= 0.995


def test_the_difference_of_single_trainings_is_over_images():
    a = np.repeat([1.0, 0.0], [60, 40])[:, None]
    b = np.repeat([1.0, 0.0], [50, 50])[:, None]
    found = trainings_difference(a, b)
    half = t.ppf(0.975, 99) * np.std(a - b, ddof=1) / 10
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half))
    assert trainings_difference(a, a)[1:] == (0, 0)
