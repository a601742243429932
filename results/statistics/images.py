"""Intervals for new images and the models at hand: Wilson's, and the bootstrap over images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advens.digest import value_digest

Array = NDArray[np.float64]
_AT_ONCE = 4_000_000  # random numbers held in memory at a time


class Estimate(NamedTuple):
    """A number and its interval."""

    value: float
    low: float
    high: float


def content_seed(*parts: Any) -> int:
    """A 60-bit seed from JSON-able content."""
    return int(value_digest(parts, 15), 16)


def wilson(successes: ArrayLike, n: ArrayLike, confidence: float = 0.95) -> tuple[Any, Any]:
    """Wilson's score interval for a proportion (Wilson, 1927); vectorised.

    With several seeds give ``n`` = the number of distinct images and ``successes`` = n times the
    mean over seeds. Seeds of one image are not independent, so counting them as more images would
    make the interval too short; this way it is a little too long.

    Args:
        successes: how many, fractions allowed, (...).
        n: out of how many, (...); 0 gives (0, 1).

    Returns:
        low, high in [0, 1]; floats for scalars, else arrays (...).
    """
    from scipy.special import ndtri

    return score_interval(successes, n, float(ndtri(0.5 + confidence / 2)))


def score_interval(successes: ArrayLike, n: ArrayLike, quantile: float) -> tuple[Any, Any]:
    """Wilson's interval with ``quantile`` standard errors to each side."""
    k, total = np.broadcast_arrays(np.asarray(successes, float), np.asarray(n, float))
    z2 = quantile**2
    some = np.where(total > 0, total, 1.0)
    p = np.where(total > 0, k / some, 0.5)
    centre = (p + z2 / (2 * some)) / (1 + z2 / some)
    half = np.sqrt(z2 * (p * (1 - p) / some + z2 / (4 * some**2))) / (1 + z2 / some)
    low = np.where((total > 0) & (p > 0), np.clip(centre - half, 0, 1), 0.0)
    high = np.where((total > 0) & (p < 1), np.clip(centre + half, 0, 1), 1.0)
    return (float(low), float(high)) if low.ndim == 0 else (low, high)


def bootstrap_mean(
    contributions: ArrayLike, seed: int, resamples: int = 2000, confidence: float = 0.95
) -> Estimate:
    """Mean over targets of the mean over images, with a percentile bootstrap over images.

    Args:
        contributions: (images, targets) or (images,); nan where an image is not in the denominator.

    Returns:
        The mean and its interval; nan when no image counts. An image is drawn with its values
        for all targets. When no value differs from the others the bootstrap knows no spread;
        the interval is then Wilson's for as many images.
    """
    return bootstrap_means([np.asarray(contributions, float)], seed, resamples, confidence)[0]


def bootstrap_means(
    blocks: Sequence[Array], seed: int, resamples: int = 2000, confidence: float = 0.95
) -> list[Estimate]:
    """``bootstrap_mean`` of several blocks over the same images, on the same resamples."""
    blocks = [block.reshape(len(block), -1) for block in blocks]
    if not blocks:
        return []
    values = np.concatenate(blocks, axis=1)
    inside = ~np.isnan(values)
    stacked = np.concatenate([np.nan_to_num(values), inside], axis=1)
    edges = np.cumsum([0] + [block.shape[1] for block in blocks])
    drawn: list[list[Array]] = [[] for _ in blocks]
    for counts in resample_counts(len(values), resamples, np.random.default_rng(seed)):
        sums, totals = np.split(counts @ stacked, 2, axis=1)
        means = np.divide(sums, totals, out=np.full_like(sums, np.nan), where=totals > 0)
        for k, draws in enumerate(drawn):
            draws.append(nanmean(means[:, edges[k] : edges[k + 1]], axis=1))
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    estimates = []
    for block, draws in zip(blocks, drawn, strict=True):
        mean = float(nanmean(nanmean(block, axis=0)))
        numbers = block[~np.isnan(block)]
        if numbers.size == 0:
            estimates.append(Estimate(np.nan, np.nan, np.nan))
        elif 0 <= numbers.min() == numbers.max() <= 1:
            n = int((~np.isnan(block)).any(axis=1).sum())
            estimates.append(Estimate(mean, *wilson(mean * n, n, confidence)))
        else:
            ends = np.nanquantile(np.concatenate(draws), tails)
            low, high = np.round(ends, 12)  # the order of a sum must not show
            estimates.append(Estimate(mean, float(low), float(high)))
    return estimates


def resample_counts(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each of n images is drawn: arrays (some, n) with ``resamples`` rows in all."""
    for size in chunks(resamples, n):
        drawn = rng.integers(0, max(n, 1), (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)


def chunks(total: int, width: int) -> Iterator[int]:
    size = max(1, _AT_ONCE // max(width, 1))
    for start in range(0, total, size):
        yield min(size, total - start)


def nanmean(values: Array, axis: int | None = None) -> Array:
    """Mean of what is not nan; nan, without a warning, when nothing is left."""
    count = (~np.isnan(values)).sum(axis=axis)
    total = np.nansum(values, axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
