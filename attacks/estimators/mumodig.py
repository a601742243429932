"""MuMoDIG: multiple monotonic diversified integrated gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.geometry import enlarged
from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part
from advens.fields import Count
from advens.seeding import Draws


@part("estimator", "mumodig", paper="Ren et al., AAAI 2025 (MuMoDIG)", year=2025)
class MuMoDIG:
    """``IG(x') + sum_j IG(T_j(x'))``: integrated gradients from quantised images, of x' and of views of it.

    ``IG(w) = sum_b (w - b) * sum_{i < I} grad J(b + (i + lambda)/I (w - b))``, where b is w quantised: each
    channel of each image is cut at R - 1 thresholds between its smallest and largest value, and every pixel
    becomes the lower end of its interval, so that w - b >= 0. b is held constant. A pixel with w = b has no
    gradient.

    The gradient is that by x', so it goes back through T_j, with the factor (i + lambda)/I. Published code
    (the authors' and its port) then multiplies it with w - b in the coordinates of the view, which do not
    lie on each other where T_j moves pixels; ``aligned`` takes the product in the view and pulls that back.

    T_j is, one half of the time each, a resize to a side between H and 1.09 H, padded at random with zeros
    and resized back; or one of rolling rows or columns, flipping up-down or left-right, and rotating by up
    to 45 degrees. Which one and its shift are drawn for each step and view, thresholds and rotation for
    each sample, too.

    Args:
        copies: views.
        regions: R.
        bases: quantised images for each view.
        points: I.
        position: lambda.
        aligned: pull back the product, not the gradient.
    """

    copies: int = 6
    regions: Count = 2
    bases: Count = 1
    points: Count = 1
    position: float = 0.65
    aligned: bool = False

    @property
    def queries(self) -> int:
        return (1 + self.copies) * self.bases * self.points

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        total = self._path(gradient, x, x, context.draws.fork("mumodig"))
        for copy in range(self.copies):
            draws = context.draws.fork("mumodig", copy)
            leaf = x.detach().requires_grad_()
            total = total + self._path(gradient, leaf, view(leaf, draws), draws)
        return total

    def _path(self, gradient: Gradient, x: Tensor, w: Tensor, draws: Draws) -> Tensor:
        """IG of the view ``w`` of ``x``, in coordinates of x."""

        def back(g: Tensor) -> Tensor:
            return g if w is x else torch.autograd.grad(w, x, g, retain_graph=True)[0]

        here, total = w.detach(), torch.zeros_like(w)
        for base in range(self.bases):
            b = quantised(here, self.regions, draws, base)
            path, along = here - b, torch.zeros_like(here)
            for i in range(self.points):
                share = (i + self.position) / self.points
                along = along + share * gradient(b + share * path)
            total = total + (back(path * along) if self.aligned else path * back(along))
        return total


def quantised(w: Tensor, regions: int, draws: Draws, base: int) -> Tensor:
    """Every value replaced by the lower end of its interval, per sample and channel."""
    low = w.amin((2, 3), keepdim=True)
    high = w.amax((2, 3), keepdim=True)
    ends = low
    for cut in range(regions - 1):
        at = low + draws.uniform(low, 0.0, 1.0, "threshold", base, cut) * (high - low)
        ends = torch.cat([ends, at], 3)
    ends = ends[:, :, 0].sort(-1).values.contiguous()  # (N, C, R)
    flat = w.flatten(2).contiguous()
    index = torch.searchsorted(ends, flat, right=True).sub_(1).clamp_min_(0)
    return ends.gather(2, index).view_as(w)


def view(x: Tensor, draws: Draws) -> Tensor:
    """T_j of the images, differentiable."""
    height, width = x.shape[-2:]
    if draws.integers(2, 1, "kind") == [0]:
        return enlarged(x, max(height + 1, height * 245 // 224), draws)
    which = draws.integers(5, 1, "which")[0]
    if which < 2:
        return x.roll(draws.integers((height, width)[which], 1, "shift")[0], 2 + which)
    if which < 4:
        return x.flip(which)
    angle = draws.uniform(x[:, 0, 0, 0], -math.pi / 4, math.pi / 4, "angle")
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [cos, -sin * height / width, zero, sin * width / height, cos, zero]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
