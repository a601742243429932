"""Intervals, tests and ranks for new models and new images: both are samples from populations.

The variance of a mean over a table of images and targets is that of clusters in two directions
(Cameron, Gelbach and Miller, 2011): over images, plus over targets, less what both count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advens.results.statistics.images import Array, Estimate, chunks, nanmean, resample_counts

LEAST_TARGETS = 5
"""Targets below which nothing is said about new models."""
_NOTHING = Estimate(np.nan, np.nan, np.nan)


def two_way(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean over targets of the mean over images, with an interval for new images and new targets.

    The interval is Student's with T - 1 degrees of freedom on the logit scale, so that it stays
    within [0, 1].

    Args:
        values: in [0, 1], (images, targets); nan where an image is not in the denominator.

    Returns:
        The mean, and ends that are nan for fewer than `LEAST_TARGETS` targets.
    """
    from scipy.special import expit, logit

    mean, error, targets, images = _mean_and_error(values)
    if not targets >= LEAST_TARGETS:
        return Estimate(mean, np.nan, np.nan)
    centre = (mean * images + 0.5) / (images + 1)  # a rate of 0 or 1 has a logit too
    spread = centre * (1 - centre)
    half = _quantile(targets, confidence) * (error or np.sqrt(spread / images)) / spread
    low, high = expit(logit(centre) - half), expit(logit(centre) + half)
    return Estimate(mean, float(min(low, mean)), float(max(high, mean)))


def two_way_difference(differences: ArrayLike, confidence: float = 0.95) -> Estimate:
    """As `two_way`, of paired differences in [-1, 1] and on their own scale."""
    mean, error, targets, _ = _mean_and_error(differences)
    if not targets >= LEAST_TARGETS:
        return Estimate(mean, np.nan, np.nan)
    half = _quantile(targets, confidence) * error
    return Estimate(mean, max(mean - half, -1.0), min(mean + half, 1.0))


def two_way_test(differences: ArrayLike) -> float:
    """Whether a difference differs from 0 over new images and new targets: a p-value, two-sided.

    Args:
        differences: paired, (images, targets); nan where an image is not in the denominator.

    Returns:
        Of Student's t with T - 1 degrees of freedom; nan for fewer than `LEAST_TARGETS` targets.
    """
    from scipy.stats import t

    mean, error, targets, _ = _mean_and_error(differences)
    if not targets >= LEAST_TARGETS:
        return float("nan")
    if mean == 0:
        return 1.0
    return float(2 * t.sf(abs(mean) / max(error, np.finfo(float).tiny), targets - 1))


def _mean_and_error(values: ArrayLike) -> tuple[float, float, int, int]:
    """Mean, standard error, and the numbers of targets and of images that count.

    The error is the square root of V_images + V_targets - V_residual, and of no less than either of
    the first two: V_images is of the sums over targets, V_targets of the means over images, and
    V_residual of what neither explains, which both of them count.
    """
    table = np.asarray(values, float)
    inside = ~np.isnan(table)
    table, inside = table[:, inside.any(axis=0)], inside[:, inside.any(axis=0)]
    table, inside = table[inside.any(axis=1)], inside[inside.any(axis=1)]
    n, targets = table.shape
    if not table.size:
        return float("nan"), float("nan"), 0, 0
    of_target = nanmean(table, axis=0)
    mean = float(of_target.mean())
    if n < 2 or targets < 2:
        return mean, float("nan"), targets, n
    weight = inside / inside.sum(axis=0) / targets
    off = np.where(inside, table - of_target, 0.0)
    of_image = off.sum(axis=1, keepdims=True) / inside.sum(axis=1, keepdims=True)
    v_images = n / (n - 1) * ((weight * off).sum(axis=1) ** 2).sum()
    v_targets = of_target.var(ddof=1) / targets
    left = np.where(inside, off - of_image, 0.0)
    v_residual = n * targets / ((n - 1) * (targets - 1)) * ((weight * left) ** 2).sum()
    variance = max(v_images + v_targets - v_residual, v_images, v_targets)
    return mean, float(np.sqrt(variance)), targets, n


def _quantile(targets: int, confidence: float) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, targets - 1))


def rank_intervals(
    blocks: Sequence[Array], seed: int, resamples: int = 2000, confidence: float = 0.95
) -> NDArray[np.int64]:
    """Intervals of the ranks of rows, with images and targets resampled together.

    Args:
        blocks: of each row, (images, targets) over the same images and targets; nan where an image
            is not in the denominator. The row with the highest mean over targets has rank 1.

    Returns:
        First and last rank (rows, 2). Rows that tie share their ranks. The rank in the data is
        always within.
    """
    rows = len(blocks)
    if not rows:
        return np.empty((0, 2), int)
    stacked = np.stack([np.asarray(block, float) for block in blocks], axis=1)
    images, _, targets = stacked.shape
    inside = ~np.isnan(stacked)
    flat = np.concatenate([np.nan_to_num(stacked), inside], axis=1).reshape(images, -1)
    rng = np.random.default_rng(seed)
    ranks = [_ranks(nanmean(nanmean(stacked, axis=0), axis=1)[None])]
    for size in chunks(resamples, 2 * rows * max(targets, 1) + images):
        counts = next(resample_counts(images, size, rng))
        drawn = next(resample_counts(targets, size, rng))
        sums, totals = np.split((counts @ flat).reshape(size, 2 * rows, targets), 2, axis=1)
        means = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
        weight = drawn[:, None, :] * (totals > 0)
        ranks.append(_ranks((means * weight).sum(axis=2) / np.maximum(weight.sum(axis=2), 1)))
    first, last = np.concatenate(ranks, axis=1)
    low = np.quantile(first[1:], (1 - confidence) / 2, axis=0, method="lower")
    high = np.quantile(last[1:], (1 + confidence) / 2, axis=0, method="higher")
    both = np.stack([np.minimum(low, first[0]), np.maximum(high, last[0])], axis=1)
    return both.astype(int)


def _ranks(means: Array) -> Array:
    """First and last rank of each row among means (draws, rows), the highest first: (2, draws, rows)."""
    means = np.round(means, 12)  # the order of a sum must not show
    ordered = np.sort(-means, axis=1)
    first = np.stack([np.searchsorted(o, -m, "left") for o, m in zip(ordered, means, strict=True)])
    last = np.stack([np.searchsorted(o, -m, "right") for o, m in zip(ordered, means, strict=True)])
    return np.stack([first + 1.0, last])
