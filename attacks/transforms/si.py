"""SI: scale invariance."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part

About = Literal["black", "grey"]

LEVELS: dict[About, float] = {"black": 0.0, "grey": 0.5}


@part("transform", "si", paper="Lin et al., ICLR 2020 (SI-NI-FGSM)", year=2020)
class SI:
    """Copies ``x / 2^i``, i = 0, 1, ...

    The authors' TensorFlow code holds images in [-1, 1], where the same division fades them to grey;
    PyTorch code, with images in [0, 1] as here, fades them to black.

    Args:
        copies: how many.
        about: what copies fade to, ``black`` or ``grey``.
    """

    copies: int = 5
    about: About = "black"

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        return faded(x, copy, LEVELS[self.about])


def faded(x: Tensor, halvings: int, level: float) -> Tensor:
    """The distance of every value from ``level``, halved so many times."""
    return level + (x - level) / float(2**halvings)
