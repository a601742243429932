"""MaskBlock: every block of the image left out once."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import Count


@part("transform", "maskblock", paper="Fan et al., 2022 (MaskBlock), arXiv 2208.06538", year=2022)
class MaskBlock:
    """Copies of the image, each with one block of a regular grid set to zero. Nothing is drawn.

    Blocks have int(H / grid) x int(W / grid) pixels; what is left over at the lower and right edges is never
    masked, as in published code, whose blocks of 56 pixels make four along each side of 224.

    Args:
        grid: blocks along each side; the copies are its square.
    """

    grid: Count = 4

    @property
    def copies(self) -> int:
        return self.grid**2

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        row, column = divmod(copy, self.grid)
        height, width = x.shape[-2] // self.grid, x.shape[-1] // self.grid
        mask = torch.ones_like(x[:1, :1])
        mask[..., row * height : (row + 1) * height, column * width : (column + 1) * width] = 0
        return x * mask
