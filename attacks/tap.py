"""The tap: what a surrogate computes at some layers, seen while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.layers import modules_at
from advens.errors import InputError


@dataclass
class Tap:
    """Keeps what the modules at some layers give in a forward pass; of a module that runs twice, the last.

    It is put on a surrogate like a change, after those of the attack, so that it sees what they leave.

    Args:
        layers: where; see `modules_at`.
        whose: the name of the method, for messages.
        mixed: what the network goes on with instead of the features, where a gradient is taken.
    """

    layers: Sequence[float | str]
    whose: str
    mixed: Callable[[Tensor], Tensor] | None = None
    _modules: list[nn.Module] = field(default_factory=list)
    _kept: dict[int, Tensor] = field(default_factory=dict)

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        self._modules = self._modules or modules_at(model, self.layers, self.whose)
        return [
            module.register_forward_hook(partial(self._keep, i))
            for i, module in enumerate(self._modules)
        ]

    def take(self) -> tuple[Tensor, ...]:
        """The features of the last forward pass, in the order of the layers; they are kept no longer."""
        kept, self._kept = self._kept, {}
        if len(kept) < len(self._modules):
            raise InputError(f"'{self.whose}': layer {self.layers[0]} of a surrogate does not run")
        return tuple(kept[i] for i in range(len(kept)))

    def _keep(self, i: int, module: nn.Module, args: tuple[Any, ...], out: Any) -> Tensor:
        if not isinstance(out, Tensor):
            raise InputError(
                f"'{self.whose}' taps tensors; layer {self.layers[0]} of a surrogate, a "
                f"{type(module).__name__}, gives a {type(out).__name__}"
            )
        if torch.is_grad_enabled():
            if self.mixed is not None:
                out = self.mixed(out)
            elif not out.requires_grad:
                out = out.detach().requires_grad_()  # the graph begins here
        self._kept[i] = out
        copy: Tensor = out.clone()  # what follows may work in place
        return copy
