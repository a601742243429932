"""Noise: every gradient is taken at a random point near the image."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import Positive


@part("transform", "noise", paper="Guo et al., NeurIPS 2020 (LinBP)", year=2020)
class Noise:
    """``x + u``, u from U(-radius eps, radius eps), a sample's own every step; in l_2 of length radius eps.

    Published runs of LinBP with PGD take every gradient at ``x + U(-eps, eps)``, which may leave the
    ball and [0, 1]; the image itself moves on from where it is.

    Args:
        radius: the noise's reach, relative to eps.
    """

    radius: Positive = 1.0
    copies = 1

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        return x + context.threat.noise(x, self.radius, context.draws, "noise")
