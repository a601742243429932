"""One surrogate a step instead of all: the longitudinal ensemble of LGV and Ghost Networks."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Oracle, Passes
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.fields import Count
from advens.threat import Threat

PAPER = "Gubri et al., ECCV 2022 (LGV)"


@part("fusion", "cycle", paper=PAPER, year=2022)
class Cycle:
    """Every step asks other surrogates, in a shuffled order that begins again when it is through.

    The published code orders them so. The order depends on the step alone, so that transforms and
    estimators of several passes see the same surrogate.

    Args:
        members: surrogates a step asks; the mean of their losses is ascended.
        reshuffle: whether the surrogates are shuffled anew whenever all were asked.
    """

    members: Count = 1
    reshuffle: bool = False

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        asked = self.order(oracle)
        return oracle.gradient(x, asked, over="loss", remember="cycle")

    def order(self, oracle: Oracle) -> list[int]:
        """The surrogates of the step at hand: so many positions of one permutation after the other."""
        count = min(self.members, oracle.k)
        first = oracle.context.draws.step * count
        rounds = (divmod(first + i, oracle.k) for i in range(count))
        draws = oracle.job.draws
        return [
            draws.permutation(oracle.k, "cycle", turn if self.reshuffle else 0)[place]
            for turn, place in rounds
        ]

    def passes(self, surrogates: int, gradients: int) -> Passes:
        count = min(self.members, surrogates) * gradients
        return Passes(count, count)


@recipe("lgv", symbol="LGV", family="surrogate", paper=PAPER, year=2022, builder="lgv")
def LongitudinalAttack() -> ComposedAttack:
    """50 steps of eps/10 at eps 4/255, one surrogate a step; made for those of the builder ``lgv``."""
    return ComposedAttack(
        threat=Threat("linf", "4/255"), steps=50, step_size=StepSize("eps/10"), fusion=Cycle()
    )
