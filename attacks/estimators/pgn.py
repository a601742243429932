"""PGN: penalised gradient norm."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from advens.attacks.estimators.vmi import neighbourhood
from advens.attacks.interfaces import Context, Gradient
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

        def penalised(near: Tensor) -> Tensor:
            g1 = gradient(near)
            unit = unit_mean(g1) if threat.norm == "linf" else threat.steepest(g1)
            g2 = gradient(near - alpha * unit)
            return (1 - self.delta) * g1 + self.delta * g2

        return neighbourhood(penalised, x, self.copies, self.zeta, context, "pgn")
