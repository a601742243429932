"""OSP: the best probabilities of a randomized ensemble's members (Dbouk & Shanbhag, ICML 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ErrorRates = Callable[[Tensor], Tensor]
"""Probabilities (M,) to the members' error rates (M,) on images that are worst for them."""


def optimal_sampling(
    rates: ErrorRates, start: Tensor, *, rounds: int = 10, lr: float = 1.0
) -> tuple[Tensor, float]:
    """Projected sub-gradient descent of the adversarial risk on the simplex; the best probabilities seen.

    The risk ``r(a) = E max_delta sum_m a_m 1[f_m errs]`` is convex and piecewise linear in a; the members'
    error rates on images crafted for a are a sub-gradient, and a's mean of them is r(a).

    Args:
        rates: crafts and counts.
        start: probabilities (M,).
        rounds: sub-gradients taken.
        lr: the first step; step t is ``lr / (t + 1)``. The published one is ten times the learning rate.

    Returns:
        Probabilities (M,) and their risk.
    """
    a, best, lowest = start.double(), start.double(), float("inf")
    for t in range(rounds):
        g = rates(a).double()
        risk = float(a @ g)
        if risk < lowest:
            best, lowest = a, risk
        a = onto_simplex(a - lr / (t + 1) * g)
    return best, lowest


def onto_simplex(v: Tensor) -> Tensor:
    """The nearest probabilities (M,) to a vector (M,). Source: Duchi et al., ICML 2008."""
    u = v.sort(descending=True).values
    over = (u.cumsum(0) - 1) / torch.arange(1, len(v) + 1, dtype=v.dtype)
    last = int((u > over).nonzero().max())
    return (v - over[last]).clamp_min(0)
