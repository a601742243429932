"""SVRE: stochastic variance reduced ensemble."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Oracle, Passes
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.updates import MI, accumulate
from advens.threat import Threat

PAPER = "Xiong et al., CVPR 2022 (SVRE)"


@part("fusion", "svre", paper=PAPER, year=2022)
class SVRE:
    """Inner steps on one random surrogate at a time, its gradient corrected by a control variate.

    The surrogates' gradients at the outer point do not change in the inner loop: they are taken once
    each, where published code takes one again in every inner step. It also draws an input transform anew
    for every gradient, so that the control variate no longer cancels (here a step has one draw), takes 8
    rounds instead of 4 with TI, and adds the loss of Inception's auxiliary logits.

    Args:
        rounds: inner steps per surrogate (M = rounds K).
        mu: decay of the inner momentum, which starts anew in every outer step.
        refilter: filter the last inner momentum, the outer update's gradient, like any gradient, as the
            published SVRE-TI does; the inner gradients are filtered either way.
    """

    rounds: int = 4
    mu: float = 1.0
    refilter: bool = True

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        beta = oracle.context.step_size
        g = oracle.gradient(x)
        outer = [oracle.gradient(x, [k]) for k in range(oracle.k)]
        draws = oracle.context.draws.integers(oracle.k, self.rounds * oracle.k, "svre")
        inner, memory = x, dict[str, Tensor]()
        for k in draws:
            d = oracle.gradient(inner, [k]) - outer[k] + g  # grad_k(x~) - grad_k(x') + g
            momentum = accumulate(d, memory, self.mu)
            inner = oracle.context.step(inner, beta, momentum)
        return oracle.filtered(memory["m"]) if self.refilter else memory["m"]

    def passes(self, surrogates: int, gradients: int) -> Passes:
        both = (2 + self.rounds) * surrogates * gradients
        return Passes(both, both)


@recipe("svre", symbol="SVRE", family="fusion", paper=PAPER, year=2022)
def SVREAttack() -> ComposedAttack:
    """Variance-reduced inner loop over random surrogates, outer momentum; eps 16/255."""
    return ComposedAttack(fusion=SVRE(), update=MI(), threat=Threat("linf", "16/255"))
