"""MUP: masking unimportant parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.attack import ComposedAttack
from advens.attacks.hooks import Swap
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.surrogates.changes.sgm import called
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import within
from advens.threat import Threat

PAPER = "Yang et al., 2023 (MUP)"


@part("change", "mup", paper=PAPER, year=2023)
class MUP:
    """The least important weights of every convolution are 0, image by image.

    Before every step, at the iterate, the gradient of the surrogate's own loss with respect to its weights is
    taken; in each convolution the ``share`` of the weights w with the smallest ``|w dJ/dw|`` is 0 in the
    step's passes. That is one more forward and one more backward pass for a step. Published code has one mask
    for the batch, and therefore takes one image at a time. Here every image has its own, in any batch: this
    takes the memory of the convolutions' weights, and twice that for their gradients, for each image of the
    micro-batch. A first attack (as ILA has) sees all weights. Nothing is drawn.

    Convolutions with a forward of their own, as those that standardise their weights, are left alone.

    Args:
        share: of the weights, rounded down to whole ones.
        score: ``taylor``, |w dJ/dw|; ``weight``, |w|; or ``gradient``, |dJ/dw|.
    """

    share: Annotated[float, within("from 0 to below 1", lambda v: 0 <= v < 1)] = 0.15
    score: Literal["taylor", "weight", "gradient"] = "taylor"

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        every = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        found = [module for module in every if type(module).forward is nn.Conv2d.forward]
        if not found:
            raise InputError(f"'mup' finds no convolution in {called(model)}")
        if context.looking == self:
            context.memory["mup weights"] = {}
        elif "mup" not in context.memory:
            return ()
        return [Swap(each, "forward", partial(self._run, context, i, each)) for i, each in enumerate(found)]

    @property
    def looks(self) -> int:
        return 1

    def look(
        self, loss: Callable[[Tensor], Tensor], x_adv: Tensor, clean: Tensor, context: ChangeContext
    ) -> None:
        total = loss(x_adv).sum()
        weights: dict[int, Tensor] = context.memory.pop("mup weights")
        grads = torch.autograd.grad(total, list(weights.values()))
        context.memory["mup"] = {
            i: self._kept(w.detach(), g) for (i, w), g in zip(weights.items(), grads, strict=True)
        }

    def _kept(self, w: Tensor, g: Tensor) -> Tensor:
        """Which weights stay, (N, *shape of the weights)."""
        unit = g / g.flatten(1).abs().amax(1).clamp_min(torch.finfo(g.dtype).tiny).view(-1, 1, 1, 1, 1)
        score = {"taylor": w * unit, "weight": w, "gradient": unit}[self.score].abs().flatten(1)
        least = score.topk(int(self.share * score.shape[1]), largest=False).indices
        return torch.ones_like(score, dtype=torch.bool).scatter_(1, least, False).view_as(w)

    def _run(self, context: ChangeContext, i: int, module: nn.Conv2d, x: Tensor) -> Tensor:
        if context.looking == self:
            weights = module.weight.detach().expand(len(x), *module.weight.shape).clone().requires_grad_()
            context.memory["mup weights"][i] = weights
        else:
            weights = module.weight * context.memory["mup"][i]
        return convolved(module, x, weights)


def convolved(module: nn.Conv2d, x: Tensor, weights: Tensor) -> Tensor:
    """A convolution whose weights (N, ...) are a sample's own; ``x`` may hold all samples several times."""
    rows, padding = len(x), module.padding
    if module.padding_mode != "zeros":
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = (0, 0)
    every = weights.repeat(rows // len(weights), 1, 1, 1, 1).flatten(0, 1)
    out = F.conv2d(
        x.reshape(1, -1, *x.shape[2:]), every, None, module.stride, padding, module.dilation,
        rows * module.groups,
    )  # fmt: skip
    out = out.view(rows, -1, *out.shape[2:])
    return out if module.bias is None else out + module.bias.view(-1, 1, 1)


@recipe("mup", symbol="MUP", family="surrogate", paper=PAPER, year=2023)
def UnimportantParameters() -> ComposedAttack:
    """Momentum on gradients without the least important weights; eps 16/255, 10 steps of eps/8."""
    return ComposedAttack(
        threat=Threat("linf", "16/255"), update=MI(), step_size=StepSize("eps/8"), changes=(MUP(),)
    )
