"""YAILA: yet another intermediate level attack, also known as ILA++."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.ila import First, walked
from advens.attacks.features.tap import TAP
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.uniform import EnsLoss
from advens.fields import Positive
from advens.threat import unit_l2

PAPER = "Li et al., ECCV 2020 (YAILA), arXiv 2008.08847"


@part("feature", "yaila", targeted=False, paper=PAPER, year=2020)
class YAILA:
    """A first attack's losses are regressed on its features, and the weights followed: ascend ``<F(x'), w>``.

    For the images x_i after each of the first attack's steps: ``h_i = n_2(F(x_i) - F(x))``, ``r_i = J(x_i)``,
    and ``w = H^T (H H^T + ridge I)^-1 r``, the weights of a ridge regression up to their scale, with n_2
    division by the l_2 norm. The second attack begins at x again. With a large ridge w is the sum of r_i h_i.
    The loss J is the attack's, of each surrogate alone.

    The first attack is on all surrogates together, in the same ball. Features and losses of its images are
    found in forward passes of their own, of images that are not transformed; published code takes them from
    the passes of the first attack. They are kept until w is known, which takes as many feature maps as there
    are steps.

    Args:
        layer: depth of the layer, or the name of a module. 0.75 is the end of the third of four stages; the
            published layer is the first block of that stage, ``layer3.0`` in a ResNet-50.
        first: the first attack; its ball is that of the attack it is part of.
        ridge: lambda.
    """

    layer: Layer = 0.75
    first: First = ComposedAttack(steps=10, step_size=StepSize("eps/8"), fusion=EnsLoss(), feature=TAP())
    ridge: Positive = 1.0

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        if "w" in surrogate.memory:
            return
        walk, rows, losses = walked(surrogate, self.first), [], []
        with torch.no_grad():
            clean = surrogate.run(surrogate.job.x).features[0]
            for x in walk:
                seen = surrogate.run(x)
                rows.append(unit_l2(seen.features[0] - clean).flatten(1).to(x.dtype))
                losses.append(surrogate.loss(seen.logits).value)
        h = torch.stack(rows, 1)  # (N, T, D)
        gram = h @ h.mT + self.ridge * torch.eye(h.shape[1], dtype=h.dtype, device=h.device)
        share = torch.linalg.solve(gram, torch.stack(losses, 1).to(h))
        surrogate.memory["w"] = unit_l2((share[:, None] @ h).view_as(clean))

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        first = self.first.passes(surrogates)
        return Passes(first.forward + surrogates * (1 + self.first.steps), first.backward)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        w: Tensor = surrogate.memory["w"]
        return (w * seen.features[0]).flatten(1).sum(1)


@recipe("yaila", symbol="YAILA", family="feature", targeted=False, paper=PAPER, year=2020)
def YetAnother() -> ComposedAttack:
    """Signs along features that a first attack's loss grows with; eps 8/255, 10 and 50 steps of eps/8."""
    return ComposedAttack(fusion=EnsLoss(), feature=YAILA(), steps=50, step_size=StepSize("eps/8"))
