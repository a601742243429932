"""Where the loop begins: a part of its own, so that a comparison can hold it equal."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.interfaces import Start as Start
from advens.attacks.parts import part
from advens.seeding import Draws
from advens.threat import Threat


@part("start", "clean", paper="Kurakin et al., ICLR workshop 2017 (I-FGSM)", year=2017)
class Clean:
    """The clean image itself."""

    def place(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        return x


@part("start", "uniform", paper="Madry et al., ICLR 2018 (PGD)", year=2018)
class Uniform:
    """A uniform point of the ball."""

    def place(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        return threat.random_start(x, draws)


@part("start", "gaussian", paper="Chen et al., ICCV 2023 (AdaEA)", year=2023)
class Gaussian:
    """The clean image plus a little normal noise, projected.

    Args:
        std: of the noise, on images in [0, 1].
    """

    std: float = 0.001

    def place(self, x: Tensor, threat: Threat, draws: Draws) -> Tensor:
        return threat.project(x + draws.normal(x, self.std, "start"), x)
