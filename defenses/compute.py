"""The compute of a training: passes of single images through members, counted as they happen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor

COUNTS = ("forwards", "backwards", "seconds")
"""Columns of a training's history that are sums over its updates."""


@dataclass
class Counter:
    """Passes of an image through a member, each counted once, wherever the pass begins or ends.

    A pass that stops at a layer within the member counts as a whole one, and so does a backward pass through
    another backward pass, as in penalties on gradients.
    """

    forwards: int = 0
    backwards: int = 0

    def before(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A hook: counts a forward pass, and has the backward pass to the images counted."""
        x = given[0]
        if is_batchedtensor(x):  # a member within a stack of all, which is counted itself
            return None
        self.forwards += len(x)
        if not x.requires_grad:
            return None
        own = x.view_as(x)  # a tensor of this pass alone, where members share their images
        own.register_hook(self._back)
        return (own, *given[1:])

    def after(self, module: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        """A hook: has the backward pass to the weights alone counted."""
        x = given[0]
        if not is_batchedtensor(x) and not x.requires_grad and out.requires_grad:
            out.register_hook(lambda g: self._back(g, len(x)))

    def _back(self, g: Tensor, count: int | None = None) -> None:
        self.backwards += len(g) if count is None else count


@contextmanager
def counting(counter: Counter, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Counts the passes through some modules inside the block."""
    hooks = [module.register_forward_pre_hook(counter.before) for module in modules]
    hooks += [module.register_forward_hook(counter.after) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
