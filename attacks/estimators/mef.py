"""MEF: maximin expected flatness."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from advens.attacks.estimators.remembered import remembered
from advens.attacks.interfaces import Context, Gradient, gradients
from advens.attacks.parts import part
from advens.fields import within


@part("estimator", "mef", paper="Qiu et al., 2024 (MEF), arXiv 2405.16181", year=2024)
class MEF:
    """Mean gradient over neighbours that each keep a direction p of their own.

    Neighbour i is at ``v_i = x' + u + xi eps p_i``, u uniform in gamma eps and drawn for each sample, step
    and neighbour; then ``p_i <- g_i / mean|g_i| - mu p_i`` (in l_2 ``g_i / ||g_i||_2``), from 0. Points are
    not projected.

    The paper seeks the lowest loss of a neighbourhood. Yet its authors' code adds ``+ xi eps p_i``, where
    p's newest term points uphill, and so does this; older terms alternate in sign.

    Memory: one image a neighbour is kept for every sample and every gradient that a fusion asks for.

    Args:
        copies: neighbours (N in the paper).
        gamma: radius of the neighbourhood, relative to eps.
        xi: length of the move along p, relative to eps (0.2 in the authors' script).
        mu: how much of the last p is subtracted.
    """

    copies: Annotated[int, within("at least 2 neighbours", lambda n: n >= 2)] = 20
    gamma: float = 2.0
    xi: float = 0.15
    mu: float = 0.9

    @property
    def queries(self) -> int:
        return self.copies

    def estimate(
        self, gradient: Gradient, x: Tensor, memory: dict[str, Any], context: Context
    ) -> Tensor:
        before: list[Tensor] = remembered(memory, context).get("p", [x.new_zeros(())] * self.copies)
        reach, after, mean = self.xi * context.threat.radius, [], x.new_zeros(())
        points = (x + context.threat.noise(x, self.gamma, context.draws, "mef", copy) + reach * p
                  for copy, p in enumerate(before))  # fmt: skip
        for p, g in zip(before, gradients(gradient, points), strict=True):
            after.append(context.unit(g) - self.mu * p)
            mean = mean + g / self.copies
        memory["p"] = after
        return mean
