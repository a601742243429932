"""OSP: the best probabilities of a randomized ensemble's members (Dbouk & Shanbhag, ICML 2023)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ErrorRates = Callable[[Tensor], Tensor]
"""Maps probabilities (M,) to the members' error rates (M,) on adversarial images crafted for them."""


def optimal_sampling(
    rates: ErrorRates, start: Tensor, *, rounds: int = 10, lr: float = 2.0, patience: int = 3
) -> tuple[Tensor, float]:
    """Projected sub-gradient descent of the adversarial risk on the simplex; the best probabilities seen.

    The risk ``r(a) = E max_delta sum_m a_m 1[f_m errs]`` is convex and piecewise linear in a. The members'
    error rates on images crafted for a are a sub-gradient, and their mean weighted by a is r(a).

    Args:
        rates: crafts images for given probabilities and measures the error rates.
        start: probabilities (M,).
        rounds: the largest number of sub-gradients.
        lr: the first step; step t is ``lr / (t + 1)``. The authors' evaluation starts from 2.
        patience: rounds in a row without a lower risk, after which the search has converged and ends.

    Returns:
        Probabilities (M,) and their risk.
    """
    a, best, lowest, waited = start.double(), start.double(), float("inf"), 0
    for t in range(rounds):
        g = rates(a).double()
        risk = float(a @ g)
        waited += 1
        if risk < lowest:
            best, lowest, waited = a, risk, 0
        if waited == patience:
            break
        a = onto_simplex(a - lr / (t + 1) * g)
    return best, lowest


def onto_simplex(v: Tensor) -> Tensor:
    """The nearest probabilities (M,) to a vector (M,). Source: Duchi et al., ICML 2008."""
    u = v.sort(descending=True).values
    over = (u.cumsum(0) - 1) / torch.arange(1, len(v) + 1, dtype=v.dtype)
    last = int((u > over).nonzero().max())
    return (v - over[last]).clamp_min(0)
