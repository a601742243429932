"""FGSRA: frequency-guided sample relevance."""

from __future__ import annotations

from itertools import tee
from typing import Any

from torch import Tensor

from advens.attacks.estimators.gra import cosine, mixed
from advens.attacks.interfaces import Context, Gradient, gradients
from advens.attacks.parts import part
from advens.attacks.spectrum import spectral


@part("estimator", "fgsra", paper="Wang et al., CIKM 2024 (FGSRA)", year=2024)
class FGSRA:
    """``s g + (1 - s) n`` as in GRA, with neighbours whose spectrum is disturbed, weighted by likeness.

    Neighbour i is ``v_i = IDCT(DCT(x' + u) * M)``, u uniform in beta eps and M uniform in [1 - rho, 1 + rho],
    both drawn for each sample, step and neighbour. Its gradient is that by x', back through the cosine
    transform. n is the *sum* of ``cos(x', v_i) g_i``, as published: g counts for about 1/20 of what the
    formula suggests.

    Args:
        copies: neighbours (N in the paper).
        beta: radius of the noise, relative to eps.
        rho: half-width of the mask.
    """

    copies: int = 20
    beta: float = 2.0
    rho: float = 0.7

    @property
    def queries(self) -> int:
        return self.copies + 1

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        draws, near = context.draws, x.new_zeros(())
        g = gradient(x)

        def neighbour(copy: int) -> tuple[Tensor, Tensor]:
            noisy = x + context.threat.noise(x, self.beta, draws, "fgsra", copy)
            mask = draws.uniform(x, 1 - self.rho, 1 + self.rho, "fgsra-mask", copy)
            return spectral(noisy, mask), mask

        each, points = tee(map(neighbour, range(self.copies)))
        slopes = gradients(gradient, (v for v, _ in points))
        for (v, mask), slope in zip(each, slopes, strict=True):
            near = near + cosine(x, v) * spectral(slope, mask)  # the map is its own transpose
        return mixed(g, near)
