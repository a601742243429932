"""Shifts: the image moved to the points of a grid (ANDA)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import Count


@part("transform", "shifts", paper="Fang et al., CVPR 2024 (ANDA)", year=2024)
class Shifts:
    """Copies moved by (i, j) half sides, i and j each evenly from -reach to reach; zeros come in.

    Positions between pixels are interpolated bilinearly. An odd grid has the image itself. Nothing is drawn.

    Args:
        grid: points along each side (n in the paper); the copies are its square.
        reach: the largest shift, in half sides.
    """

    grid: Count = 5
    reach: float = 0.3

    @property
    def copies(self) -> int:
        return self.grid**2

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        i, j = (self._shift(place) for place in divmod(copy, self.grid))
        move = x.new_tensor([[1.0, 0.0, i], [0.0, 1.0, j]]).expand(len(x), 2, 3)
        return F.grid_sample(x, F.affine_grid(move, list(x.shape), align_corners=False), align_corners=False)

    def _shift(self, place: int) -> float:
        return self.reach * (2 * place / (self.grid - 1) - 1) if self.grid > 1 else 0.0
