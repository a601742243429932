"""FMAA: feature momentum adversarial attack."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.guided import Score, Total, descent, importance
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.uniform import EnsLoss
from advens.fields import Count, Positive, Share
from advens.threat import Threat, unit_l2

PAPER = "He et al., 2022 (FMAA)"


@part("feature", "fmaa", targeted=False, paper=PAPER, year=2022)
class FMAA:
    """FIA's guidance found anew at every iterate, with a momentum: ascend ``-<B, F(x')>``.

    ``B <- decay B + u(sum_i ds_y/dF at x' * M_i)``, i = 1, ..., ``copies``, u division by the mean of the
    absolute values. Masks are drawn for each sample and step. A decay above 1 grows without bound; here the
    guidance is B over its norm.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module.
        copies: masks of a step.
        first: probability that a value is kept in the first step.
        keep: in later steps.
        decay: of B.
        score: of the label, ``probability`` or ``logit``.
    """

    layer: Layer = 0.5
    copies: Count = 30
    first: Share = 0.6
    keep: Share = 0.9
    decay: Positive = 1.1
    score: Score = "probability"

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        keep, total = self.keep if "B" in surrogate.memory else self.first, Total()
        for i in range(self.copies):
            mask = surrogate.context.draws.uniform(x_adv, 0, 1, "fmaa", i) < keep
            total.add(*importance(surrogate, x_adv * mask, self.score))
        size = total.value.flatten(1).abs().mean(1).clamp_min(torch.finfo(x_adv.dtype).tiny)
        unit = total.value / size.view(-1, *[1] * (total.value.dim() - 1))
        b = self.decay * surrogate.memory["B"] + unit if "B" in surrogate.memory else unit
        surrogate.memory["B"], surrogate.memory["A"] = b, unit_l2(b)

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        each = surrogates * self.copies * len(steps)
        return Passes(each, each)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        return descent(seen, surrogate)


@recipe("fmaa", symbol="FMAA", family="feature", targeted=False, paper=PAPER, year=2022)
def FeatureMomentum() -> ComposedAttack:
    """Signs on features whose importance gathers momentum; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), fusion=EnsLoss(), feature=FMAA())
