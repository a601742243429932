"""Ghost networks: a surrogate that is slightly another network at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import field_validator
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.changes import Handle, Moment
from advens.attacks.changes.linbp import activations
from advens.attacks.changes.sgm import Block, called, residual_blocks
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.threat import Threat

PAPER = "Li et al., AAAI 2020 (Ghost Networks)"


@part("change", "ghost", paper=PAPER, year=2020)
class Ghost:
    """Dropout after every non-linearity and a random factor on every skip connection.

    ``z_{i+1} = lambda_i z_i + f_i(z_i)`` with lambda_i from U(1 - scale, 1 + scale), one for every sum
    of every copy of a model; dropout masks are a sample's own. Both are drawn anew at every step and
    are the same for all passes of a step, forward and backward: one ghost a step, the paper's
    longitudinal ensemble.

    The paper gives dropout to networks without skip connections and factors to those with them;
    here a network has both, as it has the places for them. z is the block's input or, where a
    projection stands in the skip connection, what that gives; a sum with a part of z (CaiT) or of
    another size (LeViT) keeps its factor of 1.

    Args:
        keep: probability that a value is kept; 1 drops nothing.
        scale: half the width of the factors' range; 0 leaves them at 1.
    """

    keep: float = 0.994
    scale: float = 0.22

    @field_validator("keep")
    @classmethod
    def _keeps(cls, keep: float) -> float:
        if not 0 < keep <= 1:
            raise ValueError("above 0 and at most 1")
        return keep

    @field_validator("scale")
    @classmethod
    def _scales(cls, scale: float) -> float:
        if not 0 <= scale < 1:
            raise ValueError("from 0 to below 1")
        return scale

    def attach(self, model: nn.Module, moment: Moment) -> Sequence[Handle]:
        places = activations(model)
        blocks = [block for block in residual_blocks(model) if block.sums]
        if not places and not blocks:
            raise InputError(f"'ghost' finds neither activation nor residual branch in {called(model)}")
        handles: list[Handle] = []
        if self.keep < 1:
            handles += self._dropout(model, places, moment)
        if self.scale > 0:
            for index, block in enumerate(blocks):
                handles += self._scaling(block, index, moment)
        return handles

    def _dropout(
        self, model: nn.Module, places: Sequence[nn.Module], moment: Moment
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
            noise = moment.uniform(value.reshape(batch, -1), 0, 1, "ghost", *tag)
            return value * (noise < self.keep).to(value.dtype).div_(self.keep).view_as(value)

        order = {module: index for index, module in enumerate(places)}
        handles: list[Handle] = [model.register_forward_pre_hook(begin)]
        return handles + [module.register_forward_hook(drop) for module in places]

    def _scaling(self, block: Block, index: int, moment: Moment) -> list[Handle]:
        """lambda z instead of z in the sums of one block."""

        def factor(i: int) -> float:
            return moment.number(1 - self.scale, 1 + self.scale, "ghost", "skip", index, i)

        def projected(module: nn.Module, args: tuple[Any, ...], z: Tensor) -> Tensor:
            return z * factor(0)

        def at_exit(z: Tensor, value: Tensor, i: int) -> Tensor | None:
            if (i == 0 and block.projection is not None) or z.numel() != value.numel():
                return None
            return value + z.reshape_as(value) * (factor(i) - 1)

        def at_end(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            z: Tensor = args[0]
            return out + z * (factor(0) - 1)

        if block.scaled and block.projection is None:  # one sum, with nothing after it
            return [block.module.register_forward_hook(at_end)]
        handles = block.at_exits(at_exit)
        if block.projection is not None:
            handles.append(block.projection.register_forward_hook(projected))
        return handles


@recipe("ghost", symbol="Ghost", family="surrogate", paper=PAPER, year=2020)
def GhostNetworks() -> ComposedAttack:
    """Momentum, with one ghost of every surrogate a step; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(Ghost(),))
