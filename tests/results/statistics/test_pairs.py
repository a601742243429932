"""Tests of pairs find what is there and nothing else."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binomtest

from advens.results.statistics import holm, paired_tests


def paired_test(a, b, seed, flips=10_000):
    """The p-value of one pair."""
    return float(paired_tests((np.asarray(a, float) - np.asarray(b, float))[:, None], seed, flips)[0])


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


def test_flips_are_exact_for_few_images():
    """All signs by hand: 2 of 16 reach the total of equal ones; of 2, 1 and -1, all but the two zeros."""
    p = paired_tests(np.array([[1.0, 2.0], [1.0, 1.0], [1.0, -1.0], [1.0, 0.0]]), seed=0, flips=40_000)
    assert p[0] == pytest.approx(2 / 16, abs=0.005)
    assert p[1] == pytest.approx(12 / 16, abs=0.01)


def exact(steps, total):
    """P(|sum of the steps with random signs| >= total), all 2^n flips counted in integers."""
    counts = {0: 1}
    for step in steps:
        after: dict[int, int] = {}
        for value, count in counts.items():
            for moved in (value - step, value + step):
                after[moved] = after.get(moved, 0) + count
        counts = after
    return float(Fraction(sum(c for v, c in counts.items() if abs(v) >= total), 2 ** len(steps)))


KINDS = {
    "equal": lambda rng, n: np.ones(n, int),
    "targets": lambda rng, n: rng.integers(1, 11, n),
    "few large": lambda rng, n: np.where(rng.random(n) < 0.1, 10, 1),
    "one large": lambda rng, n: np.r_[np.ones(n - 1, int), n // 2],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [12, 40, 120])
def test_tails_are_exact(kind, n):
    rng = np.random.default_rng(n)
    for z in (3, 4, 6, 8):
        steps = KINDS[kind](rng, n)
        signs = np.ones(n)
        for place in np.argsort(steps, kind="stable"):  # the smallest turn until the total is z deviations
            if (steps * signs).sum() - 2 * steps[place] >= z * np.sqrt((steps**2).sum()):
                signs[place] = -1
        differences = steps * signs / 10
        expected = exact(steps.tolist(), abs(round(float((steps * signs).sum()))))
        if expected < 0.005:
            assert expected * (1 - 1e-6) <= paired_tests(differences[:, None], seed=n)[0] <= 1.5 * expected


def test_tails_beyond_all_numbers():
    assert paired_tests(np.full((64, 1), 0.5), seed=0)[0] == pytest.approx(2**-63, rel=1e-4)
    assert paired_tests(np.ones((5000, 1)), seed=0, flips=10)[0] > 0
    assert paired_tests(np.zeros((50, 2)), seed=0, flips=10).tolist() == [1, 1]


def test_a_pair_among_hundreds_is_found():
    """4.1 standard deviations are enough for Holm's first of 528, where Hoeffding's bound was not."""
    ahead = np.repeat([1.0, -1.0], [640, 500])[:, None]
    bound = 2 * np.exp(-(ahead.sum() ** 2) / (2 * len(ahead)))
    assert 528 * paired_tests(ahead, seed=0)[0] < 0.05 < 528 * bound


def test_holm_keeps_the_order_of_ties():
    assert holm([0.02, 0.02, 0.01, 0.9]) == pytest.approx([0.06, 0.06, 0.04, 0.9])
    assert holm([0.01, 0.011, 0.012]) == pytest.approx([0.03, 0.03, 0.03])


@pytest.mark.parametrize(
    ("images", "ahead"), [(1000, 505), (1000, 540), (1001, 560), (5000, 2700), (5000, 3100)]
)
def test_many_equal_steps_have_the_tail_of_the_sign_test(images, ahead):
    """To 5 %, and not below it, down to p = 1e-66; no flip is drawn."""
    d = np.where(np.arange(images) < ahead, 1.0, -1.0)[:, None]
    exact = binomtest(ahead, images).pvalue
    assert exact <= paired_tests(d, seed=0, flips=0)[0] < 1.05 * exact
    assert paired_tests(-d / 7, seed=0, flips=0)[0] == pytest.approx(paired_tests(d, seed=0, flips=0)[0])


def test_many_uneven_steps_have_the_tail_of_their_flips():
    rng = np.random.default_rng(0)
    d = rng.integers(-10, 11, (1600, 4)) / 10 + np.array([0.0, 0.0, 0.02, 0.04])
    d[:, 1] = np.where(rng.random(1600) < 0.9, 0, d[:, 1])  # too few images: flips
    found = paired_tests(d, seed=0)
    signs = rng.choice([-1.0, 1.0], (20_000, 1600))
    often = (np.abs(signs @ d) >= np.abs(d.sum(axis=0)) - 1e-9).mean(axis=0)
    assert found[:3] == pytest.approx(often[:3], abs=0.015)
    alone = [paired_tests(d[:, [k]], seed=0)[0] for k in range(4)]
    assert found.tolist() == alone, "a pair's p-value does not depend on the others"
    assert paired_tests(np.zeros((2000, 1)), seed=0)[0] == 1
    assert paired_tests(np.tile([1.0, -1.0], 1000)[:, None], seed=0)[0] == 1
