"""The step-size rule, a part of its own: half of a published gain can hide in it."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, PlainValidator

from advens.attacks.interfaces import StepRule
from advens.attacks.parts import from_spec, part
from advens.errors import InputError
from advens.threat import Threat, parse_eps

NUMBER = r"[0-9]+\.?[0-9]*|\.[0-9]+"
RELATIVE = re.compile(rf"^\s*({NUMBER})?\s*\*?\s*eps\s*(?:/\s*(T|{NUMBER}))?\s*$")


def _readable(alpha: str | float) -> str | float:
    match = RELATIVE.match(alpha) if isinstance(alpha, str) else None
    try:
        written = [n for n in match.groups() if n not in (None, "T")] if match else [alpha]
        values = [parse_eps(number, "step_size") for number in written]
    except InputError as error:
        raise ValueError(f'{error}, "eps/T" or "2eps/T"') from None
    if any(value <= 0 for value in values):
        raise ValueError("a step size is above 0")
    return alpha


Length = Annotated[str | float, AfterValidator(_readable)]
"""A length relative to eps (``"eps/T"``, ``"2eps/T"``, ``"eps/10"``) or fixed (``"2/255"``, 0.01)."""


@part("step", "step-size", paper="Kurakin et al., ICLR workshop 2017 (I-FGSM)", year=2017)
class StepSize:
    """alpha: relative to eps (``"eps/T"``, ``"2eps/T"``, ``"eps/10"``) or fixed (``"2/255"``, 0.01).

    Args:
        alpha: the rule; T stands for the number of steps.
        anneal: ``none``, ``linear`` (to alpha/T) or ``cosine`` (to 0).
    """

    alpha: Length = "eps/T"
    anneal: Literal["none", "linear", "cosine"] = "none"

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


@part("step", "adam", paper="Zou et al., AAAI 2022 (AI-FGTM)", year=2022)
class Adam:
    """Steps that grow as Adam's do: ``alpha T w_t / sum(w)``, ``w_t = (1 - beta1^t) / sqrt(1 - beta2^t)``.

    Args:
        alpha: the mean step; T stands for the number of steps.
        beta1: decay of the first moment.
        beta2: decay of the second.
    """

    alpha: Length = "eps/T"
    beta1: float = 0.9
    beta2: float = 0.99

    def at(self, step: int, steps: int, threat: Threat) -> float:
        """alpha of one step, on images in [0, 1]."""
        w = [(1 - self.beta1**t) / math.sqrt(1 - self.beta2**t) for t in range(1, steps + 1)]
        return StepSize(self.alpha).at(step, steps, threat) * steps * w[step] / sum(w)


def _rule(value: Any) -> StepRule:
    """A step rule from its table, or `StepSize` from the length of a step."""
    rule: StepRule = StepSize(value) if isinstance(value, (str, float, int)) else from_spec("step", value)
    return rule


Rule = Annotated[StepRule, PlainValidator(_rule)]
"""A field that holds a step rule; a length stands for `StepSize`."""
