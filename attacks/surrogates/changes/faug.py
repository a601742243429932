"""FAUG: noise on the features of the first layer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.surrogates.changes.sgm import called
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import NonNegative
from advens.threat import Threat

PAPER = "Wang et al., 2025 (FAUG)"


@part("change", "faug", paper=PAPER, year=2025)
class FAUG:
    """The first convolution's output F becomes ``F + N(0, (width std F)^2)``, but not in the first step.

    In a vision transformer that is the patch embedding. The standard deviation is a sample's own over
    channels and positions; published code takes that of the batch.

    Args:
        width: of the noise, in standard deviations of F.
    """

    width: NonNegative = 0.3

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        first = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
        if first is None:
            raise InputError(f"'faug' finds no convolution in {called(model)}")
        return [first.register_forward_hook(partial(self._noisy, context))]

    def _noisy(
        self, context: ChangeContext, module: nn.Module, args: tuple[Any, ...], value: Tensor
    ) -> Tensor | None:
        if context.draws is None or context.draws.step < 1:
            return None
        spread = value.detach().flatten(1).std(1, correction=0)
        return value + self.width * spread.view(-1, 1, 1, 1) * context.normal(value, "faug")


@recipe("faug", symbol="FAUG", family="surrogate", paper=PAPER, year=2025)
def FeatureNoise() -> ComposedAttack:
    """Momentum, with noise on the features of the first layer; eps 16/255, 10 steps of eps/8."""
    return ComposedAttack(
        threat=Threat("linf", "16/255"), update=MI(), step_size=StepSize("eps/8"), changes=(FAUG(),)
    )
