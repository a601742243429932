"""DeCoWA: deformation-constrained warping."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part
from advens.fields import within


@part("estimator", "decowa", paper="Lin et al., AAAI 2024 (DeCoWA)", year=2024, couples="option")
class DeCoWA:
    """Mean gradient of images under random warps, each first changed so that it hides the attack.

    A warp moves the inner points of an m x m mesh over the image by xi ~ U(-1, 1)^2, in half sides, and
    keeps those on the edge; a thin-plate spline says where the other pixels come from. For each copy ``xi
    <- xi - rho dJ/dxi`` once, with what is ascended as J, and then the gradient of J at the warped image,
    back through the warp. Pixels are interpolated bilinearly, zeros come in.

    Every sample has warps of its own. Published code has one for the batch and takes its step along the
    mean of the batch's losses, so that a sample's loss counts for one of N; ``batch_coupled`` does so with
    the images that are worked on at once. Its grid also enlarges an image that is not warped by about a
    pixel; here such an image stays as it is.

    Args:
        copies: warps.
        mesh: control points along each side (m).
        rho: length of the step of xi, relative to its gradient.
        batch_coupled: one warp for the images that are worked on at once.
    """

    copies: int = 20
    mesh: Annotated[
        int, within("at least 3, as points on the edge stay where they are", lambda n: n >= 3)
    ] = 3
    rho: float = 0.01
    batch_coupled: bool = False

    @property
    def queries(self) -> int:
        return 2 * self.copies

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        total, x = torch.zeros_like(x), x.detach()
        for copy in range(self.copies):
            xi = self._drawn(x, context, copy).requires_grad_()
            view = warped(x, xi)
            (slope,) = torch.autograd.grad(view, xi, gradient(view.detach()))
            if self.batch_coupled:
                slope = slope.mean(0, keepdim=True)
            leaf = x.clone().requires_grad_()
            view = warped(leaf, xi.detach() - self.rho * slope)
            total += torch.autograd.grad(view, leaf, gradient(view.detach()))[0] / self.copies
        return total

    def _drawn(self, x: Tensor, context: Context, copy: int) -> Tensor:
        """xi, (N, (m - 2)^2, 2)."""
        xi = x.new_empty(len(x), (self.mesh - 2) ** 2, 2)
        if not self.batch_coupled:
            return context.draws.uniform(xi, -1, 1, "decowa", copy)
        draws = context.draws.fork("decowa", copy)
        shared = [draws.number(-1, 1, place) for place in range(xi[0].numel())]
        return x.new_tensor(shared).view(1, -1, 2).expand_as(xi).clone()


def warped(x: Tensor, xi: Tensor) -> Tensor:
    """Images with the inner mesh points, row by row, moved by ``xi`` (N, (m - 2)^2, 2), each by (x, y)."""
    height, width = x.shape[-2:]
    q, b = (t.to(x) for t in spline(height, width, round(xi.shape[1] ** 0.5) + 2))
    grid = q + (b @ xi).view(-1, height, width, 2)
    return F.grid_sample(x, grid, align_corners=True)


@lru_cache(maxsize=16)
def spline(height: int, width: int, mesh: int) -> tuple[Tensor, Tensor]:
    """Pixels q (H, W, 2) in [-1, 1], and B (H W, (m - 2)^2), how far each moves with each inner point.

    The spline f with f(X) = Y is linear in Y, and the identity where Y = X, so f(q) = q + B(q) xi. With
    ``K(a, b) = r^2 log r^2``, r = |a - b|: f(q) = [1, q] A + K(q, X) W, [[K, P], [P', 0]] [W; A] = [Y; 0],
    P = [1, X].
    """
    line = torch.linspace(-1, 1, mesh, dtype=torch.float64)
    points, pixels = _crossed(line, line).view(-1, 2), _crossed(
        torch.linspace(-1, 1, height, dtype=torch.float64), torch.linspace(-1, 1, width, dtype=torch.float64)
    )  # fmt: skip
    p = _with_one(points)
    system = torch.cat([torch.cat([_radial(points, points), p], 1), F.pad(p.T, (0, 3))])
    inner = torch.arange(mesh**2).view(mesh, mesh)[1:-1, 1:-1].flatten()
    moved = torch.zeros(mesh**2 + 3, len(inner), dtype=torch.float64)
    moved[inner, torch.arange(len(inner))] = 1
    flat = pixels.view(-1, 2)
    return pixels, torch.cat([_radial(flat, points), _with_one(flat)], 1) @ torch.linalg.solve(system, moved)


def _crossed(rows: Tensor, columns: Tensor) -> Tensor:
    """All pairs (x, y), (rows, columns, 2)."""
    return torch.stack([columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))], -1)


def _with_one(at: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(at[:, :1]), at], 1)


def _radial(a: Tensor, b: Tensor) -> Tensor:
    square = (a[:, None] - b[None]).square().sum(-1)
    return square * (square + 1e-9).log()
