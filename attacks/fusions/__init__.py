"""Fusions: how K surrogates agree on one direction. One file a method."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from advens.attacks.fusions.uniform import EnsLogits, EnsLoss, EnsProbs
from advens.attacks.oracle import GradientOracle, Passes


class Fusion(Protocol):
    """Asks the oracle, never a model."""

    def direction(self, oracle: GradientOracle, x: Tensor) -> Tensor:
        """The direction at ``x``, (N, C, H, W)."""
        ...

    def passes(self, surrogates: int, gradients: int) -> Passes:
        """Passes per sample and step.

        Args:
            surrogates: K.
            gradients: plain gradients behind one estimate (estimator x copies of the transforms).
        """
        ...


__all__ = ["EnsLogits", "EnsLoss", "EnsProbs", "Fusion"]
