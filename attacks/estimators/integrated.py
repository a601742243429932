"""Integrated gradients along the line from a black image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from advens.attacks.interfaces import Context, Gradient, gradients
from advens.attacks.parts import part


@part("estimator", "integrated", paper="Huang & Kong, ICLR 2022 (TAIG)", year=2022)
class Integrated:
    """``x' * mean_k grad J(k/S x')``, k = 1, ..., S: the attribution of J to pixels, against a black image.

    The gradient is that at the interpolated point. Published code of MIG differentiates by x' instead, so
    that point k counts k/S times (``published``). A black pixel has no attribution and never moves.

    Args:
        copies: S, the points.
        black: the mean has the black image itself, k = 0, as one point more (TAIG).
        noise: radius of uniform noise added to every point, relative to eps, drawn for each sample, step and
            point; 0 for none, 1 for TAIG-R.
        published: weigh point k by k/S.
    """

    copies: int = 20
    black: bool = False
    noise: float = 0.0
    published: bool = False

    @property
    def queries(self) -> int:
        return self.copies + self.black

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        mean, numbers = x.new_zeros(()), range(0 if self.black else 1, self.copies + 1)

        def point(k: int) -> Tensor:
            at = k / self.copies * x
            if self.noise:
                at = at + context.threat.noise(x, self.noise, context.draws, "integrated", k)
            return at

        for k, g in zip(numbers, gradients(gradient, map(point, numbers)), strict=True):
            mean = mean + (k / self.copies if self.published else 1.0) / self.queries * g
        return x * mean
