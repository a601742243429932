"""LinBP: deep non-linearities let the gradient pass as if they were linear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from advens.attacks.attack import ComposedAttack
from advens.attacks.hooks import Swap
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.sgm import called, residual_blocks
from advens.errors import InputError
from advens.fields import Fraction
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

    Logits keep their values. In a network with skip connections only the activations inside a residual
    branch become linear: the one after a sum, the stem's and the head's keep their gradients, as
    published. In a network without them all do. A module that a block uses several times (torchvision's
    ReLUs) is linear in those calls after which a branch still ends.

    As that lets more of the gradient through a block's branch than its skip connection was trained
    beside, a branch's gradient is scaled back to the length it would have had, sample by sample:
    ``|J^T g| / |J_lin^T g|`` for the gradient g that arrives at its end, J the branch's Jacobian and
    J_lin the linear one. This costs two more backward passes of those branches, which are not counted.

    The paper has ReLU networks only; here GELU, SiLU and others are treated alike. An activation that
    is a function and no module cannot be changed. Published runs with PGD take every gradient at
    ``x + U(-eps, eps)``: add the transform ``noise`` for that.

    Args:
        depth: the fraction of the residual blocks with activations that are left alone, or of the
            activations in a network without such blocks; 1 leaves all. The default is where
            published code starts in ResNet-50: the second block of the third stage.
        rescale: scale the branches of residual blocks back.
    """

    depth: Fraction = 0.5
    rescale: bool = True

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found = activations(model)
        if not found:
            raise InputError(f"'linbp' finds no activation module in {called(model)}")
        blocks = [block for block in residual_blocks(model) if block.sums]
        if not blocks:
            calls = _Calls(called(model))
            return _made_linear(self._deep(found), calls)
        inside = [block for block in blocks if not set(found).isdisjoint(block.module.modules())]
        if not inside:
            raise InputError(f"'linbp' finds no activation module in a residual branch of {called(model)}")
        chosen = self._deep(inside)
        within = {module for block in chosen for module in block.module.modules()}
        calls = _Calls()
        handles = _made_linear([module for module in found if module in within], calls)
        for block in chosen:
            handles.append(block.module.register_forward_pre_hook(calls.begin))
            handles += block.at_exits(partial(calls.branch_ends, self.rescale), first=True)
            handles.append(block.module.register_forward_hook(calls.end))
        return handles

    def _deep(self, places: list[Any]) -> list[Any]:
        return places[round(self.depth * len(places)) :]


def _made_linear(modules: Sequence[nn.Module], calls: _Calls) -> list[Handle]:
    handles: list[Handle] = []
    for module in modules:
        if getattr(module, "inplace", False):
            handles.append(Swap(module, "inplace", False))
        handles.append(Swap(module, "forward", partial(calls.activation, module.forward)))
    return handles


@dataclass
class _Call:
    """One call of an activation: whether the gradient passes it as if it were linear."""

    linear: bool


@dataclass
class _Calls:
    """The calls of activations while a network runs.

    Args:
        plain: what a message calls a network without skip connections, where every call is linear.
        linear: False while gradients of the network as it is are taken.
        blocks: the residual blocks that are running, and for each the calls since its last sum.
    """

    plain: str = ""
    linear: bool = True
    blocks: list[list[_Call]] = field(default_factory=list)

    def activation(self, act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """The activation, with a choice of backward passes."""
        y = act(x)
        if not y.requires_grad or not (self.plain or self.blocks):
            return y
        if self.plain and _is_sum(x):
            raise InputError(f"'linbp': {self.plain} has a skip connection in a block of an unknown form")
        call = _Call(bool(self.plain))
        if self.blocks:
            self.blocks[-1].append(call)
        out: Tensor = _Either.apply(x, y, call, self)
        return out

    def begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A residual block begins."""
        self.blocks.append([])

    def end(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """It ends; what ran since its last sum keeps its gradient."""
        self.blocks.pop()

    def branch_ends(self, rescale: bool, z: Tensor, value: Tensor, i: int) -> Tensor | None:
        """What ran in a branch is linear; its value, whose gradient will be scaled back."""
        ran, self.blocks[-1] = self.blocks[-1], []
        for call in ran:
            call.linear = True
        if not rescale or not ran or not value.requires_grad:
            return None
        edges = get_gradient_edge(value), get_gradient_edge(z)
        out: Tensor = _Rescale.apply(value, self, *edges)
        return out


def _is_sum(x: Tensor) -> bool:
    """Whether a tensor is a sum of two tensors that both depend on the image."""
    node = x.grad_fn
    return node is not None and node.name() == "AddBackward0" and all(n for n, _ in node.next_functions)


class _Either(torch.autograd.Function):
    """y = act(x); the gradient goes to x as if y were x, or to y, whose own graph knows act."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, call: _Call, calls: _Calls) -> Tensor:
        ctx.call, ctx.calls = call, calls
        return y.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        linear = ctx.call.linear and ctx.calls.linear
        return (grads[0], None, None, None) if linear else (None, grads[0], None, None)


class _Rescale(torch.autograd.Function):
    """alpha g for the gradient g of a branch's value, with alpha a sample's own."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, calls: _Calls, end: GradientEdge, begin: GradientEdge
    ) -> Tensor:
        ctx.calls, ctx.end, ctx.begin = calls, end, begin
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (g,) = grads
        linear = _length(ctx, g)
        ctx.calls.linear = False
        try:
            alpha = _length(ctx, g) / linear
        finally:
            ctx.calls.linear = True
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
