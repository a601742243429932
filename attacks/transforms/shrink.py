"""Shrink: diverse inputs that keep the image's size, a random reduction and padding."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import Fraction


@part("transform", "shrink", paper="Zeng et al., ICASSP 2024 (FFT)", year=2024)
class Shrink:
    """With probability ``p``: reduce to a random size, and pad with zeros to the old one at a random place.

    The side is a whole number of pixels from ``round(rate H)`` to H - 1, at least 1, and the width in
    proportion. One draw a step for the whole shard.

    Args:
        p: probability of transforming at all.
        rate: the smallest size, relative to the image's; 202/224 as FFT has it, 195/224 in Everywhere.
        mode: how to resize.
    """

    p: Fraction = 0.7
    rate: Fraction = 202 / 224
    mode: Literal["nearest", "bilinear"] = "nearest"
    copies = 1

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws = context.draws.fork("shrink")
        if draws.number(0, 1, "apply") >= self.p:
            return x
        height, width = x.shape[-2:]
        least = max(1, round(self.rate * height))
        side = min(height, least + draws.integers(max(1, height - least), 1, "side")[0])
        other = max(1, round(width * side / height))
        small = F.interpolate(x, (side, other), mode=self.mode)
        top, left = (
            draws.integers(room + 1, 1, axis)[0]
            for axis, room in (("top", height - side), ("left", width - other))
        )
        return F.pad(small, (left, width - other - left, top, height - side - top))
