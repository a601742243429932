"""Surrogates whose weights are drawn anew at every step of an attack, from a Gaussian around a mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import Self

from advens.attacks.surrogates.builders.snapshot import OwnWeights, Snapshot
from advens.classifier import Classifier
from advens.digest import value_digest
from advens.seeding import Draws


class DrawnWeights(OwnWeights):
    """A bare network under ``mean + spread z``, z ~ N(0, I), drawn anew at every step.

    A draw is named by the step and the surrogate: all passes of a step see the same weights, and all samples
    of a shard. It is made again for every pass and not kept. Outside an attack the weights are the mean.

    Args:
        bare, net: as for `OwnWeights`.
        mean: weights by name.
        spread: standard deviations of the parameters by name.
        tag: tells draws of siblings apart.
    """

    def __init__(
        self, bare: nn.Module, net: nn.Module, mean: Mapping[str, Tensor],
        spread: Mapping[str, Tensor], tag: str,
    ) -> None:  # fmt: skip
        super().__init__(bare, net, mean)
        self.tag = tag
        self.draws: Draws | None = None
        self.spread = {
            name: spread[name].to(w.device) for name, w in self._parameters.items()
            if w is not None and w.is_floating_point()
        }  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        with self.lent(None if self.draws is None else self.draw(self.draws)):
            out: Tensor = self.bare(x)
        return out

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.spread = {name: fn(t) for name, t in self.spread.items()}  # goes along to a device or type
        moved: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return moved

    @torch.no_grad()
    def draw(self, draws: Draws) -> dict[str, Tensor]:
        """Weights by name, the parameters drawn: what a forward pass is lent."""
        weights: dict[str, Tensor] = dict(self.named_buffers())
        found: dict[int, Tensor] = {}  # tied weights stay one tensor
        for name, mean in self._parameters.items():
            assert mean is not None
            if id(mean) not in found:
                found[id(mean)] = mean
                if name in self.spread:
                    generator = draws.generator("weights", self.tag, name, device=mean.device)
                    z = torch.empty_like(mean).normal_(generator=generator)
                    found[id(mean)] = torch.addcmul(mean, self.spread[name], z)
            weights[name] = found[id(mean)]
        return weights


class DrawnSnapshot(Snapshot):
    """A surrogate whose weights are drawn anew at every step; see `DrawnWeights`.

    Args:
        shared, base, name, bases: as for `Snapshot`.
        mean, spread: of the weights, by name.
        digests: of both.
    """

    def __init__(
        self, shared: nn.Module, base: Classifier, mean: Mapping[str, Tensor], spread: Mapping[str, Tensor],
        *, name: str, bases: Sequence[str], digests: Sequence[str],
    ) -> None:  # fmt: skip
        super().__init__(shared, base, mean, name=name, bases=bases)
        self.net = DrawnWeights(shared, base.net, mean, spread, name)
        self._drawn_digest = drawn_digest(digests, name)
        self.eval()

    def at_step(self, draws: Draws | None) -> None:
        """A step begins: these are its draws; None when the attack is over."""
        self.net.draws = draws  # type: ignore[assignment]

    @property
    def weights(self) -> str:
        """Hex sha256 of mean and spread, and of the surrogate's place among its siblings."""
        return self._drawn_digest


def drawn_digest(digests: Sequence[str], name: str) -> str:
    """The digest of one surrogate that is drawn.

    Args:
        digests: of the mean and of the spread.
        name: of the surrogate, which names its draws.
    """
    return value_digest([*digests, name])
