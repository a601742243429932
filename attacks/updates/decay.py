"""Momentum whose steps grow shorter where its sign turns (GRA's decay indicator)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.updates.momentum import accumulate
from advens.fields import Share
from advens.threat import Threat


@part("update", "decay-mi", norms=("linf",), paper="Zhu et al., ICCV 2023 (GRA)", year=2023)
class DecayMI:
    """MI's momentum m and the step ``D * sign(m)``; D is multiplied by eta wherever a sign turns.

    D starts at 1/eta. GRA compares the momentum with that of the step before, which is 0 at first, so that
    the first step is alpha long; FGSRA compares it with the gradient of the step (``against="gradient"``),
    with which it agrees at first, so that the first step is alpha/eta long. D never grows.

    Args:
        mu: decay of the momentum.
        eta: factor of D.
        against: what the momentum's sign is compared with, ``momentum`` or ``gradient``.
    """

    mu: float = 1.0
    eta: Share = 0.94
    against: Literal["momentum", "gradient"] = "momentum"

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        return x_adv

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        before = memory["m"].sign() if "m" in memory else torch.zeros_like(g)
        m = accumulate(g, memory, self.mu)
        other = before if self.against == "momentum" else g.sign()
        decay = memory.get("D", torch.full_like(g, 1 / self.eta))
        memory["D"] = torch.where(m.sign() == other, decay, self.eta * decay)
        return m

    def displacement(self, ahead: Tensor, memory: dict[str, Tensor], context: Context) -> Tensor:
        return memory["D"] * ahead.sign()
