"""RDI: resized diverse inputs, a random enlargement by nearest neighbours at every step."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.transforms.di import Rate


@part("transform", "rdi", paper="Zou et al., ECCV 2020 (resized-diverse-inputs)", year=2020)
class RDI:
    """Enlarge to a random size, pad with zeros to the largest, resize back; always, by nearest neighbours.

    A side H becomes at most ``int(rate H)``: ``H + int(U (int(rate H) - H))``, with U from [0, 1). Unlike
    `di` it leaves no step out. One draw a step for the whole shard, as published. Published
    code does not resize back up to 64 pixels, where the larger image is fed to the model; here it does.

    Args:
        rate: the largest size, relative to the image's.

    Source: Zou et al. 2020; the numbers are those of Byun et al. (CFM), CVPR 2023.
    """

    rate: Rate = 340 / 299
    copies = 1

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws = context.draws.fork("rdi")
        sides = x.shape[-2:]
        room = [int(side * self.rate) - side for side in sides]
        u = draws.number(0, 1, "size")
        inner = [side + int(u * more) for side, more in zip(sides, room, strict=True)]
        left = [side + more - now for side, more, now in zip(sides, room, inner, strict=True)]
        top, start = (int(draws.number(0, 1, axis) * free) for axis, free in zip("yx", left, strict=True))
        x = F.interpolate(x, tuple(inner), mode="nearest")
        x = F.pad(x, (start, left[1] - start, top, left[0] - top))
        return F.interpolate(x, tuple(sides), mode="nearest")
