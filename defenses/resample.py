"""OSP after the fact: an ensemble's members, drawn with the probabilities of the lowest adversarial risk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from advens.classifier import Classifier, is_randomized
from advens.defenses.boosting import arc_error_rates
from advens.defenses.ensembles import RandomizedEnsemble
from advens.defenses.sampling import optimal_sampling
from advens.errors import InputError


def resampled(
    ensemble: Classifier, x: Tensor, y: Tensor, *, eps: float, steps: int = 20, rounds: int = 10,
    lr: float = 2.0,
) -> tuple[RandomizedEnsemble, dict[str, Any]]:
    """The members of an ensemble with the best probabilities that OSP finds against ARC.

    The search starts from the probabilities of a randomized ensemble, and from equal ones otherwise. It sees
    every other image; the images between measure the risk before and after, since the risk on the images that
    chose the probabilities is too low.

    Args:
        ensemble: a model with at least two ``members``.
        x: images (N, 3, H, W) in [0, 1], which no member was trained on.
        y: labels (N,).
        eps: radius of the l_inf ball.
        steps: of ARC.
        rounds, lr: of `optimal_sampling`.

    Returns:
        The randomized ensemble, and ``probabilities``, ``start``, ``images`` (how many measured the risk),
        ``before`` and ``after``.

    Raises:
        InputError: fewer than two members or images.
    """
    members: Sequence[Any] = list(getattr(ensemble, "members", ()))
    if len(members) < 2:
        raise InputError(f"{ensemble.name} has no members to draw from")
    if len(x) < 2:
        raise InputError("sampling needs at least two images: one half finds, the other measures")
    start = torch.full((len(members),), 1 / len(members), dtype=torch.float64)
    if is_randomized(ensemble):
        start = torch.as_tensor(ensemble.probabilities).double().cpu()

    def rates(a: Tensor, rows: slice) -> Tensor:
        return arc_error_rates(members, a, x[rows], y[rows], eps=eps, steps=steps)

    best, _ = optimal_sampling(lambda a: rates(a, slice(0, None, 2)), start, rounds=rounds, lr=lr)
    between = slice(1, None, 2)
    before, after = (float(a @ rates(a, between)) for a in (start, best))
    found = {
        "probabilities": best.tolist(), "start": start.tolist(), "images": len(x[between]),
        "before": before, "after": after,
    }  # fmt: skip
    return RandomizedEnsemble(members, best), found
