"""Intervals and tests over images: how far a number can be trusted, and when two of them differ.

Every random draw is seeded by the caller from the content it is about, so that the same samples
give the same digits everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from advens.digest import value_digest

Array = NDArray[np.float64]
_AT_ONCE = 4_000_000  # random numbers held in memory at a time
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


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

    k, total = np.broadcast_arrays(np.asarray(successes, float), np.asarray(n, float))
    z2 = float(ndtri(0.5 + confidence / 2)) ** 2
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
    for counts in _resamples(len(values), resamples, np.random.default_rng(seed)):
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


def paired_tests(differences: Array, seed: int, flips: int = 10_000) -> Array:
    """Sign-flip permutation tests on many pairs at once.

    If two attacks are the same, swapping them on any image changes nothing, so the total of the
    differences is one draw from all its 2^images sign flips; ``flips`` of them are looked at.

    Resolution: p = (1 + flips that reach the total) / (1 + flips), so 1e-4 for the default. When
    none reaches it, the exact p-value is bounded by Hoeffding's 2 exp(-total² / 2 Σd²) and the
    smaller of the two is taken: else Holm's correction could never find a difference among many
    attacks.

    Args:
        differences: (images, pairs); nan counts as no difference.

    Returns:
        p-values (pairs,).
    """
    d = np.nan_to_num(np.asarray(differences, float))
    d = d[np.any(d != 0, axis=1)]
    total = np.abs(d.sum(axis=0))
    within = total - 1e-9 * np.abs(d).sum(axis=0)  # a tie is a tie whatever the rounding
    reached = np.zeros(d.shape[1])
    rng = np.random.default_rng(seed)
    for size in _chunks(flips, len(d)):
        signs = rng.integers(0, 2, (size, len(d)), dtype=np.int8) * 2.0 - 1.0
        reached += (np.abs(signs @ d) >= within).sum(axis=0)
    p = (1 + reached) / (1 + flips)
    squares = np.maximum((d**2).sum(axis=0), np.finfo(float).tiny)
    bound = 2 * np.exp(-(total**2) / (2 * squares))
    return np.where(reached == 0, np.minimum(p, np.maximum(bound, np.finfo(float).tiny)), p)


def holm(pvalues: ArrayLike) -> Array:
    """P-values adjusted for their number, step-down (Holm, 1979)."""
    p = np.asarray(pvalues, float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def letters(names: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Compact letter display: two names share a letter exactly when they are not ``different``.

    Insert-and-absorb (Piepho, 2004): begin with one letter for all; every pair that differs splits
    the letters that hold both; a letter within another is dropped.

    Args:
        names: in rank order; the first name has the letter ``a``.
        different: pairs told apart by a test.
    """
    groups = [frozenset(names)] if names else []
    for one, other in different:
        split = []
        for group in groups:
            both = one in group and other in group
            split += [group - {one}, group - {other}] if both else [group]
        groups = _absorbed(split)
    groups = _swept(groups)
    place = {name: k for k, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(place[name] for name in group))
    signs = [_LETTERS[k] if k < len(_LETTERS) else f"({k + 1})" for k in range(len(groups))]
    return {
        name: "".join(sign for sign, group in zip(signs, groups, strict=True) if name in group)
        for name in names
    }


def _absorbed(groups: list[frozenset[str]]) -> list[frozenset[str]]:
    kept: list[frozenset[str]] = []
    for group in sorted(set(groups), key=lambda g: (-len(g), sorted(g))):
        if not any(group <= larger for larger in kept):
            kept.append(group)
    return kept


def _swept(groups: list[frozenset[str]]) -> list[frozenset[str]]:
    """Drops every letter that says nothing the others do not say (smallest first)."""
    kept = list(groups)
    for group in sorted(groups, key=lambda g: (len(g), sorted(g))):
        rest = [other for other in kept if other is not group]
        alone = any(not any(name in other for other in rest) for name in group)
        pairs = combinations(sorted(group), 2)
        if not alone and all(any({a, b} <= other for other in rest) for a, b in pairs):
            kept = rest
    return kept


def _resamples(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """How often each of n images is drawn: arrays (some, n) with ``resamples`` rows in all."""
    for size in _chunks(resamples, n):
        drawn = rng.integers(0, max(n, 1), (size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(float)


def _chunks(total: int, width: int) -> Iterator[int]:
    size = max(1, _AT_ONCE // max(width, 1))
    for start in range(0, total, size):
        yield min(size, total - start)


def nanmean(values: Array, axis: int | None = None) -> Array:
    """Mean of what is not nan; nan, without a warning, when nothing is left."""
    count = (~np.isnan(values)).sum(axis=axis)
    total = np.nansum(values, axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
