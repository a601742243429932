"""AWT: adversarial weight tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from advens.attacks.attack import ComposedAttack
from advens.attacks.estimators.pgn import PGN
from advens.attacks.hooks import Swap
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.sgm import called
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import NonNegative
from advens.threat import Threat, unit_l2

PAPER = "Chen et al., AAAI 2025 (AWT)"


@part("change", "awt", couples="option", paper=PAPER, year=2025)
class AWT:
    """The surrogate learns to resist the iterate: a step of sharpness-aware descent on its weights.

    Before every step, with the surrogate's own loss ``W(w) = J(x') + J(x)`` and g its gradient at the
    weights w: ``w+ = w + rho g / |g|``; ``b <- momentum b + grad W(w+)``; ``w <- w - rate b``. The step's
    passes are with the new weights. All of this takes four forward and four backward passes. When an attack
    is over the surrogate is as it was. Nothing is drawn.

    Every sample has weights of its own, as with the published code and one image at a time; a surrogate sees
    one image after the other, and memory holds its weights three times for each image of the micro-batch.
    With ``shared`` one set of weights learns from the mean loss of the micro-batch, as published:
    results then depend on which images these are. Published code keeps b from one batch to the next, and adds
    the last gradient to that at w; both are left out.

    It goes with no other change and no feature.

    Args:
        rho: how far w+ is from w.
        rate, momentum: of the descent. The paper has a rate of 0.001 and a rho of 0.002 for Inception-v3.
        shared: one set of weights for all images of a micro-batch.
    """

    ALONE: ClassVar = "gives every image a surrogate of its own"
    rho: NonNegative = 0.005
    rate: NonNegative = 0.002
    momentum: NonNegative = 0.5
    shared: bool = False

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        named: dict[str, Tensor] = dict(model.named_parameters())
        if not named:
            raise InputError(f"'awt' finds no weights in {called(model)}")
        return [Swap(model, "forward", partial(self._run, context, named, _Whole(model)))]

    @property
    def looks(self) -> int:
        return 4

    def look(
        self, loss: Callable[[Tensor], Tensor], x_adv: Tensor, clean: Tensor, context: ChangeContext
    ) -> None:
        memory = context.memory

        def slope() -> dict[str, Tensor]:
            each = loss(x_adv) + loss(clean)
            leaves: dict[str, Tensor] = memory.pop("awt leaves")
            total = each.mean() if self.shared else each.sum()
            grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
            return dict(zip(leaves, grads, strict=True))

        g = slope()
        now: dict[str, Tensor] = memory["awt"]
        every = unit_l2(torch.cat([each.flatten(1) for each in g.values()], 1)).split(
            [each[0].numel() for each in g.values()], 1
        )
        unit = {name: part.view_as(w) for part, (name, w) in zip(every, g.items(), strict=True)}
        memory["awt leaves"] = {name: (w + self.rho * unit[name]).requires_grad_() for name, w in now.items()}
        ahead, before = slope(), memory.get("awt momentum")
        if before is not None:
            ahead = {name: each + self.momentum * before[name] for name, each in ahead.items()}
        memory["awt momentum"] = ahead
        memory["awt"] = {name: w - self.rate * ahead[name] for name, w in now.items()}

    def _run(
        self, context: ChangeContext, named: dict[str, Tensor], whole: _Whole, x: Tensor
    ) -> Tensor:
        memory = context.memory
        if context.looking == self:
            if "awt" not in memory:
                sets = 1 if self.shared else len(x)
                memory["awt"] = {name: w.detach().expand(sets, *w.shape).clone() for name, w in named.items()}
            if "awt leaves" not in memory:
                memory["awt leaves"] = {name: w.clone().requires_grad_() for name, w in memory["awt"].items()}
        weights: dict[str, Tensor] | None = memory.get("awt leaves", memory.get("awt"))
        if weights is None:
            return whole.forward(x)
        sets = len(next(iter(weights.values())))
        outs = [
            functional_call(whole, {f"model.{name}": w[i] for name, w in weights.items()}, (x[i::sets],))
            for i in range(sets)
        ]
        out: Tensor = torch.stack(outs, 1).flatten(0, 1)
        return out


class _Whole(nn.Module):
    """A model's own forward pass, while another stands in its place."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self._own = model, model.forward

    def forward(self, *args: Any) -> Tensor:
        out: Tensor = self._own(*args)
        return out


@recipe("awt", symbol="AWT", family="surrogate", couples="option", paper=PAPER, year=2025)
def WeightTuning() -> ComposedAttack:
    """PGN on surrogates whose weights learn to resist; eps 16/255, 10 steps."""
    return ComposedAttack(
        threat=Threat("linf", "16/255"), update=MI(), estimator=PGN(), changes=(AWT(),)
    )
