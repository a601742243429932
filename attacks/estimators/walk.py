"""Gradients along a random walk (SMI-FGRM's sampling)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part


@part("estimator", "walk", paper="Han et al., 2023 (SMI-FGRM), arXiv 2307.02828", year=2023)
class Walk:
    """Mean gradient at ``s_0 = x'``, ``s_{i+1} = s_i + u``: points drift away as the root of their number.

    u is uniform in beta eps, drawn for each sample, step and point. Points are not projected.

    Args:
        copies: points (N in the paper).
        beta: radius of one move, relative to eps.
    """

    copies: int = 12
    beta: float = 1.5

    @property
    def queries(self) -> int:
        return self.copies

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        at, mean = x, x.new_zeros(())
        for i in range(self.copies):
            mean = mean + gradient(at) / self.copies
            at = at + context.threat.noise(x, self.beta, context.draws, "walk", i)
        return mean
