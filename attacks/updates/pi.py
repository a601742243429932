"""PI: patch-wise steps."""

from __future__ import annotations

import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.updates.momentum import accumulate
from advens.threat import Threat

DUST = 1e-6
"""What is smaller than this part of eps is rounding and has no sign."""


@part("update", "pi", norms=("linf",), paper="Gao et al., ECCV 2020 (PI-FGSM)", year=2020)
class PI:
    """A step beta times as long, and what leaves the ball is passed on to the pixels around it.

    With ``s = beta alpha sign(m)`` and A the sum of all steps so far: ``A <- A + s``, ``C = max(|A| - eps, 0)
    sign(A)``, ``P = gamma eps sign(W * C)``, ``A <- A + P``; the step is ``s + P``.

    W averages the other ``size``² - 1 pixels of a window, channel by channel, with zeros beyond the border.
    Where |A| is eps and where the pixels around cancel, rounding would decide about a sign: amounts below
    1e-6 eps count as none. Nothing is drawn.

    Args:
        beta: amplification of the step.
        gamma: length of the move that is passed on, relative to eps.
        size: side of the window, odd (7 in the paper for adversarially trained targets).
        mu: decay of the momentum; 0 for none, 1 for MPI.
    """

    beta: float = 10.0
    gamma: float = 1.0
    size: int = 3
    mu: float = 0.0

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size < 3 or size % 2 == 0:
            raise ValueError("odd, and at least 3")
        return size

    def look(
        self, x_adv: Tensor, memory: dict[str, Tensor], alpha: float, threat: Threat
    ) -> Tensor:
        return x_adv

    def direction(self, g: Tensor, memory: dict[str, Tensor]) -> Tensor:
        return accumulate(g, memory, self.mu)

    def displacement(self, ahead: Tensor, memory: dict[str, Tensor], context: Context) -> Tensor:
        eps, alpha = context.threat.radius, context.step_size
        step = self.beta * alpha * ahead.sign()
        total = memory["A"] + step if "A" in memory else step
        cut = _clean((total.abs() - eps).clamp_min(0), eps) * total.sign()
        passed = self.gamma * eps * _clean(self._around(cut), eps).sign()
        memory["A"] = total + passed
        return (step + passed) / alpha

    def _around(self, cut: Tensor) -> Tensor:
        """W * C."""
        window = cut.new_ones(self.size, self.size)
        window[self.size // 2, self.size // 2] = 0
        kernel = (window / window.sum()).expand(cut.shape[1], 1, -1, -1)
        return F.conv2d(cut, kernel, padding=self.size // 2, groups=cut.shape[1])


def _clean(amount: Tensor, eps: float) -> Tensor:
    return torch.where(amount.abs() > DUST * eps, amount, 0.0)
