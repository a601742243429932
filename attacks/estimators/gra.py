"""GRA: gradient relevance."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from advens.attacks.estimators.vmi import neighbourhood
from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part
from advens.threat import unit_l2


@part("estimator", "gra", paper="Zhu et al., ICCV 2023 (GRA)", year=2023)
class GRA:
    """``s g + (1 - s) n``: g is the gradient at x', n the mean of its neighbours', s = cos(g, n).

    Neighbours are drawn anew for each sample, step and neighbour. s may be negative.

    Args:
        copies: neighbours (N in the paper).
        beta: radius of the neighbourhood, relative to eps.
    """

    copies: int = 20
    beta: float = 3.5

    @property
    def queries(self) -> int:
        return self.copies + 1

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        g = gradient(x)
        near = neighbourhood(gradient, x, self.copies, self.beta, context, "gra")
        return mixed(g, near)


def mixed(g: Tensor, near: Tensor) -> Tensor:
    """``s g + (1 - s) near`` with s = cos(g, near), per sample."""
    s = cosine(g, near)
    return s * g + (1 - s) * near


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two images as vectors, (N, 1, 1, 1); 0 where one is zero."""
    return (unit_l2(a) * unit_l2(b)).sum(dim=(1, 2, 3), keepdim=True)
