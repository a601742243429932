"""The step-size rule, a part of its own: half of a published gain can hide in it."""

from __future__ import annotations

import math
import re
from typing import Literal

from pydantic import field_validator

from advens.attacks.parts import part
from advens.errors import InputError
from advens.threat import Threat, parse_eps

RELATIVE = re.compile(r"^\s*([0-9.]*)\s*\*?\s*eps\s*(?:/\s*(T|[0-9.]+))?\s*$")


@part("step", "step-size")
class StepSize:
    """alpha: relative to eps (``"eps/T"``, ``"2eps/T"``, ``"eps/10"``) or fixed (``"2/255"``, 0.01).

    Args:
        alpha: the rule; T stands for the number of steps.
        anneal: ``none``, ``linear`` (to alpha/T) or ``cosine`` (to 0).
    """

    alpha: str | float = "eps/T"
    anneal: Literal["none", "linear", "cosine"] = "none"

    @field_validator("alpha")
    @classmethod
    def _readable(cls, alpha: str | float) -> str | float:
        if not (isinstance(alpha, str) and RELATIVE.match(alpha)):
            try:
                value = parse_eps(alpha, "step_size")
            except InputError as error:
                raise ValueError(f'{error}, "eps/T" or "2eps/T"') from None
            if value <= 0:
                raise ValueError("a step size is above 0")
        return alpha

    def at(self, step: int, steps: int, threat: Threat) -> float:
        """alpha of one step, on images in [0, 1]."""
        alpha = self._base(steps, threat.radius)
        if self.anneal == "linear":
            return alpha * (1 - step / steps)
        if self.anneal == "cosine":
            return alpha * (1 + math.cos(math.pi * step / steps)) / 2
        return alpha

    def _base(self, steps: int, eps: float) -> float:
        match = RELATIVE.match(self.alpha) if isinstance(self.alpha, str) else None
        if match is None:
            return parse_eps(self.alpha)
        factor, divisor = match.groups()
        below = 1.0 if divisor is None else float(steps) if divisor == "T" else float(divisor)
        return float(factor or 1) * eps / below
