"""Staircase: larger gradients take longer steps (I-FGS²M)."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import Count
from advens.threat import Threat


@part("update", "staircase", norms=("linf",), paper="Gao et al., 2021 (I-FGS2M), arXiv 2104.09722", year=2021)
class Staircase:
    """The step ``w * sign(g)``, with w from (nearly) 0 to 2 by how large |g| is among its channel's.

    Per sample and channel, |g| is ranked into K groups of equal size, by lower quantiles; ties go to the
    lower group. Group j = 0, 1, ... has the weight (2j + 1)/K, so that weights are 1 on average. There is no
    momentum. Nothing is drawn.

    Args:
        groups: K.
    """

    groups: Count = 64

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        return x_adv

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return g

    def displacement(self, ahead: Tensor, memory: dict[str, Tensor], context: Context) -> Tensor:
        size = ahead.abs().flatten(2)
        last = size.shape[2] - 1
        edges = [(j + 1) * last // self.groups for j in range(self.groups)]
        quantiles = size.sort(-1).values[:, :, edges].contiguous()
        group = torch.searchsorted(quantiles, size.contiguous()).view_as(ahead).to(ahead)
        return (2 * group + 1) / self.groups * ahead.sign()
