"""LinBP: deep non-linearities let the gradient pass as if they were linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from pydantic import field_validator
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from advens.attacks.attack import ComposedAttack
from advens.attacks.changes import Handle, Moment, Swap
from advens.attacks.changes.sgm import called, residual_blocks
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.errors import InputError
from advens.threat import Threat

PAPER = "Guo et al., NeurIPS 2020 (LinBP)"

ACTIVATIONS = {
    "relu", "relu6", "leakyrelu", "prelu", "rrelu", "elu", "celu", "selu", "gelu", "gelutanh", "quickgelu",
    "silu", "swish", "mish", "hardmish", "hardswish", "softplus",
}  # fmt: skip
"""Names of activations in torch and timm. Gates (sigmoid) and softmax are none."""

BIASES = {"rel_pos", "shared_rel_pos", "cpb_mlp"}
"""Names of networks inside a network that see positions, not images."""


def activations(model: nn.Module) -> list[nn.Module]:
    """The activation modules of a network, in the order in which they were registered."""
    return [
        module
        for name, module in model.named_modules()
        if type(module).__name__.lower() in ACTIVATIONS and not BIASES.intersection(name.split("."))
    ]


@part("change", "linbp", paper=PAPER, year=2020)
class LinBP:
    """Linear backpropagation: from some depth on, activations pass the gradient back unchanged.

    Logits keep their values. As that lets more of the gradient through a block's branch than its skip
    connection was trained beside, a branch's gradient is scaled back to the length it would have
    had, sample by sample: ``|J^T g| / |J_lin^T g|`` for the gradient g that arrives at its end, J
    the branch's Jacobian and J_lin the linear one. This costs two more backward passes of
    those branches, which are not counted.

    The paper has ReLU networks only; here GELU, SiLU and others are treated alike. Published code
    counts the mask of the ReLU after the sum in the numerator; here only the branch's own count. An
    activation that is a function and no module cannot be seen. The depth of an activation is its
    place among the modules: a module that a block uses several times counts once.

    Args:
        depth: the fraction of the activations that are left alone; 1 leaves all. The paper starts in
            the third stage of four of ResNet-50, half way.
        rescale: scale the branches of residual blocks back.
    """

    depth: float = 0.5
    rescale: bool = True

    @field_validator("depth")
    @classmethod
    def _fraction(cls, depth: float) -> float:
        if not 0 <= depth <= 1:
            raise ValueError("a fraction, from 0 to 1")
        return depth

    def attach(self, model: nn.Module, moment: Moment) -> Sequence[Handle]:
        found = activations(model)
        if not found:
            raise InputError(f"'linbp' finds no activation module in {called(model)}")
        chosen = found[round(self.depth * len(found)) :]
        mode = _Mode()
        handles: list[Handle] = []
        for module in chosen:
            if getattr(module, "inplace", False):
                handles.append(Swap(module, "inplace", False))
            handles.append(Swap(module, "forward", partial(_linear, module.forward, mode)))
        if self.rescale:
            for block in residual_blocks(model):
                if block.sums and not set(chosen).isdisjoint(block.module.modules()):
                    handles += block.at_exits(partial(_rescaled, mode), first=True)
        return handles


@dataclass
class _Mode:
    """How activations pass the gradient back at the moment, and how many ran since the last sum."""

    linear: bool = True
    ran: int = 0


def _linear(act: Callable[[Tensor], Tensor], mode: _Mode, x: Tensor) -> Tensor:
    """The activation, with a choice of backward passes."""
    y = act(x)
    if not y.requires_grad:
        return y
    mode.ran += 1
    out: Tensor = _Either.apply(x, y, mode)
    return out


def _rescaled(mode: _Mode, z: Tensor, value: Tensor, i: int) -> Tensor | None:
    """The value of a branch, whose gradient will be scaled back; None where nothing in it is linear."""
    ran, mode.ran = mode.ran, 0
    if not ran or not value.requires_grad:
        return None
    edges = get_gradient_edge(value), get_gradient_edge(z)
    out: Tensor = _Rescale.apply(value, mode, *edges)
    return out


class _Either(torch.autograd.Function):
    """y = act(x); the gradient goes to x as if y were x, or to y, whose own graph knows act."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, mode: _Mode) -> Tensor:
        ctx.mode = mode
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        return (grads[0], None, None) if ctx.mode.linear else (None, grads[0], None)


class _Rescale(torch.autograd.Function):
    """alpha g for the gradient g of a branch's value, with alpha a sample's own."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, mode: _Mode, end: GradientEdge, begin: GradientEdge
    ) -> Tensor:
        ctx.mode, ctx.end, ctx.begin = mode, end, begin
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = grads
        linear = _length(ctx, g)
        ctx.mode.linear = False
        try:
            alpha = _length(ctx, g) / linear
        finally:
            ctx.mode.linear = True
        alpha = torch.where(linear > 0, alpha, torch.ones_like(alpha))
        return g * alpha.view(-1, *[1] * (g.dim() - 1)), None, None, None


def _length(ctx: Any, g: Tensor) -> Tensor:
    """(N,), how long ``g`` is when it has gone back through the branch."""
    back: Tensor = torch.autograd.grad(ctx.end, ctx.begin, g, retain_graph=True)[0]
    length: Tensor = torch.linalg.vector_norm(back.flatten(1), dim=1)
    return length


@recipe("linbp", symbol="LinBP", family="surrogate", paper=PAPER, year=2020)
def LinearBackprop() -> ComposedAttack:
    """Iterated signs of linearly backpropagated gradients; eps 16/255, 10 steps.

    The paper's own runs are longer: radii from 0.03 to 0.1, steps of 1/255.
    """
    return ComposedAttack(threat=Threat("linf", "16/255"), changes=(LinBP(),))
