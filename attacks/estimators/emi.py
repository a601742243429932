"""EMI: enhanced momentum."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from advens.attacks.estimators.remembered import remembered
from advens.attacks.interfaces import Context, Gradient
from advens.attacks.parts import part
from advens.fields import within


@part("estimator", "emi", paper="Wang et al., BMVC 2021 (EMI-FGSM)", year=2021)
class EMI:
    """Mean gradient along the last estimate: at ``x' + c alpha q``, c evenly from -eta to eta.

    q is the last step's estimate over mean|q| (in l_2 over its length), and 0 in the first step, whose
    points are all the same. Points are not projected. Nothing is drawn.

    Args:
        copies: points (N in the paper).
        eta: how far they reach, in steps.
    """

    copies: Annotated[int, within("at least 2 points, the ends of a line", lambda n: n >= 2)] = 11
    eta: float = 7.0

    @property
    def queries(self) -> int:
        return self.copies

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        q = remembered(memory, context).get("q", x.new_zeros(()))
        mean = x.new_zeros(())
        for i in range(self.copies):
            c = self.eta * (2 * i / (self.copies - 1) - 1)
            mean = mean + gradient(x + c * context.step_size * q) / self.copies
        memory["q"] = context.unit(mean)
        return mean
