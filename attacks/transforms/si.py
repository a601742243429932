"""SI: scale invariance."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.oracle import Context
from advens.attacks.parts import part


@part("transform", "si", paper="Lin et al., ICLR 2020 (SI-NI-FGSM)", year=2020)
class SI:
    """Copies ``x / 2^i``, i = 0, 1, ...

    Args:
        copies: how many.
    """

    copies: int = 5

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        return x / float(2**copy)
