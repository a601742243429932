"""Local: the image, and an enlarged piece of the clean one under the same perturbation."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import Fraction


@part("transform", "local", paper="Wei et al., CVPR 2023 (SU)", year=2023)
class Local:
    """Copy 0 is x', copy 1 is ``resize(crop(x)) + x' - x``, with a random crop of the clean image x.

    The crop has a part of the image's area from U(area, area + interval); the ratio of its sides is between
    3/4 and 4/3, uniform in its logarithm. It is drawn once a step for the whole shard, as published. Copy 1
    is not clipped to [0, 1].

    Args:
        area: the smallest part of the area.
        interval: how much larger it may be.
        over: what is averaged over the two copies; see `dem`. The loss of `su` sees both together.
    """

    area: Fraction = 0.1
    interval: Fraction = 0.0
    over: Literal["logits", "loss"] = "logits"
    copies = 2

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        if copy == 0:
            return x
        draws, (height, width) = context.draws.fork("local"), x.shape[-2:]
        pixels = height * width * draws.number(self.area, self.area + self.interval, "area")
        ratio = math.exp(draws.number(math.log(3 / 4), math.log(4 / 3), "ratio"))
        wide = min(width, max(1, round(math.sqrt(pixels * ratio))))
        high = min(height, max(1, round(math.sqrt(pixels / ratio))))
        top = draws.integers(height - high + 1, 1, "top")[0]
        left = draws.integers(width - wide + 1, 1, "left")[0]
        crop = context.clean[..., top : top + high, left : left + wide]
        local = F.interpolate(crop, (height, width), mode="bilinear", align_corners=False)
        return local + (x - context.clean)
