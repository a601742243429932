"""SSM-H and SSM-P: spectrum simulation that keeps low frequencies, from a bag of tricks."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.spectrum import spectral

PAPER = "Zhang et al., 2024 (Bag of tricks), arXiv 2401.08734"
OPERATIONS = ("scale", "noise", "dropout")


@part("transform", "ssm-h", paper=PAPER, year=2024)
class SSMH:
    """Copies ``IDCT(DCT(x + noise) * M)`` as ``ssa`` has them, with M = 1 on the lowest frequencies.

    These are the first int(low H) by int(low W) coefficients; elsewhere M ~ U(1 - rho, 1 + rho). Of images
    smaller than 20 pixels a side there are none, and this is ``ssa``. Noise and M are a sample's own.

    Args:
        copies: how many.
        rho: half-width of the multiplicative noise.
        low: the part of the coefficients along each axis that are kept.
        straight_through: whether the transform counts as the identity for the gradient, as in published code.
    """

    copies: int = 20
    rho: float = 0.5
    low: float = 0.05
    straight_through: bool = True

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws, (height, width) = context.draws.fork("ssm-h", copy), x.shape[-2:]
        mask = draws.uniform(x, 1 - self.rho, 1 + self.rho, "mask")
        mask[..., : int(self.low * height), : int(self.low * width)] = 1
        view = spectral(x + context.threat.gaussian(x, 1.0, draws, "noise"), mask)
        return x + (view - x).detach() if self.straight_through else view


@part("transform", "ssm-p", paper=PAPER, year=2024)
class SSMP:
    """Copies ``IDCT(DCT(x + noise) * M)`` where M is made in three blocks, all by one of three operations.

    The blocks are the coefficients that are high along both axes, or along one of them; those that are low
    along both, the first int(low H) by int(low W), keep M = 1. The operation is drawn for each step and
    copy: all of a block times a number U(0, 1); every coefficient times U(1 - rho, 1 + rho); or each
    channel of a block dropped with probability 0.2, the others divided by 0.8. The number is drawn once for
    the shard; noise, masks and dropped channels are a sample's own. The noise has a standard deviation of
    eps.

    Args:
        copies: how many.
        rho: half-width of the multiplicative noise.
        low: the part of the coefficients along each axis that are low.
    """

    copies: int = 20
    rho: float = 0.5
    low: float = 0.1

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws, (height, width) = context.draws.fork("ssm-p", copy), x.shape[-2:]
        operation = OPERATIONS[draws.integers(3, 1, "operation")[0]]
        rows, columns = int(self.low * height), int(self.low * width)
        (low, high), (left, right) = _halves(rows), _halves(columns)
        mask = torch.ones_like(x)
        for i, block in enumerate(((high, right), (low, right), (high, left))):
            if operation == "scale":
                mask[..., block[0], block[1]] = draws.number(0, 1, "factor", i)
            elif operation == "noise":
                noise = draws.uniform(x, 1 - self.rho, 1 + self.rho, "mask")
                mask[..., block[0], block[1]] = noise[..., block[0], block[1]]
            else:
                kept = draws.uniform(x[..., :1, :1], 0, 1, "dropped", i) >= 0.2
                mask[..., block[0], block[1]] = kept / 0.8
        return spectral(x + context.threat.gaussian(x, 1.0, draws, "noise"), mask)


def _halves(cut: int) -> tuple[slice, slice]:
    return slice(None, cut), slice(cut, None)
