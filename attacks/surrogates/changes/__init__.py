"""Changes inside a surrogate: what its blocks compute, or what flows back through them. One file each.

A change belongs to an attack (its field ``changes``) and is applied to every surrogate, or to one copy of a
model that a builder made. It is there while the model runs, and gone between calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advens.seeding import Draws


class Handle(Protocol):
    """What takes a hook away again; torch's handles are such."""

    def remove(self) -> None:
        """Leave everything as it was."""
        ...


@dataclass
class Moment:
    """What a change may know while a surrogate runs: the random numbers of the step at hand.

    Args:
        draws: of the step, sliced to the rows at hand; None outside an attack.
        member: which copy of the model this is, so that copies draw differently.
    """

    draws: Draws | None = None
    member: int = 0

    def uniform(self, like: Tensor, low: float, high: float, *tag: object) -> Tensor:
        """U(low, high) of the shape, type and device of ``like`` (N, ...), a sample's own.

        Within a step the same tag and shape give the same numbers, however often a model runs; a
        batch that holds every sample M times has them M times.
        """
        draws = self.draws or Draws(0, len(like))
        rows = len(range(draws.size)[draws.rows])
        once = draws.uniform(like[:rows], low, high, "change", self.member, *tag)
        return once if len(like) == rows else once.repeat(len(like) // rows, *[1] * (like.dim() - 1))

    def numbers(self, n: int, low: float, high: float, *tag: object) -> Tensor:
        """n numbers from U(low, high) for all samples of the step, float64."""
        generator = (self.draws or Draws(0, 1)).generator("change", self.member, *tag)
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    def permutation(self, n: int, *tag: object) -> list[int]:
        """A permutation of range(n) for all samples of the step."""
        return (self.draws or Draws(0, 1)).permutation(n, "change", self.member, *tag)


class ModelChange(Protocol):
    """A part of kind ``change``."""

    def attach(self, model: nn.Module, moment: Moment) -> Sequence[Handle]:
        """Put hooks on ``model``, which read ``moment`` when they run.

        Gradients are changed by hooks on tensors, set while the model runs: they outlive the handles.

        Raises:
            InputError: there is nothing in ``model`` that this changes.
        """
        ...


class Changed(nn.Module):
    """A surrogate under changes, in the order given; logits (N, classes) of images (N, C, H, W).

    Args:
        model: the surrogate. Between calls it is as it was.
        changes: what is done inside it.
        member: which copy this is.
    """

    def __init__(self, model: nn.Module, changes: Sequence[ModelChange], member: int = 0) -> None:
        super().__init__()
        self.model, self.changes = model, tuple(changes)
        self.moment = Moment(member=member)

    def at_step(self, draws: Draws | None) -> None:
        """A step begins: these are its draws; None when the attack is over."""
        self.moment.draws = draws
        begin_step(self.model, draws)

    def forward(self, x: Tensor) -> Tensor:
        with attached(self.model, self.changes, self.moment):
            out: Tensor = self.model(x)
        return out


def begin_step(model: nn.Module, draws: Draws | None) -> None:
    """Tell a surrogate that draws which step begins, or that the attack is over; others do not hear it."""
    at_step = getattr(model, "at_step", None)
    if at_step is not None:
        at_step(draws)


@contextmanager
def attacked(models: Sequence[nn.Module]) -> Iterator[None]:
    """Surrogates under attack; afterwards those that draw something are at no step, as they were."""
    try:
        yield
    finally:
        for model in models:
            begin_step(model, None)


@contextmanager
def attached(model: nn.Module, changes: Sequence[ModelChange], moment: Moment) -> Iterator[None]:
    """``model`` under changes for a while."""
    handles: list[Handle] = []
    try:
        for change in changes:
            handles += change.attach(model, moment)
        yield
    finally:
        for handle in reversed(handles):
            handle.remove()


@dataclass
class Swap:
    """An attribute of a module with another value; ``remove`` puts things back, instance or class.

    Args:
        module: whose attribute.
        name: of the attribute, such as ``forward`` or ``fused_attn``.
        value: the other value.
    """

    module: nn.Module
    name: str
    value: Any
    _before: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.name in vars(self.module):
            self._before.append(vars(self.module)[self.name])
        object.__setattr__(self.module, self.name, self.value)

    def remove(self) -> None:
        """Put it back."""
        if self._before:
            object.__setattr__(self.module, self.name, self._before[0])
        else:
            object.__delattr__(self.module, self.name)


def on_gradient(output: Tensor, change: Any) -> None:
    """Let ``change`` (gradient to gradient) act on what flows back into ``output``, when something does."""
    if output.requires_grad and torch.is_grad_enabled():
        output.register_hook(change)
