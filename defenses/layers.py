"""Features of a network before its nonlinearities, whatever it is made of.

A layer is a call of a nonlinearity, counted in the order of the calls, and its features are the input of the
call: after batch-norm and after the residual sum, before the ReLU. Calls are counted and not modules: a ReLU
that a block uses twice is two layers, and functions count like modules.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advens.classifier import borrowed

LOGITS = -1
"""The layer whose features are the logits."""

NONLINEARITIES = frozenset(
    name + place
    for name in (
        "celu", "elu", "gelu", "hardswish", "hardtanh", "leaky_relu", "mish", "prelu", "relu", "relu6",
        "rrelu", "selu", "silu", "softplus", "tanh",
    )
    for place in ("", "_")
)  # fmt: skip
"""Functions of torch. The sigmoid does not count: in current networks it computes gates."""


class Reached(Exception):
    """Raised when a forward pass reaches the layer that was asked for.

    Args:
        given: the input of the layer.
    """

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given


class Watch(TorchFunctionMode):
    """Counts the nonlinearities that are called, and ends the forward pass before one of them.

    Args:
        layer: before which to end; with `LOGITS` the pass is not ended.

    Attributes:
        count: calls so far.
        learned: the layers whose input requires a gradient.
    """

    def __init__(self, layer: int = LOGITS) -> None:
        super().__init__()
        self.layer, self.count = layer, 0
        self.learned: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", None) in NONLINEARITIES:
            given = args[0] if args else kwargs["input"]
            if self.count == self.layer:
                raise Reached(given)
            if given.requires_grad:
                self.learned.append(self.count)
            self.count += 1
        return func(*args, **kwargs)


def before(model: nn.Module, x: Tensor, layer: int = LOGITS) -> Tensor:
    """The input of a layer for ``x``, (N, ...); the network beyond it is not run."""
    if layer == LOGITS:
        out: Tensor = model(x)
        return out
    try:
        with Watch(layer):
            model(x)
    except Reached as reached:
        return reached.given
    raise ValueError(f"the network has no layer {layer}")


def layers(model: nn.Module, x: Tensor) -> list[int]:
    """The layers of a network, the logits last, as a pass of the first of images (N, C, H, W) shows them.

    A nonlinearity that sees nothing of the image, as in tables of relative positions, is no layer.
    """
    with borrowed([model]), torch.enable_grad(), Watch() as watch:
        model(x[:1].detach().requires_grad_())
    return [*watch.learned, LOGITS]
