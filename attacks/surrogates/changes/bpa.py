"""BPA: backward propagation that loses less of the gradient in ReLUs and in max-pooling."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.attack import ComposedAttack
from advens.attacks.hooks import Swap
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.linbp import activations
from advens.attacks.surrogates.changes.sgm import called
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import Fraction, Positive
from advens.threat import Threat

PAPER = "Wang et al., NeurIPS 2023 (BPA)"


@part("change", "bpa", paper=PAPER, year=2023)
class BPA:
    """Deep ReLUs have SiLU's derivative, and max-pooling passes the gradient to its whole window.

    Logits keep their values. Behind a given depth a ReLU's derivative at v is
    ``sigma(v) (1 + v (1 - sigma(v)))`` instead of 0 or 1. A max-pooling with values w_i in a window passes
    ``exp(tau w_i) / sum_j exp(tau w_j)`` of the gradient to each instead of all of it to the largest.
    Padding has no part in it. The paper changes the pooling of the stem, here every ``MaxPool2d`` is changed.
    ReLUs and poolings that are functions and no modules stay as they are.

    Args:
        depth: the fraction of the ReLU modules that are left alone. The default is where published code
            begins in ResNet-50: at the second block of the third stage.
        temperature: tau; infinitely high is max-pooling as it is.
    """

    depth: Fraction = 0.51
    temperature: Positive = 10.0

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        relus = relu_modules(model, "bpa")
        handles: list[Handle] = []
        for module in relus[round(self.depth * len(relus)) :]:
            handles.append(Swap(module, "forward", _Relu.apply))
        for module in model.modules():
            if type(module) is nn.MaxPool2d and not module.return_indices:
                handles.append(Swap(module, "forward", partial(_pooled, module, self.temperature)))
        return handles


def relu_modules(model: nn.Module, change: str) -> list[nn.Module]:
    """The ReLUs of a network, in the order in which they were registered.

    Raises:
        InputError: there is none.
    """
    found = [module for module in activations(model) if type(module).__name__ == "ReLU"]
    if not found:
        raise InputError(f"'{change}' finds no ReLU module in {called(model)}")
    return found


class _Relu(torch.autograd.Function):
    """ReLU with SiLU's derivative."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return F.relu(v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        s = torch.sigmoid(v)
        g: Tensor = grads[0] * s * (1 + v * (1 - s))
        return g


def _pooled(module: nn.MaxPool2d, temperature: float, w: Tensor) -> Tensor:
    out: Tensor = _MaxPool.apply(w, module, temperature)
    return out


class _MaxPool(torch.autograd.Function):
    """Max-pooling that passes the gradient to its window by softmax."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, module: nn.MaxPool2d, temperature: float) -> Tensor:
        ctx.module, ctx.temperature = module, temperature
        ctx.save_for_backward(w)
        return F.max_pool2d(
            w, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (w,), (g,) = ctx.saved_tensors, grads
        kernel, stride, padding, dilation = (
            (n, n) if isinstance(n, int) else (n[0], n[1])
            for n in (ctx.module.kernel_size, ctx.module.stride, ctx.module.padding, ctx.module.dilation)
        )
        reach = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in
                 zip(g.shape[2:], stride, dilation, kernel, strict=True)]  # fmt: skip
        after = [max(0, r - n - p) for r, n, p in zip(reach, w.shape[2:], padding, strict=True)]
        sides = (padding[1], after[1], padding[0], after[0])
        padded = F.pad(w, sides, value=-torch.inf)[..., : reach[0], : reach[1]]
        n, channels = w.shape[:2]
        windows = F.unfold(padded, kernel, dilation, 0, stride).view(n, channels, -1, g[0, 0].numel())
        shares = (ctx.temperature * windows).softmax(2) * g.reshape(n, channels, 1, -1)
        back = F.fold(shares.flatten(1, 2), tuple(reach), kernel, dilation, 0, stride)
        rest = [p + n - r for p, n, r in zip(padding, w.shape[2:], reach, strict=True)]  # in no window
        back = F.pad(back, (0, max(0, rest[1]), 0, max(0, rest[0])))
        top, left = padding
        return back[..., top : top + w.shape[2], left : left + w.shape[3]], None, None


@recipe("bpa", symbol="BPA", family="surrogate", paper=PAPER, year=2023)
def Backpropagation() -> ComposedAttack:
    """Momentum on gradients that ReLUs and max-pooling truncate less; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(BPA(),))
