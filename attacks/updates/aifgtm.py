"""AI-FGTM: Adam's two sums, and the hyperbolic tangent in the place of the sign."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.threat import Threat


@part("update", "ai-fgtm", norms=("linf",), paper="Zou et al., AAAI 2022 (AI-FGTM)", year=2022)
class AIFGTM:
    """``m <- m + mu1 g``, ``v <- v + mu2 g²``, step ``tanh(lambda m / sqrt(v))``.

    Gradients are divided by the mean|g| of a sample's first gradient that is not zero, once for the whole
    run: m / sqrt(v) stays the same, and the squares of small gradients do not underflow.

    Args:
        mu1: weight of the gradients' sum.
        mu2: weight of the sum of their squares.
        scale: lambda.
    """

    mu1: float = 1.5
    mu2: float = 1.9
    scale: float = 1.3

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        return x_adv

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        size = memory.get("size", torch.zeros_like(g[:, :1, :1, :1]))
        memory["size"] = size = torch.where(size > 0, size, g.abs().mean((1, 2, 3), keepdim=True))
        g = g / torch.where(size > 0, size, 1.0)
        memory["m"] = memory.get("m", torch.zeros_like(g)) + self.mu1 * g
        memory["v"] = memory.get("v", torch.zeros_like(g)) + self.mu2 * g.square()
        return memory["m"] / memory["v"].sqrt().clamp_min(torch.finfo(g.dtype).tiny)

    def displacement(self, ahead: Tensor, memory: dict[str, Tensor], context: Context) -> Tensor:
        return torch.tanh(self.scale * ahead)
