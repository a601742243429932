"""Surrogates that are not fooled yet count more: the automatic reweighting of ViT-EnsembleAttack."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Oracle, Passes, Softmin
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.updates import MI
from advens.fields import Positive
from advens.threat import Threat

PAPER = "Cao et al., ICCV 2025 (ViT-EnsembleAttack)"


@part("fusion", "reweighted", paper=PAPER, year=2025)
class Reweighted:
    """``sum_k w_k grad J_k`` with ``w = softmax(-J / T)`` over the surrogates, per sample and step.

    It is the gradient of the soft minimum ``-T log sum_k exp(-J_k / T)`` of the losses that are
    ascended, so one pass of each surrogate serves losses, weights and gradient. Only the paper's abstract
    is known to us, which names the reweighting without a formula: the soft minimum and T are ours.

    Args:
        temperature: T; small follows the least fooled surrogate, large is the mean of the losses.
    """

    OF_LOGITS: ClassVar = "compares the losses of surrogates: those of features have no common scale"

    temperature: Positive = 1.0

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        return oracle.gradient(x, over=Softmin(self.temperature))

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(surrogates * gradients, surrogates * gradients)


@recipe("reweighted", family="fusion", paper=PAPER, year=2025)
def ReweightedFusion() -> ComposedAttack:
    """The reweighting of ViT-EnsembleAttack alone, in steps of eps/T."""
    return ComposedAttack(fusion=Reweighted())


@recipe("vit-ensemble", symbol="ViTEnsemble", family="surrogate", paper=PAPER, year=2025,
        builder="vit-augment")  # fmt: skip
def ViTEnsembleAttack() -> ComposedAttack:
    """Momentum, enlarged steps, reweighted surrogates; made for those of the builder ``vit-augment``.

    The paper's abstract, all that is known to us, names "step size enlargement" without a figure: the step of
    2 eps/T, the momentum, eps 8/255 and 10 steps are ours.
    """
    return ComposedAttack(
        threat=Threat("linf", "8/255"), step_size=StepSize("2eps/T"), update=MI(), fusion=Reweighted()
    )
