"""Tests of paired differences over images, and their adjustment for number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from advens.results.statistics.images import Array, chunks

_FEW = 100  # flips that must reach a total before they are counted on
_TILTED = 2000
_HALVINGS = 60
_MANY = 1000  # images from which the tail is computed, not sampled
_NEWTON = 12


def paired_tests(differences: Array, seed: int, flips: int = 10_000) -> Array:
    """Sign-flip permutation tests on many pairs at once.

    If two attacks are the same, swapping them on any image changes nothing, so the total of the
    differences is one draw from all its 2^images sign flips; ``flips`` of them are looked at, and
    p = (1 + flips that reach the total) / (1 + flips).

    Where fewer than 100 flips reach the total, that would be too coarse for Holm's correction among
    many attacks. p is then the exact tail, estimated by importance sampling: each sign is drawn with
    probability exp(t d) / (exp(t d) + exp(-t d)), where t makes the observed total the expected one,
    and each flip counts with its likelihood ratio. This has no bias, however small p is; three
    standard errors are added, so that p lies between its exact value and 1.5 times that.

    Where 1,000 images or more make up the total, p is computed by the saddlepoint approximation of
    Lugannani and Rice (1980), which is then right to a few per cent, however small p is.

    Args:
        differences: (images, pairs); nan counts as no difference.

    Returns:
        p-values (pairs,).
    """
    d = np.nan_to_num(np.asarray(differences, float))
    squares = (d**2).sum(axis=0)
    fourth = np.maximum((d**4).sum(axis=0), np.finfo(float).tiny)
    many = squares**2 / fourth >= _MANY  # as many images, if all differences were equal
    p = np.empty(d.shape[1])
    p[~many] = _flipped(d[:, ~many], seed, flips)
    for k in np.flatnonzero(many):
        p[k] = _saddlepoint(np.abs(d[d[:, k] != 0, k]), abs(float(d[:, k].sum())))
    return p


def _flipped(d: Array, seed: int, flips: int) -> Array:
    """P-values by flips of signs, see `paired_tests`."""
    d = d[np.any(d != 0, axis=1)]
    total = np.abs(d.sum(axis=0))
    within = total - 1e-9 * np.abs(d).sum(axis=0)  # a tie is a tie whatever the rounding
    reached = np.zeros(d.shape[1])
    rng = np.random.default_rng(seed)
    for size in chunks(flips, len(d)):
        signs = rng.integers(0, 2, (size, len(d)), dtype=np.int8) * 2.0 - 1.0
        reached += (np.abs(signs @ d) >= within).sum(axis=0)
    p = (1 + reached) / (1 + flips)
    rare = (reached < _FEW) & (total > 0)
    if rare.any():
        p[rare] = _tails(np.abs(d[:, rare].T), within[rare], rng)
    return p


def _saddlepoint(steps: Array, total: float) -> float:
    """P(|sum of steps with random signs| >= total) for many steps above 0, none of which is much of the sum.

    With K(t) = sum log cosh(t d), the cumulants, and K'(t) = total: w^2 / 2 = t total - K, u^2 = t^2 K'', and
    P(sum >= total) = Q(w) + phi(w) (1 / u - 1 / w). Sums of equal steps lie two steps apart, so that the
    total is taken a step smaller.
    """
    from scipy.stats import norm

    total = max(total - float(steps.min()), 0.0)
    squares = steps**2
    t, spread = total / squares.sum(), float(np.sqrt(squares.sum()))
    if total < 0.1 * spread:  # next to the mean the formula is 0 / 0, and the sum is normal
        return float(2 * norm.sf(total / spread))
    for _ in range(_NEWTON):
        slope = np.tanh(t * steps)
        more = (total - steps @ slope) / (squares @ (1 - slope**2))
        t += more
        if abs(more) < 1e-9 * t:
            break
    k = (np.logaddexp(t * steps, -t * steps) - np.log(2)).sum()
    w, u = np.sqrt(2 * (t * total - k)), t * np.sqrt(squares @ (1 - np.tanh(t * steps) ** 2))
    p = 2 * (norm.sf(w) + norm.pdf(w) * (1 / u - 1 / w))
    return float(np.clip(p, np.finfo(float).tiny, 1))


def _tails(steps: Array, totals: Array, rng: np.random.Generator) -> Array:
    """P(|sum of steps with random signs| >= total) of each pair, by flips tilted towards its total.

    Args:
        steps: at least 0, (pairs, images).
        totals: above 0 and at most the sum of the steps, (pairs,).
    """
    scale = steps.max(axis=1)
    steps, totals = steps / scale[:, None], totals / scale
    tilt = _tilts(steps, totals)
    up = 1 / (1 + np.exp(-2 * tilt * steps))
    log_mean = (np.logaddexp(tilt * steps, -tilt * steps) - np.log(2)).sum(axis=1)
    sums, squares = np.zeros(len(steps)), np.zeros(len(steps))
    for size in chunks(_TILTED, steps.shape[1]):
        uniform = rng.random((size, steps.shape[1]), dtype=np.float32)
        for k, step in enumerate(steps):
            drawn = 2 * ((uniform < up[k]).astype(float) @ step) - step.sum()
            # relative to the likelihood at the total, so that no power of ten is too small
            ratio = np.exp(np.minimum(tilt[k, 0] * (totals[k] - drawn), 0)) * (drawn >= totals[k])
            sums[k] += ratio.sum()
            squares[k] += (ratio**2).sum()
    mean = sums / _TILTED
    error = np.sqrt(np.maximum(squares / _TILTED - mean**2, 0) / _TILTED)
    p = 2 * np.exp(log_mean - tilt[:, 0] * totals) * (mean + 3 * error)
    clipped: Array = np.clip(p, np.finfo(float).tiny, 1)
    return clipped


def _tilts(steps: Array, totals: Array) -> Array:
    """t (pairs, 1) with sum of d tanh(t d) = total, by bisection."""
    least = steps.min(axis=1, where=steps > 0, initial=1)
    low = np.zeros(len(steps))
    high: Array = 20 / least  # where every sign is up but for one draw in e^40
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        short = (steps * np.tanh(middle[:, None] * steps)).sum(axis=1) < totals
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return high[:, None]


def holm(pvalues: ArrayLike) -> Array:
    """P-values adjusted for their number, step-down (Holm, 1979)."""
    p = np.asarray(pvalues, float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
