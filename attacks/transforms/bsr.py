"""BSR: block shuffle and rotation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from advens.attacks.geometry import rotate
from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import within
from advens.seeding import Draws


@part("transform", "bsr", paper="Wang et al., CVPR 2024 (BSR)", year=2024)
class BSR:
    """Copies cut into ``blocks`` x ``blocks`` of random sizes, shuffled and rotated a little.

    One draw a step and copy for the whole shard. The default follows the authors' PyTorch code
    (TransferAttack, there with 3 x 3 blocks): strips along an axis that is drawn, too, are shuffled,
    each is rotated as a whole, cut the other way and shuffled again. Their first code rotates every
    block, as the text says; ``rotated="blocks"`` does so, with rows first and cuts anywhere.

    Args:
        copies: how many.
        blocks: blocks along each side.
        angle: largest rotation, in degrees.
        rotated: ``strips`` before the second cut, or ``blocks`` after it.
    """

    copies: int = 20
    blocks: Annotated[int, within("at least one block", lambda n: n >= 1)] = 2
    angle: float = 24.0
    rotated: Literal["strips", "blocks"] = "strips"

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws = context.draws.fork("bsr", copy)
        if self.rotated == "blocks":
            return self._blocks(x, draws)
        first, second = (-2, -1) if draws.integers(2, 1, "axis") == [0] else (-1, -2)
        strips = []
        for i, strip in enumerate(self._shuffled(x, sizes, first, draws, "first")):
            turned = rotate(strip, draws.number(-self.angle, self.angle, "angle", i))
            strips.append(torch.cat(self._shuffled(turned, sizes, second, draws, "second", i), second))
        return torch.cat(strips, first)

    def _blocks(self, x: Tensor, draws: Draws) -> Tensor:
        """Rows are shuffled, cut and shuffled again; then every block is rotated."""
        strips = []
        for row, strip in enumerate(self._shuffled(x, cuts, -2, draws, "rows")):
            turned = [
                rotate(block, draws.number(-self.angle, self.angle, "angle", row, column))
                for column, block in enumerate(self._shuffled(strip, cuts, -1, draws, "columns", row))
            ]
            strips.append(torch.cat(turned, -1))
        return torch.cat(strips, -2)

    def _shuffled(
        self, x: Tensor, cut: Callable[..., list[int]], dim: int, draws: Draws, *tag: object
    ) -> list[Tensor]:
        pieces = x.split(cut(x.shape[dim], self.blocks, draws, *tag), dim)
        return [pieces[i] for i in draws.permutation(len(pieces), "order", *tag)]


def sizes(length: int, pieces: int, draws: Draws, *tag: object) -> list[int]:
    """Sizes in proportion to U(1, 2), rounded; the largest makes up what is missing to ``length``."""
    pieces = min(pieces, length)
    shares = [draws.number(1, 2, "size", *tag, i) for i in range(pieces)]
    found = [round(share * length / sum(shares)) for share in shares]
    while (missing := length - sum(found)) != 0:
        found[found.index(max(found))] += 1 if missing > 0 else -1
    return found


def cuts(length: int, pieces: int, draws: Draws, *tag: object) -> list[int]:
    """Random positive sizes that add up to ``length``."""
    pieces = min(pieces, length)
    inner = draws.permutation(length - 1, "cuts", *tag)[: pieces - 1]
    ends = [0, *sorted(cut + 1 for cut in inner), length]
    return [b - a for a, b in pairwise(ends)]
