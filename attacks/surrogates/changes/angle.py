"""Angle: logits that are the cosines between features and the classifier's weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.attack import ComposedAttack
from advens.attacks.filters import TI
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.losses import TargetLogit
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.surrogates.changes.sgm import called
from advens.attacks.transforms.di import DI
from advens.attacks.updates import MI
from advens.errors import InputError

PAPER = "Weng et al., TIFS 2023 (logit calibration)"


@part("change", "angle", paper=PAPER, year=2023)
class Angle:
    """Logits become ``<f, w_k> / (|f| |w_k|)``: the cosine of the features f and each row of the classifier.

    f is what the last linear layer is given. Ascending the target's logit then turns the features towards its
    weights, and cannot do so by making them longer. The classifier's bias takes no part. Of several
    surrogates, the mean logits are their mean cosines.
    """

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        head, seen = classifier(model), list[torch.Size]()

        def cosines(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            seen.append(out.shape)
            tiny = torch.finfo(out.dtype).tiny
            return F.linear(*(F.normalize(v, dim=-1, eps=tiny) for v in (args[0], head.weight)))

        def check(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            if seen != [out.shape]:
                raise InputError(f"'angle': logits of {called(model)} are not what its last layer gives")

        return [head.register_forward_hook(cosines), model.register_forward_hook(check)]


def classifier(model: nn.Module) -> nn.Linear:
    """The layer that gives a network's logits: what timm's networks tell, else the last linear layer.

    Raises:
        InputError: it is not a linear layer, or there are several networks.
    """
    if getattr(model, "members", ()):
        raise InputError(f"'angle' changes one network; {called(model)} has several members")
    told = [module.get_classifier() for module in model.modules() if hasattr(module, "get_classifier")]  # type: ignore[operator]
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    found = told[0] if told else linear[-1] if linear else None
    if not isinstance(found, nn.Linear):
        raise InputError(f"'angle' finds no linear layer that gives the logits of {called(model)}")
    return found


@recipe("logit-angle", symbol="LogitAngle", family="targeted", paper=PAPER, year=2023)
def LogitAngleAttack() -> ComposedAttack:
    """Cosine of the features and the target's weights, diverse inputs, TI of 5 pixels, momentum; 300 steps.

    The attack is published for targets; without them the features are turned away from the label's weights.
    """
    return ComposedAttack(
        update=MI(), loss=TargetLogit(), transforms=(DI(p=0.7),), filters=(TI(size=5),), steps=300,
        step_size=StepSize("eps/8"), changes=(Angle(),),
    )  # fmt: skip
