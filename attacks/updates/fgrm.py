"""FGRM: gradients rescaled instead of their signs."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.updates.momentum import accumulate
from advens.threat import Threat


@part("update", "fgrm", norms=("linf",), paper="Han et al., 2023 (SMI-FGRM), arXiv 2307.02828", year=2023)
class FGRM:
    """MI's momentum m and the step ``c sign(m) * sigmoid((log2|m| - mean) / std)``, per sample.

    Mean and standard deviation (with n - 1) are over C, H, W. log2 of 0 is taken as that of the smallest
    number. Published code puts the rescaled momentum in the place of the momentum and then steps along its
    *sign*, so that rescaling only changes how the past counts (``published``).

    Args:
        mu: decay of the momentum.
        c: factor of the step.
        published: rescale what is remembered, and step along the sign.
    """

    mu: float = 1.0
    c: float = 2.0
    published: bool = False

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        return x_adv

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        m = accumulate(g, memory, self.mu)
        if self.published:
            memory["m"] = m = self._rescaled(m)
        return m

    def displacement(self, ahead: Tensor, memory: dict[str, Tensor], context: Context) -> Tensor:
        return ahead.sign() if self.published else self._rescaled(ahead)

    def _rescaled(self, m: Tensor) -> Tensor:
        size = m.abs().clamp_min(torch.finfo(m.dtype).tiny).log2()
        centred = size - size.mean((1, 2, 3), keepdim=True)
        spread = size.std((1, 2, 3), keepdim=True).clamp_min(torch.finfo(m.dtype).tiny)
        return self.c * m.sign() * torch.sigmoid(centred / spread)
