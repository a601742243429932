"""Everywhere: the target shall be seen in every region of the image."""

from __future__ import annotations

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import Count


@part("transform", "everywhere", paper="Zeng et al., AAAI 2025 (Everywhere)", year=2025)
class Everywhere:
    """The image, and copies that show one of its regions on a plain background.

    Copy 0 is the image. The others keep one region of a regular grid each, drawn without replacement, once a
    step for the whole shard; everything else has the mean colour. Regions have int(H / grid) x int(W / grid)
    pixels: what is left over at the lower and right edges is in none of them.

    The paper has a grid of 4 x 4 and nine regions of it; its code has the defaults here, whatever it is told.

    Args:
        grid: regions along each side.
        regions: how many copies show a region.
        colour: of the background, for each channel; images of another number of channels have its mean.
    """

    grid: Count = 3
    regions: Count = 4
    colour: tuple[float, ...] = (0.485, 0.456, 0.406)

    @field_validator("regions")
    @classmethod
    def _are_there(cls, regions: int, info: ValidationInfo) -> int:
        if "grid" in info.data and regions > info.data["grid"] ** 2:
            raise ValueError(f"at most {info.data['grid'] ** 2}, as many as there are")
        return regions

    @property
    def copies(self) -> int:
        return 1 + self.regions

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        if copy == 0:
            return x
        order = context.draws.permutation(self.grid**2, "everywhere")
        row, column = divmod(order[copy - 1], self.grid)
        height, width = x.shape[-2] // self.grid, x.shape[-1] // self.grid
        mask = torch.zeros_like(x[:1, :1])
        mask[..., row * height : (row + 1) * height, column * width : (column + 1) * width] = 1
        colour = x.new_tensor(self.colour)
        if len(colour) != x.shape[1]:
            colour = colour.mean(0, keepdim=True)
        return mask * x + (1 - mask) * colour.view(1, -1, 1, 1)
