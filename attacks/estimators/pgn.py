"""PGN: penalised gradient norm."""

from __future__ import annotations

from itertools import tee
from typing import Any

from torch import Tensor

from advens.attacks.estimators.vmi import mean, neighbours
from advens.attacks.interfaces import Context, Gradient, gradients
from advens.attacks.parts import part
from advens.attacks.updates import unit_mean


@part("estimator", "pgn", paper="Ge et al., NeurIPS 2023 (PGN)", year=2023)
class PGN:
    """Mean over neighbours of ``(1 - delta) g1 + delta g2``; g2 is taken a step against g1.

    A flat region is where both agree. The step is ``alpha g1 / mean|g1|``; in l_2 it is one step of
    length alpha.

    Args:
        copies: neighbours (N in the paper).
        zeta: radius of the neighbourhood, relative to eps.
        delta: weight of the second gradient.
    """

    copies: int = 20
    zeta: float = 3.0
    delta: float = 0.5

    @property
    def queries(self) -> int:
        return 2 * self.copies

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        threat, alpha = context.threat, context.step_size

        def against(near: Tensor, g1: Tensor) -> Tensor:
            unit = unit_mean(g1) if threat.norm == "linf" else threat.steepest(g1)
            return near - alpha * unit

        near, points = tee(neighbours(x, self.copies, self.zeta, context, "pgn"))
        g1, firsts = tee(gradients(gradient, points))
        g2 = gradients(gradient, map(against, near, g1))
        both = zip(firsts, g2, strict=True)
        return mean(((1 - self.delta) * a + self.delta * b for a, b in both), self.copies)
