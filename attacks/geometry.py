"""Images rotated, enlarged and padded, for transforms and estimators."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.seeding import Draws


def rotate(x: Tensor, degrees: float, mode: str = "bilinear") -> Tensor:
    """Rotate (N, C, H, W) about its centre, zeros outside."""
    height, width = x.shape[-2:]
    turn = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cos, sin = float(turn.cos()), float(turn.sin())
    # affine_grid works in units of half the side: the aspect keeps the rotation rigid
    theta = x.new_tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode, align_corners=False)


def enlarged(x: Tensor, large: int, draws: Draws) -> Tensor:
    """Enlarged to a height drawn from H, ..., large - 1, padded at random to ``large`` and resized back.

    The width follows in proportion; padding is zero.
    """
    side, other = x.shape[-2:]
    inner = side + draws.integers(max(1, large - side), 1, "side")[0]
    small = F.interpolate(x, size=(inner, round(other * inner / side)), mode="bilinear", align_corners=False)
    room = (large - inner, round(other * large / side) - small.shape[-1])
    top, left = (draws.integers(max(1, free), 1, "place", axis)[0] for axis, free in enumerate(room))
    padded = F.pad(small, [left, room[1] - left, top, room[0] - top])
    return F.interpolate(padded, size=(side, other), mode="bilinear", align_corners=False)
