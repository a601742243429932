"""TAP: transferable adversarial perturbations."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.uniform import EnsLoss
from advens.fields import NonNegative
from advens.threat import Threat

PAPER = "Zhou et al., ECCV 2018 (TAP)"
SMALLEST = 1e-12
"""What is added under the root, whose slope at 0 is infinite."""


@part("feature", "tap", paper=PAPER, year=2018)
class TAP:
    """The loss, and the distance from the clean image's features at all layers, and a smooth perturbation.

    Ascend ``J + weight sum_l |phi(F_l(x')) - phi(F_l(x))|^2 + smooth sum|box(x' - x)|`` with
    ``phi(a) = sign(a) |a|^(1/2)``, J the attack's loss of logits and box the means of squares of 3x3 pixels.
    At x' = x features have no gradient, and J leads. Both last terms are sums, so that their weight beside J
    grows with the size of images. Nothing is drawn. Where x' is transformed, features and box are those of
    what the surrogate sees, against the clean image as it is.

    Layers are the ends of all stages, of a vision transformer all blocks. A port takes all children of the
    network, poolings and the classifier included, and the mean of J over a batch of N images, which makes
    both weights N times as large; it ran with 32.

    Args:
        layers: depths or names of modules; ``stages`` is the end of every stage.
        weight: of the features' distance.
        smooth: weight of the perturbation's smooth part.
    """

    layers: tuple[Layer, ...] = ("stages",)
    weight: NonNegative = 0.005
    smooth: NonNegative = 0.01

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        if "phi" not in surrogate.memory:
            with torch.no_grad():
                features = surrogate.run(surrogate.job.x).features
            surrogate.memory["phi"] = [_root(f) for f in features]

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        return Passes(surrogates, 0)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        total = surrogate.loss(seen.logits).term()
        for f, clean in zip(seen.features, surrogate.memory["phi"], strict=True):
            moved = (_root(f) - clean).square().flatten(1).sum(1)
            total = total + self.weight * moved.to(total)
        box = F.avg_pool2d(seen.x - surrogate.job.x, 3, 3)
        return total + self.smooth * box.abs().flatten(1).sum(1)


def _root(a: Tensor) -> Tensor:
    return a.sign() * (a.abs() + SMALLEST).sqrt()


@recipe("tap", symbol="TAP", family="feature", paper=PAPER, year=2018)
def TransferablePerturbations() -> ComposedAttack:
    """Signs away from the clean image's features; eps 16/255, 100 steps of eps/10."""
    return ComposedAttack(
        threat=Threat("linf", "16/255"), fusion=EnsLoss(), feature=TAP(), steps=100,
        step_size=StepSize("eps/10"),
    )  # fmt: skip
