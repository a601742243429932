"""GNP: gradient norm penalty."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part
from advens.threat import unit_l2


@part("estimator", "gnp", paper="Wu et al., ICIP 2023 (GNP)", year=2023)
class GNP:
    """``(1 + beta) g1 - beta g2``: ascent of ``J - lambda ||grad J||`` with beta = lambda / r.

    g1 is the gradient at x' and g2 the one at ``x' + r u``, u = g1 / mean|g1| (in l_2 g1 / ||g1||_2). With
    g1 / ||g1||_2 in l_inf (``unit="l2"``, the norm the paper writes) the second point is 1/388 as far
    away at 224 pixels, where g2 is g1 but for rounding in single precision. Published code adds
    ``+ beta g2`` (``published``): a weighted mean of two gradients, not a penalty. Nothing is drawn.

    Args:
        r: how far the second point is, relative to eps (0.01 at 16/255).
        beta: weight of the penalty.
        unit: what u is in l_inf, ``mean`` or ``l2``.
        published: add the second gradient.
    """

    r: float = 0.01 * 255 / 16
    beta: float = 0.8
    unit: Literal["mean", "l2"] = "mean"
    published: bool = False

    queries = 2

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        g1 = gradient(x)
        u = context.unit(g1) if self.unit == "mean" else unit_l2(g1)
        g2 = gradient(x + self.r * context.threat.radius * u)
        return (1 + self.beta) * g1 + (self.beta if self.published else -self.beta) * g2
