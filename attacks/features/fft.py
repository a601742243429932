"""FFT: feature-space fine-tuning of an attack on targets."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.ila import First, walked
from advens.attacks.filters import TI
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.losses import TargetLogit
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.transforms.di import DI
from advens.attacks.transforms.shrink import Shrink
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI, Sum
from advens.fields import Count, NonNegative, Share
from advens.threat import unit_l2

PAPER = "Zeng et al., ICASSP 2024 (FFT)"


@part("feature", "fft", untargeted=False, paper=PAPER, year=2024)
class FFT:
    """A first attack on the target goes on in feature space: ascend ``<A, F(x')>`` from where it ended, x_1.

    ``A = A_t - weight A_y``, with ``A_y = n_2(sum_i dz_y/dF at x * M_i)`` and
    ``A_t = n_2(sum_i dz_t/dF at x_1 * M_i)``, i = 1, ..., ``copies``: features of the target are raised, and
    those of the label lowered a little. M_i keeps every value with probability ``keep`` and sets others to 0;
    masks are drawn once a run for every sample, anew for x_1, and are the same for all surrogates. The ball
    is that around x. The first attack is on all surrogates together, in the same ball and with random numbers
    of its own. Images are masked and not transformed.

    A port masks images that are normalised already, where 0 is the mean colour.

    Args:
        layer: depth of the layer, 0.75 for the end of the third of four stages, or the name of a module.
        first: the first attack; its ball is that of the attack it is part of.
        copies: masks for each of x and x_1.
        keep: probability that a value is kept.
        weight: of the label's features.
    """

    layer: Layer = 0.75
    first: First = ComposedAttack(
        update=Sum(), loss=TargetLogit(), transforms=(DI(p=0.7),), filters=(TI(size=5),), steps=160,
        step_size=StepSize("eps/8"),
    )  # fmt: skip
    copies: Count = 30
    keep: Share = 0.7
    weight: NonNegative = 0.2

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def begin(self, surrogate: Tapped) -> Tensor:
        return walked(surrogate, self.first)[-1]

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        if "A" in surrogate.memory:
            return
        job = surrogate.job
        assert job.target is not None
        of_target = self._guidance(surrogate, self.begin(surrogate), job.target, "target")
        of_label = self._guidance(surrogate, job.x, job.y, "label")
        surrogate.memory["A"] = of_target - self.weight * of_label

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        first, masks = self.first.passes(surrogates), 2 * surrogates * self.copies
        return Passes(first.forward + masks, first.backward + masks)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        along: Tensor = (surrogate.memory["A"] * seen.features[0]).flatten(1).sum(1)
        return along

    def _guidance(self, surrogate: Tapped, x: Tensor, labels: Tensor, whose: str) -> Tensor:
        """The direction in which features of masked images raise the logit of a class."""
        total = torch.zeros(())
        for i in range(self.copies):
            mask = surrogate.job.draws.uniform(x, 0, 1, "fft", whose, i) < self.keep
            seen = surrogate.run(x * mask)
            (g,) = surrogate.gradient(seen.logits.gather(1, labels[:, None]), seen.features)
            total = total.to(g) + g
        return unit_l2(total)


@recipe("fft", symbol="FFT", family="targeted", untargeted=False, paper=PAPER, year=2024)
def FeatureFineTuning() -> ComposedAttack:
    """160 steps on the target's logit, then 10 of eps/16 along the target's features, DI, TI and momentum."""
    return ComposedAttack(
        update=MI(), loss=TargetLogit(), steps=10, step_size=StepSize("eps/16"), fusion=EnsLoss(),
        transforms=(Shrink(),), filters=(TI(size=5),), feature=FFT(),
    )  # fmt: skip
