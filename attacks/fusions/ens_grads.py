"""Sum of unit gradients: a baseline as cheap as uniform fusion, which papers do not compare with."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Oracle, Passes
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.threat import unit_l2


@part("fusion", "ens-grads")
class EnsGrads:
    """``sum_k g_k / ||g_k||_2``: every surrogate's gradient counts the same, whatever its scale.

    Sequential fusions such as CSE also give every surrogate the same weight; this one changes nothing
    else. It takes K passes and holds one surrogate's graph at a time.
    """

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        total = unit_l2(oracle.gradient(x, [0]))
        for k in range(1, oracle.k):
            total = total + unit_l2(oracle.gradient(x, [k]))
        return total

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(surrogates * gradients, surrogates * gradients)


@recipe("ens-grads", symbol="EnsGrads", family="fusion", paper="a baseline of this project")
def UnitGradients() -> ComposedAttack:
    """Sum of the surrogates' unit gradients."""
    return ComposedAttack(fusion=EnsGrads())
