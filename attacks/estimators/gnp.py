"""GNP: gradient norm penalty."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part
from advens.threat import unit_l2


@part("estimator", "gnp", paper="Wu et al., ICIP 2023 (GNP)", year=2023)
class GNP:
    """``(1 + beta) g1 - beta g2``: ascent of ``J - lambda ||grad J||`` with beta = lambda / r.

    g1 is the gradient at x' and g2 the one at ``x' + r u``, u = g1 / ||g1||_2, so that lambda is 0.008 at the
    paper's eps: the second point is near (a root mean square of r/388 a pixel at 224 pixels), and the attack
    is close to MI. Published code is another method (``published``): it adds ``+ beta g2``, a weighted mean
    of two gradients instead of a penalty, and takes u = g1 / mean|g1|, at least sqrt(CHW) times as far.
    Nothing is drawn.

    Args:
        r: how far the second point is, relative to eps (0.01 at 16/255).
        beta: weight of the penalty.
        published: a mean of two gradients, the second one further away.
    """

    r: float = 0.01 * 255 / 16
    beta: float = 0.8
    published: bool = False

    queries = 2

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        g1 = gradient(x)
        u = context.unit(g1) if self.published else unit_l2(g1)
        g2 = gradient(x + self.r * context.threat.radius * u)
        return (1 + self.beta) * g1 + (self.beta if self.published else -self.beta) * g2
