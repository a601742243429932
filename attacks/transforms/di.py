"""DI: diverse inputs, a random resize and padding."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import within

Rate = Annotated[float, within("rate is at least 1", lambda rate: rate >= 1)]
"""The side of the largest enlarged image, relative to the image's."""


@part("transform", "di", paper="Xie et al., CVPR 2019 (DI2-FGSM)", year=2019)
class DI:
    """With probability ``p``: enlarge to a random size, pad with zeros to the largest, resize back.

    One draw a step for the whole shard, and for all copies that other transforms make; published code
    draws anew for every gradient. The paper draws a whole number of pixels from [299, 330), pads to
    330 and does not resize back.

    Args:
        p: probability of transforming at all.
        rate: the largest size, relative to the image's.
    """

    p: float = 0.5
    rate: Rate = 1.1
    copies = 1

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws = context.draws
        if draws.number(0, 1, "di", "apply") >= self.p:
            return x
        height, width = x.shape[-2:]
        factor = draws.number(1, self.rate, "di", "size")
        inner = round(height * factor), round(width * factor)
        outer = round(height * self.rate), round(width * self.rate)
        top = draws.integers(outer[0] - inner[0] + 1, 1, "di", "top")[0]
        left = draws.integers(outer[1] - inner[1] + 1, 1, "di", "left")[0]
        x = F.interpolate(x, inner, mode="bilinear", align_corners=False)
        x = F.pad(x, (left, outer[1] - inner[1] - left, top, outer[0] - inner[0] - top))
        return F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
