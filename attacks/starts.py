"""Where the loop begins: a part of its own, so that a comparison can hold it equal."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.interfaces import Start as Start
from advens.attacks.parts import part
from advens.seeding import Draws
from advens.threat import Threat


@part("start", "clean")
class Clean:
    """The clean image itself."""

    def place(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        return x


@part("start", "uniform")
class Uniform:
    """A uniform point of the ball."""

    def place(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        return threat.random_start(x, draws)


@part("start", "gaussian")
class Gaussian:
    """The clean image plus a little normal noise, projected.

    Args:
        std: of the noise, on images in [0, 1].
    """

    std: float = 0.001

    def place(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        return threat.project(x + draws.normal(x, self.std, "start"), x)
