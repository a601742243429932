"""Ghost networks: a surrogate that is slightly another network at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import field_validator
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.linbp import activations
from advens.attacks.surrogates.changes.sgm import Block, called, residual_blocks
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.threat import Threat

PAPER = "Li et al., AAAI 2020 (Ghost Networks)"


Published = Literal["published"]

SCALES = {16: 0.22, 33: 0.16, 50: 0.12}
"""Published widths, by the number of residual blocks of ResNet-50, ResNet-101 and ResNet-152."""


@part("change", "ghost", paper=PAPER, year=2020)
class Ghost:
    """Random factors on skip connections, and dropout after every non-linearity where there are none.

    ``z_{i+1} = lambda_i z_i + f_i(z_i)`` with lambda_i from U(1 - scale, 1 + scale), one for every
    channel and sum of every copy of a model (the paper writes one for every sum; its code draws one
    for every channel); dropout masks are a sample's own. Both are drawn anew at every step and are the
    same for all passes of a step, forward and backward: one ghost a step, the paper's longitudinal
    ensemble.

    As published, a network with skip connections gets factors and one without them gets dropout;
    a number given for either holds for every network that has places for it. z is the block's
    input or, where a projection stands in the skip connection, what that gives; a sum with a part of z
    (CaiT) or of another size (LeViT) keeps its factor of 1.

    Args:
        keep: probability that a value is kept; 1 drops nothing. Published: 0.994 (Inception-v3) in
            networks without skip connections, 1 in others.
        scale: half the width of the factors' range; 0 leaves them at 1. Published: 0.22 for ResNet-50,
            0.16 for ResNet-101, 0.12 for ResNet-152; other networks have that of the nearest depth.
    """

    keep: float | Published = "published"
    scale: float | Published = "published"

    @field_validator("keep")
    @classmethod
    def _keeps(cls, keep: float | Published) -> float | Published:
        if keep != "published" and not 0 < keep <= 1:
            raise ValueError("above 0 and at most 1")
        return keep

    @field_validator("scale")
    @classmethod
    def _scales(cls, scale: float | Published) -> float | Published:
        if scale != "published" and not 0 <= scale < 1:
            raise ValueError("from 0 to below 1")
        return scale

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        places = activations(model)
        blocks = [block for block in residual_blocks(model) if block.sums]
        if not places and not blocks:
            raise InputError(f"'ghost' finds neither activation nor residual branch in {called(model)}")
        keep, scale = self.keep, self.scale
        if keep == "published":
            keep = 1.0 if blocks else 0.994
        if scale == "published":
            scale = published_scale(len(blocks))
        handles: list[Handle] = []
        if keep < 1:
            handles += _dropout(model, places, keep, context)
        if scale > 0:
            for index, block in enumerate(blocks):
                handles += _scaling(block, index, scale, context)
        return handles


def published_scale(blocks: int) -> float:
    """Half the width of the factors' range for a network of so many residual blocks."""
    return SCALES[min(SCALES, key=lambda depth: abs(depth - blocks))]


def _dropout(
    model: nn.Module, places: Sequence[nn.Module], keep: float, context: ChangeContext
) -> list[Handle]:
    """Masks of samples: the first dimension may hold several rows of each, one after another."""
    batch, runs = 0, dict.fromkeys(places, 0)

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal batch
        batch = len(args[0])
        runs.update(dict.fromkeys(places, 0))

    def drop(module: nn.Module, args: tuple[Any, ...], value: Tensor) -> Tensor | None:
        if not batch or len(value) % batch:
            return None  # not made of samples
        tag = order[module], runs[module]
        runs[module] += 1
        noise = context.uniform(value.reshape(batch, -1), 0, 1, "ghost", *tag)
        return value * (noise < keep).to(value.dtype).div_(keep).view_as(value)

    order = {module: index for index, module in enumerate(places)}
    handles: list[Handle] = [model.register_forward_pre_hook(begin)]
    return handles + [module.register_forward_hook(drop) for module in places]


def _scaling(block: Block, index: int, scale: float, context: ChangeContext) -> list[Handle]:
    """lambda z instead of z in the sums of one block."""

    def factor(i: int, z: Tensor) -> Tensor:
        """lambda_i for every channel, in the shape of z."""
        dim = _channels(block.module, z)
        drawn = context.numbers(z.shape[dim], 1 - scale, 1 + scale, "ghost", "skip", index, i)
        return drawn.to(z) if dim == -1 else drawn.to(z).view(-1, 1, 1)

    def projected(module: nn.Module, args: tuple[Any, ...], z: Tensor) -> Tensor:
        return z * factor(0, z)

    def at_exit(z: Tensor, value: Tensor, i: int) -> Tensor | None:
        if (i == 0 and block.projection is not None) or z.numel() != value.numel():
            return None
        return value + z.reshape_as(value) * (factor(i, value) - 1)

    def at_end(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        z: Tensor = args[0]
        return out + z * (factor(0, z) - 1)

    if block.scaled and block.projection is None:  # one sum, with nothing after it
        return [block.module.register_forward_hook(at_end)]
    handles = block.at_exits(at_exit)
    if block.projection is not None:
        handles.append(block.projection.register_forward_hook(projected))
    return handles


def _channels(block: nn.Module, z: Tensor) -> int:
    """The dimension of channels: the last, or the second of a map in a block of convolutions."""
    if z.dim() == 4:
        for module in block.modules():
            if "2d" in type(module).__name__ or isinstance(module, nn.GroupNorm):
                return 1
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                break
    return -1


@recipe("ghost", symbol="Ghost", family="surrogate", paper=PAPER, year=2020)
def GhostNetworks() -> ComposedAttack:
    """Momentum, with one ghost of every surrogate a step; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(Ghost(),))
