"""SU: self-universality."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.attack import ComposedAttack
from advens.attacks.filters import TI
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.losses import TargetLogit
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.transforms.di import DI
from advens.attacks.transforms.local import Local
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI

PAPER = "Wei et al., CVPR 2023 (SU)"


@part("feature", "su", untargeted=False, paper=PAPER, year=2023)
class SU:
    """Self-universality: the image and a piece of it shall be taken for the target, and have like features.

    Ascend ``(z_t(v_0) + z_t(v_1)) / 2 + weight cos(F(v_0), F(v_1))`` for the two views of the transform
    `local`, under the transforms that follow it. Of more views that are fused, those after the first are each
    compared with it, and the mean is taken; of one view there is the logit alone. Nothing is drawn.

    Args:
        layer: depth of the layer, 0.75 for the end of the third of four stages, or the name of a module.
        weight: of the cosine.
    """

    layer: Layer = 0.75
    weight: float = 0.001

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        """Nothing."""

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        return Passes(0, 0)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        """The target's logit and the features, side by side."""
        target = surrogate.job.target
        assert target is not None
        z = seen.logits.gather(1, target[:, None])
        return torch.cat([z, seen.features[0].flatten(1).to(z)], 1)

    def joint(self, views: Sequence[Tensor]) -> Tensor:
        z = torch.stack([view[:, 0] for view in views]).mean(0)
        if len(views) == 1:
            return z
        first, *others = (view[:, 1:] for view in views)
        cosines = torch.stack([F.cosine_similarity(first, other) for other in others])
        return z + self.weight * cosines.mean(0)


@recipe("su", symbol="SU", family="targeted", untargeted=False, paper=PAPER, year=2023)
def SelfUniversality() -> ComposedAttack:
    """Momentum on the target's logit of the image and of pieces with like features; 300 steps of eps/8."""
    return ComposedAttack(
        update=MI(), loss=TargetLogit(), steps=300, step_size=StepSize("eps/8"), fusion=EnsLoss(),
        transforms=(Local(), DI(p=0.7)), filters=(TI(size=5),), feature=SU(),
    )  # fmt: skip
