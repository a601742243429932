"""SIA: structure invariance, every block of the image under a transformation of its own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.spectrum import spectral
from advens.attacks.transforms.bsr import cuts
from advens.fields import Count
from advens.seeding import Draws

SEVEN = ("roll-rows", "roll-columns", "flip-rows", "flip-columns", "turn", "scale", "noise")
OPERATIONS = {"paper": (*SEVEN, "resize", "dct", "dropout"), "transferattack": SEVEN}


@part("transform", "sia", paper="Wang et al., ICCV 2023 (SIA)", year=2023)
class SIA:
    """Copies cut into ``blocks`` x ``blocks``, with one of ten operations, drawn anew, on each block.

    Cuts lie anywhere between pixels. The operations, equally likely: the block rolled along its rows or
    columns by any number of pixels; flipped either way; turned by 180 degrees; multiplied by U(0, 1); noise
    U(-eps, eps) added, clipped to [0, 1]; shrunk to int(0.8 n) + 1 pixels a side and back, clipped; the
    highest 40 % of its cosine coefficients along each axis zeroed; each channel dropped with probability
    0.1, the others divided by 0.9.

    Cuts, operations, shifts and factors are drawn once a step and copy for the whole shard; noise and
    dropped channels are a sample's own. The noise is published as 16/255, which is eps there; in l_2
    it is cut from noise over the image as long as eps. Published code zeroes all of a block that is one or
    two pixels wide where 40 % of its coefficients are none; here these keep theirs.

    Args:
        copies: how many.
        blocks: blocks along each side (s in the paper); not more than there are pixels.
        operations: the ten of the ``paper``, or the first seven, as ``transferattack`` has it.
    """

    copies: Count = 20
    blocks: Count = 3
    operations: Literal["paper", "transferattack"] = "paper"

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws, known = context.draws.fork("sia", copy), OPERATIONS[self.operations]
        rows = x.split(cuts(x.shape[-2], self.blocks, draws, "rows"), -2)
        strips = []
        for i, strip in enumerate(rows):
            top = sum(row.shape[-2] for row in rows[:i])
            blocks, left = [], 0
            for j, block in enumerate(strip.split(cuts(x.shape[-1], self.blocks, draws, "columns"), -1)):
                name = known[draws.integers(len(known), 1, "operation", i, j)[0]]
                if name == "noise":
                    noise = context.threat.noise(x, 1.0, draws, "noise")
                    height, width = block.shape[-2:]
                    block = (block + noise[..., top : top + height, left : left + width]).clamp(0, 1)
                else:
                    block = operate(name, block, draws.fork(i, j))
                blocks.append(block)
                left += block.shape[-1]
            strips.append(torch.cat(blocks, -1))
        return torch.cat(strips, -2)


def operate(name: str, block: Tensor, draws: Draws) -> Tensor:
    """A block (N, C, h, w) under one of the operations that do not depend on its place."""
    height, width = block.shape[-2:]
    if name == "roll-rows":
        return block.roll(draws.integers(height, 1, "shift")[0], -2)
    if name == "roll-columns":
        return block.roll(draws.integers(width, 1, "shift")[0], -1)
    if name == "flip-rows":
        return block.flip(-2)
    if name == "flip-columns":
        return block.flip(-1)
    if name == "turn":
        return block.flip(-2, -1)
    if name == "scale":
        return block * draws.number(0, 1, "factor")
    if name == "resize":
        small = F.interpolate(block, (height * 4 // 5 + 1, width * 4 // 5 + 1), mode="bilinear")
        return F.interpolate(small, (height, width), mode="bilinear").clamp(0, 1)
    if name == "dct":
        low = torch.zeros(height, width, dtype=block.dtype, device=block.device)
        low[: height - height * 2 // 5, : width - width * 2 // 5] = 1
        return spectral(block, low)
    kept = draws.uniform(block[:, :, :1, :1], 0, 1, "dropped") >= 0.1
    return block * kept / 0.9
