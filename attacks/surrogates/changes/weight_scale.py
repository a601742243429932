"""Weight scaling: convolutions with weaker weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.surrogates.changes.sgm import called
from advens.errors import InputError
from advens.fields import Positive


@part("change", "weight-scale", paper="Wu et al., CVPR 2024 (SASD-WS)", year=2024)
class WeightScale:
    """The weights of every convolution times a factor; biases stay.

    Norms use the statistics they were trained with, so activations shrink and logits change. Published for
    targeted attacks together with weights from self-distillation, which are not here.

    Args:
        factor: what weights are multiplied by; 1 changes nothing.
    """

    factor: Positive = 0.93

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        if not found:
            raise InputError(f"'weight-scale' finds no convolution in {called(model)}")
        return [module.register_forward_pre_hook(self._scaled) for module in found]

    def _scaled(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0] * self.factor, *args[1:])  # of a linear map it is the same
