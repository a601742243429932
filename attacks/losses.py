"""Losses: per sample, to be ascended, never averaged over the batch.

Every loss takes logits (N, classes), labels (N,) and target labels (N,) or None, and returns (N,).
With targets its ascent leads to the target class, without it away from the label.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.parts import part
from advens.errors import InputError


class Loss(Protocol):
    """What the attack ascends."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """(N, classes), (N,), (N,) or None -> (N,)."""
        ...


@part("loss", "ce")
class CrossEntropy:
    """Cross-entropy of the label; with targets, minus that of the target."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            return F.cross_entropy(logits, y, reduction="none")
        return -F.cross_entropy(logits, target, reduction="none")


@part("loss", "margin", paper="Carlini & Wagner, S&P 2017", year=2017)
class Margin:
    """Logit margin: the best other class minus the label (or the target minus the best other)."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        if target is None:
            return _best_other(logits, y) - _pick(logits, y)
        return _pick(logits, target) - _best_other(logits, target)


@part("loss", "dlr", paper="Croce & Hein, ICML 2020 (AutoAttack)", year=2020)
class DLR:
    """Difference of logits ratio: the margin over the spread of the largest logits."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        needed = 3 if target is None else 4
        if logits.shape[1] < needed:
            raise InputError(
                f"loss 'dlr' needs {needed} classes; these models have {logits.shape[1]}"
            )
        top = logits.topk(needed, dim=1).values
        if target is None:
            return (_best_other(logits, y) - _pick(logits, y)) / (top[:, 0] - top[:, 2] + 1e-12)
        spread = top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12
        return (_pick(logits, target) - _pick(logits, y)) / spread


@part("loss", "logit", paper="Zhao et al., NeurIPS 2021", year=2021)
class TargetLogit:
    """The target's logit (or minus the label's): does not saturate as cross-entropy does."""

    def __call__(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        return -_pick(logits, y) if target is None else _pick(logits, target)


def _pick(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


def _best_other(logits: Tensor, y: Tensor) -> Tensor:
    own = F.one_hot(y, logits.shape[1]).bool()
    return torch.where(own, -torch.inf, logits).amax(1)
