"""A randomized ensemble as an attacker sees it: its expectation, not a draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from advens.classifier import is_randomized as is_randomized


def log_expected(each: Tensor, probabilities: Tensor) -> Tensor:
    """Log of the expected class probabilities (N, classes).

    Args:
        each: logits of every member, (K, N, classes).
        probabilities: of drawing each, (K,).
    """
    weights = probabilities.to(each).log()[:, None, None]
    return torch.logsumexp(each.log_softmax(-1) + weights, 0)


class Expectation(nn.Module):
    """Answers with the log of a randomized ensemble's expected probabilities; draws nothing.

    Args:
        ensemble: a module with ``members`` and ``probabilities``.
    """

    def __init__(self, ensemble: Any) -> None:
        super().__init__()
        self.members, self.probabilities = ensemble.members, ensemble.probabilities
        self.name = str(getattr(ensemble, "name", type(ensemble).__name__))

    def forward(self, x: Tensor) -> Tensor:
        return log_expected(torch.stack([member(x) for member in self.members]), self.probabilities)


def expectations(models: list[nn.Module]) -> list[nn.Module]:
    """Models, randomized ensembles among them replaced by their expectation."""
    return [Expectation(model) if is_randomized(model) else model for model in models]
