"""Intervals and tests over trainings: the training is the unit, and images are a sample as well."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from advens.results.statistics.images import Array, Estimate, nanmean, wilson

LEAST_TRAININGS = 5
"""Trainings below which two defenses are not compared by a test."""


def over_trainings(values: ArrayLike, n: int | None = None, confidence: float = 0.95) -> Estimate:
    """The mean over trainings (S,) with an interval for new trainings, and for new images.

    On the logit scale, where the variance over trainings and that of a rate over n images add up; the
    degrees of freedom are Welch's. Without ``n``, of what is no rate, it is Student's interval.

    Args:
        values: of each training, a mean over images.
        n: images that the values are rates of.

    Returns:
        The mean and its ends. A single training tells nothing of others: its interval is Wilson's
        over images, or not a number. So is that of trainings whose rates are all 0, or all 1.
    """
    from scipy.special import expit, logit
    from scipy.stats import t

    rates = np.asarray(values, float)
    mean, count = float(rates.mean()), len(rates)
    tail = 0.5 + confidence / 2
    if n is None:
        half = t.ppf(tail, count - 1) * rates.std(ddof=1) / np.sqrt(count) if count > 1 else np.nan
        return Estimate(mean, mean - float(half), mean + float(half))
    if count == 1 or not 0 < mean < 1:
        return Estimate(mean, *wilson(mean * n, n, confidence))
    trained = _logits(rates, n).var(ddof=1) / count
    imaged = 1 / (n * mean * (1 - mean))
    half = t.ppf(tail, _freedom([trained, imaged], [count - 1, n - 1])) * np.sqrt(trained + imaged)
    low, high = expit(logit(mean) + np.array([-half, half]))
    return Estimate(mean, float(low), float(high))


def trainings_test(a: Array, b: Array) -> float:
    """Whether two defenses differ over new trainings and new images: a p-value, two-sided.

    Welch's test on the logits of the trainings' rates. Both are measured on the same images, and the
    variance of their difference over images is added to those over trainings.

    Args:
        a, b: left on each image by each training, (images, trainings); nan where it was not measured.

    Returns:
        nan for fewer than `LEAST_TRAININGS` trainings of either.
    """
    from scipy.stats import t

    if min(a.shape[1], b.shape[1]) < LEAST_TRAININGS:
        return float("nan")
    n = len(a)
    means, trained, by_image, unseen = [], [], [], 0.0
    for left in (a, b):
        logits = _logits(nanmean(left, axis=0), n)
        centre = float(_inside(nanmean(left), n))
        means.append(logits.mean())
        trained.append(logits.var(ddof=1) / len(logits))
        by_image.append(nanmean(left, axis=1) / (centre * (1 - centre)))  # slope of the logit
        if np.nanvar(left) == 0:  # a rate of 0 or 1 varies too, which these images do not show
            unseen += 1 / (n * centre * (1 - centre))
    imaged = np.nanvar(by_image[0] - by_image[1], ddof=1) / n + unseen
    variances, difference = [*trained, imaged], abs(means[0] - means[1])
    if difference == 0:
        return 1.0
    freedom = _freedom(variances, [a.shape[1] - 1, b.shape[1] - 1, n - 1])
    return float(2 * t.sf(difference / np.sqrt(sum(variances)), freedom))


def trainings_difference(a: Array, b: Array, confidence: float = 0.95) -> Estimate:
    """How far apart the rates of two defenses are, with an interval for new trainings and new images.

    Variances add up as in `trainings_test`, here on the rates themselves, so that at the level of an
    interval the two can differ.

    Args:
        a, b: left on each image by each training, (images, trainings); nan where it was not measured.

    Returns:
        The mean of ``a`` minus that of ``b``, and its ends; of a single training of either, over images
        alone.
    """
    from scipy.stats import t

    n, tail = len(a), 0.5 + confidence / 2
    difference = float(nanmean(a) - nanmean(b))
    variances, freedom = [np.nanvar(nanmean(a, axis=1) - nanmean(b, axis=1), ddof=1) / n], [n - 1]
    if min(a.shape[1], b.shape[1]) > 1:
        variances += [nanmean(left, axis=0).var(ddof=1) / left.shape[1] for left in (a, b)]
        freedom += [left.shape[1] - 1 for left in (a, b)]
    half = float(t.ppf(tail, _freedom(variances, freedom)) * np.sqrt(sum(variances)))
    return Estimate(difference, difference - half, difference + half)


def _inside(rates: Array, n: int) -> Array:
    """Rates with half an image added on both sides: 0 and 1 have logits too."""
    return (rates * n + 0.5) / (n + 1)


def _logits(rates: Array, n: int) -> Array:
    inside = _inside(rates, n)
    return np.log(inside / (1 - inside))


def _freedom(variances: list[float], each: list[int]) -> float:
    """Welch's degrees of freedom of a sum of variances."""
    squares = sum(v**2 / df for v, df in zip(variances, each, strict=True))
    return float(sum(variances) ** 2 / squares) if squares else float(min(each))
