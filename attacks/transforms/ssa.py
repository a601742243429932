"""SSA: spectrum simulation, noise on the image's discrete cosine transform."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.spectrum import spectral


@part("transform", "ssa", paper="Long et al., ECCV 2022 (S2I-FGSM)", year=2022)
class SSA:
    """Copies ``IDCT(DCT(x + noise) * U(1 - rho, 1 + rho))``, noise of standard deviation eps.

    The noise is published as 16/255, which is eps there; in l_2 it is eps over the root of CHW.
    The published code takes the gradient at the transformed image and does not go back through the
    cosine transform; ``straight_through=False`` takes the exact gradient instead.

    Args:
        copies: how many.
        rho: half-width of the multiplicative noise.
        straight_through: whether the transform counts as the identity for the gradient.
    """

    copies: int = 20
    rho: float = 0.5
    straight_through: bool = True

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        draws = context.draws
        noisy = x + context.threat.gaussian(x, 1.0, draws, "ssa-noise", copy)
        mask = draws.uniform(x, 1 - self.rho, 1 + self.rho, "ssa-mask", copy)
        view = spectral(noisy, mask)
        return x + (view - x).detach() if self.straight_through else view
