"""Intervals, tests and ranks for new models and new images: both are samples from populations.

The variance of a mean over a table of images and targets is that of clusters in two directions
(Cameron, Gelbach and Miller, 2011): over images, plus over targets, less what both of them count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advens.results.statistics.images import (
    Array,
    Estimate,
    chunks,
    nanmean,
    resample_counts,
    score_interval,
)

LEAST_TARGETS = 5
"""Targets below which nothing is said about new models."""
_ZERO = 1e-12  # a smaller difference is rounding


def two_way(values: ArrayLike, confidence: float = 0.95) -> Estimate:
    """Mean over targets of the mean over images, with an interval for new images and new targets.

    The interval is Student's with T - 1 degrees of freedom, on the logit scale, where it stays within
    [0, 1]. The standard error is there the larger of two: the error of the mean, carried over by the
    slope at the mean (delta method); and that of the targets' own logits, which sees what the slope
    does not when a few targets are hit much more often than the others.

    Args:
        values: in [0, 1], (images, targets); nan where an image is not in the denominator.

    Returns:
        The mean, and ends that are nan for fewer than `LEAST_TARGETS` targets. When no value
        differs from the others it is Wilson's interval for as many images, with Student's quantile.
    """
    from scipy.special import expit, logit

    parts = _Variance.of(values)
    mean = parts.mean
    if not parts.targets >= LEAST_TARGETS:
        return Estimate(mean, np.nan, np.nan)
    quantile = parts.quantile(confidence)
    slope = mean * (1 - mean)
    if slope <= 0 or not parts.total > 0:
        return Estimate(mean, *score_interval(mean * parts.n, parts.n, quantile))
    logits = logit((parts.rates * parts.counts + 0.5) / (parts.counts + 1))
    apart = logits.var(ddof=1) / parts.targets + max(parts.images - parts.residual, 0.0) / slope**2
    half = quantile * np.sqrt(max(parts.total / slope**2, apart))
    low, high = expit(logit(mean) + np.array([-half, half]))
    return Estimate(mean, float(low), float(high))


def two_way_difference(differences: ArrayLike, confidence: float = 0.95) -> Estimate:
    """As `two_way`, of paired differences in [-1, 1] and on their own scale."""
    parts = _Variance.of(differences)
    if not parts.targets >= LEAST_TARGETS:
        return Estimate(parts.mean, np.nan, np.nan)
    half = parts.quantile(confidence) * parts.error
    return Estimate(parts.mean, max(parts.mean - half, -1.0), min(parts.mean + half, 1.0))


def two_way_test(differences: ArrayLike) -> float:
    """Whether a difference differs from 0 over new images and new targets: a p-value, two-sided.

    Args:
        differences: paired, (images, targets); nan where an image is not in the denominator.

    Returns:
        Of Student's t with T - 1 degrees of freedom; nan for fewer than `LEAST_TARGETS` targets.
    """
    return _p_value(_Variance.of(differences))


def two_way_tests(blocks: Sequence[Array], pairs: Sequence[tuple[int, int]]) -> Array:
    """`two_way_test` of the differences of many pairs of rows.

    Rows with values at the same places are tested together: the variances of a difference follow from
    products of what those of the two rows are made of.

    Args:
        blocks: of each row, (images, targets); nan where an image is not in the denominator.
        pairs: places in ``blocks``, of rows over the same images and targets.

    Returns:
        P-values (pairs,).
    """
    found = np.full(len(pairs), np.nan)
    alike: dict[bytes, list[int]] = {}
    rows = {row for pair in pairs for row in pair}
    inside = {row: np.packbits(~np.isnan(blocks[row])).tobytes() for row in rows}
    for k, (a, b) in enumerate(pairs):
        if inside[a] == inside[b]:
            alike.setdefault(inside[a], []).append(k)
        else:
            found[k] = two_way_test(blocks[a] - blocks[b])
    for together in alike.values():
        found[together] = _tests_at_once(blocks, [pairs[k] for k in together])
    return found


def _tests_at_once(blocks: Sequence[Array], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """P-values of pairs of rows with values at the same places."""
    rows = sorted({row for pair in pairs for row in pair})
    place = {row: k for k, row in enumerate(rows)}
    rates, (counts, *_), images, left = zip(*(_pieces(blocks[row]) for row in rows), strict=True)
    one, other = (np.array([place[pair[k]] for pair in pairs]) for k in (0, 1))
    squares = (_distances(np.stack(points), one, other) for points in (images, left))
    n = len(images[0])
    return [
        _p_value(_Variance.made(rates[a] - rates[b], counts, n, *both))
        for a, b, *both in zip(one, other, *squares, strict=True)
    ]


def _distances(points: Array, one: NDArray[np.int64], other: NDArray[np.int64]) -> list[float]:
    """Squared distances of pairs of points (points, coordinates)."""
    ones, place = np.unique(one, return_inverse=True)
    squares = (points**2).sum(axis=1)
    products = points[ones] @ points.T
    found: list[float] = np.maximum(squares[one] + squares[other] - 2 * products[place, other], 0).tolist()
    return found


def _p_value(parts: _Variance) -> float:
    from scipy.stats import t

    if not parts.targets >= LEAST_TARGETS:
        return float("nan")
    if abs(parts.mean) < _ZERO:
        return 1.0
    return float(2 * t.sf(abs(parts.mean) / parts.error, parts.targets - 1))


class _Variance(NamedTuple):
    """The mean of a table and the variances that it has from images, from targets, and from both.

    Args:
        rates: of each target, the mean over images.
        counts: of each target, the number of images.
        n: images with any value.
        images: variance of the mean over images, these targets given.
        by_target: variance of the mean over targets, these images given.
        residual: what neither explains; images and by_target both count it.
    """

    mean: float
    rates: Array
    counts: NDArray[np.int64]
    n: int
    images: float
    by_target: float
    residual: float

    @classmethod
    def of(cls, values: ArrayLike) -> _Variance:
        rates, counts, of_image, left = _pieces(values)
        return cls.made(rates, counts, len(of_image), float((of_image**2).sum()), float((left**2).sum()))

    @classmethod
    def made(cls, rates: Array, counts: NDArray[np.int64], n: int, images: float, left: float) -> _Variance:
        """From the sums of squares of what `_pieces` gives."""
        mean, targets = float(nanmean(rates)), len(rates)
        if n < 2 or targets < 2:
            return cls(mean, rates, counts, n, np.nan, np.nan, np.nan)
        residual = n * targets / ((n - 1) * (targets - 1)) * left
        by_target = rates.var(ddof=1) / targets
        return cls(mean, rates, counts, n, n / (n - 1) * images, float(by_target), residual)

    @property
    def targets(self) -> int:
        return len(self.rates)

    @property
    def total(self) -> float:
        return max(self.images + self.by_target - self.residual, self.images, self.by_target)

    @property
    def error(self) -> float:
        """The standard error; where nothing varies, what one image is worth."""
        return float(np.sqrt(self.total)) or 1 / self.n

    def quantile(self, confidence: float) -> float:
        from scipy.stats import t

        return float(t.ppf(0.5 + confidence / 2, self.targets - 1))


def _pieces(values: ArrayLike) -> tuple[Array, NDArray[np.int64], Array, Array]:
    """What a table's variances are made of; linear in its values, where nans have the same places.

    Returns:
        Of each target that has a value, the mean over images and the number of images; of each image that
        has a value, what it adds to the mean; and of every value what neither explains, by its weight.
    """
    table = np.asarray(values, float)
    table = table[:, ~np.isnan(table).all(axis=0)]
    table = table[~np.isnan(table).all(axis=1)]
    inside = ~np.isnan(table)
    counts = inside.sum(axis=0)
    rates = nanmean(table, axis=0)
    weight = inside / counts / max(len(counts), 1)
    off = np.where(inside, table - rates, 0.0)
    of_image = off.sum(axis=1, keepdims=True) / inside.sum(axis=1, keepdims=True)
    left = np.where(inside, off - of_image, 0.0)
    return rates, counts, (weight * off).sum(axis=1), (weight * left).ravel()


def rank_intervals(
    blocks: Sequence[Array], seed: int, resamples: int = 2000, confidence: float = 0.95
) -> NDArray[np.int64]:
    """Intervals of the ranks of rows over new images and new targets, which are resampled together.

    The first rank of a row is one more than the number of rows that are surely ahead of it, the last
    one is all rows but those surely behind it (Mogstad, Romano, Shaikh and Wilhelm, 2024). Sure is a
    difference that exceeds what the largest of the row's standardised differences reaches in 95 % of
    the resamples; this limit is widened as Student's quantile, with T - 1 degrees of freedom, is wider
    than the normal one. Percentiles of the ranks in the resamples, which are narrower, do not hold the
    rank among new targets when rows are close.

    Args:
        blocks: of each row, (images, targets) over the same images and targets; nan where an image
            is not in the denominator. The row with the highest mean over targets has rank 1.

    Returns:
        First and last rank (rows, 2), which hold the rank in the data.
    """
    from scipy.special import ndtri
    from scipy.stats import t

    rows = len(blocks)
    if not rows:
        return np.empty((0, 2), int)
    stacked = np.stack([np.asarray(block, float) for block in blocks], axis=1)
    images, _, targets = stacked.shape
    found = nanmean(nanmean(stacked, axis=0), axis=1)
    inside = ~np.isnan(stacked)
    flat = np.concatenate([np.nan_to_num(stacked), inside], axis=1).reshape(images, 2 * rows * targets)
    rng = np.random.default_rng(seed)
    drawn = []
    for size in chunks(resamples, 2 * rows * targets + images):
        counts = next(resample_counts(images, size, rng))
        sums, totals = np.split((counts @ flat).reshape(size, 2 * rows, targets), 2, axis=1)
        means = np.divide(sums, totals, out=np.zeros_like(sums), where=totals > 0)
        weight = next(resample_counts(targets, size, rng))[:, None, :] * (totals > 0)
        drawn.append((means * weight).sum(axis=2) / np.maximum(weight.sum(axis=2), 1))
    off = np.concatenate(drawn) - found
    tail = 0.5 + confidence / 2
    wider = t.ppf(tail, max(targets - 1, 1)) / ndtri(tail)
    intervals = np.empty((rows, 2), int)
    for row in range(rows):
        apart = off[:, [row]] - off
        error = apart.std(axis=0)
        standardised = np.divide(np.abs(apart), error, out=np.zeros_like(apart), where=error > 0)
        limit = wider * np.quantile(standardised.max(axis=1), confidence) * error
        behind = found - found[row]
        surely = np.abs(behind) > limit + 1e-12  # the order of a sum must not show
        intervals[row] = 1 + (surely & (behind > 0)).sum(), rows - (surely & (behind < 0)).sum()
    return intervals
