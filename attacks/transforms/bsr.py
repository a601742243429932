"""BSR: block shuffle and rotation."""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.oracle import Context
from advens.attacks.parts import part
from advens.seeding import Draws


@part("transform", "bsr", paper="Wang et al., CVPR 2024 (BSR)", year=2024)
class BSR:
    """Copies cut into ``blocks`` x ``blocks`` at random places, shuffled, each block rotated a little.

    One draw a step and copy for the whole shard.

    Args:
        copies: how many.
        blocks: blocks along each side.
        angle: largest rotation, in degrees.
    """

    copies: int = 20
    blocks: int = 2
    angle: float = 24.0

    @field_validator("blocks")
    @classmethod
    def _some(cls, blocks: int) -> int:
        if blocks < 1:
            raise ValueError("at least one block")
        return blocks

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws = context.draws.fork("bsr", copy)
        heights = cuts(x.shape[-2], self.blocks, draws, "rows")
        strips = []
        for row, strip in enumerate(self._shuffled(x, heights, -2, draws, "rows")):
            widths = cuts(x.shape[-1], self.blocks, draws, "columns", row)
            blocks = self._shuffled(strip, widths, -1, draws, "columns", row)
            turned = [
                rotate(block, draws.number(-self.angle, self.angle, "angle", row, column))
                for column, block in enumerate(blocks)
            ]
            strips.append(torch.cat(turned, -1))
        return torch.cat(strips, -2)

    def _shuffled(
        self, x: Tensor, sizes: list[int], dim: int, draws: Draws, *tag: object
    ) -> list[Tensor]:
        pieces = x.split(sizes, dim)
        return [pieces[i] for i in draws.permutation(len(sizes), "order", *tag)]


def cuts(length: int, pieces: int, draws: Draws, *tag: object) -> list[int]:
    """Random positive sizes that add up to ``length``."""
    pieces = min(pieces, length)
    inner = draws.permutation(length - 1, "cuts", *tag)[: pieces - 1]
    ends = [0, *sorted(cut + 1 for cut in inner), length]
    return [b - a for a, b in pairwise(ends)]


def rotate(x: Tensor, degrees: float) -> Tensor:
    """Rotate (N, C, H, W) about its centre, bilinear, zeros outside."""
    height, width = x.shape[-2:]
    turn = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    cos, sin = float(turn.cos()), float(turn.sin())
    # affine_grid works in units of half the side: the aspect keeps the rotation rigid
    theta = x.new_tensor([[cos, -sin * height / width, 0.0], [sin * width / height, cos, 0.0]])
    grid = F.affine_grid(theta.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)
