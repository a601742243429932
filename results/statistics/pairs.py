"""Tests of paired differences over images, and their adjustment for number."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from advens.results.statistics.images import Array, chunks


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
    for size in chunks(flips, len(d)):
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


