"""Gradient estimators: an oracle's gradient at a point, from gradients around it. One file each."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from advens.attacks.estimators.plain import Plain
from advens.attacks.oracle import Context, Gradient


class GradientEstimator(Protocol):
    """State of a run lives in ``memory``, one dictionary per set of surrogates asked for."""

    @property
    def queries(self) -> int:
        """Plain gradients one estimate takes."""
        ...

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        """The estimate at ``x``, (N, C, H, W)."""
        ...


__all__ = ["GradientEstimator", "Plain"]
