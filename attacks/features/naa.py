"""NAA: neuron attribution-based attack."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.guided import Guided, Score, Total, importance
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI
from advens.fields import Count, Positive
from advens.threat import Threat

PAPER = "Zhang et al., CVPR 2022 (NAA)"


@part("feature", "naa", targeted=False, paper=PAPER, year=2022)
class NAA(Guided):
    """Attributions of the label to features are lowered: ascend ``-sum f(A * (F(x') - F(0)))``.

    ``A = n_2(sum_m ds_y/dF at m/n x)``, m = 0, ..., n-1, along the line from the black image. f leaves
    positive attributions as they are and multiplies negative ones by ``gamma``; at 1 the black image's
    features add a constant and are not computed. Nothing is drawn: the paper's noise on the path is left
    out.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module.
        copies: n.
        gamma: weight of negative attributions.
        score: of the label, ``probability`` or ``logit``.
    """

    layer: Layer = 0.5
    copies: Count = 30
    gamma: Positive = 1.0
    score: Score = "probability"

    def guidance(self, surrogate: Tapped) -> Tensor:
        x, total = surrogate.job.x, Total()
        for m in range(self.copies):
            total.add(*importance(surrogate, m / self.copies * x, self.score))
        if self.gamma != 1:
            with torch.no_grad():
                surrogate.memory["F0"] = surrogate.run(torch.zeros_like(x)).features[0]
        return total.value

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        return Passes(surrogates * (self.copies + (self.gamma != 1)), surrogates * self.copies)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        if self.gamma == 1:
            return super().loss(seen, surrogate)
        part = surrogate.memory["A"] * (seen.features[0] - surrogate.memory["F0"])
        return -torch.where(part > 0, part, self.gamma * part).flatten(1).sum(1)


@recipe("naa", symbol="NAA", family="feature", targeted=False, paper=PAPER, year=2022)
def NeuronAttribution() -> ComposedAttack:
    """Momentum on attributions along the line from a black image; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), fusion=EnsLoss(), update=MI(), feature=NAA())
