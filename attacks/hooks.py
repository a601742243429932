"""Changes inside a surrogate while it runs: how they are put on it and taken away again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.interfaces import (
    ChangeContext,
    Handle,
    Job,
    ModelChange,
    OwnBackward,
    PreparedEveryStep,
    PreparedOnClean,
    PreparedWithGradients,
    Seen,
    Stepped,
)
from advens.seeding import Draws


class Changed(nn.Module):
    """A surrogate under changes, in the order given; logits (N, classes) of images (N, C, H, W).

    Args:
        model: the surrogate. Between calls it is as it was.
        changes: what is done inside it.
        member: which copy this is.
        steps: of the attack.
    """

    def __init__(
        self, model: nn.Module, changes: Sequence[ModelChange], member: int = 0, steps: int = 1
    ) -> None:
        super().__init__()
        self.model, self.changes = model, tuple(changes)
        self.context = ChangeContext(member=member, steps=steps)

    def at_step(self, draws: Draws | None) -> None:
        """A step begins: these are its draws; None when the attack is over."""
        self.context.begin(draws)
        begin_step(self.model, draws)

    def show(self, job: Job, run: Callable[[Tensor], Seen]) -> int:
        """Let changes that want to see clean images see them, once; ``run`` shows images to the surrogate.

        Returns:
            How many backward passes that took.
        """
        backward, every, self.context.labels = 0, self.changes, job.y
        for change in every if not self.context.kept else ():
            if isinstance(change, PreparedOnClean):
                asks, self.changes = isinstance(change, PreparedWithGradients), (change,)
                for self.context.shown in range(change.views):
                    with torch.set_grad_enabled(asks):
                        seen = run(change.clean(job, self.context.shown))
                        if isinstance(change, PreparedWithGradients):
                            change.ask(seen.logits, self.context)
                            backward += 1
        self.changes, self.context.shown = every, None
        return backward

    def look(self, loss: Callable[[Tensor], Tensor], x_adv: Tensor, clean: Tensor) -> int:
        """Let changes that want it take gradients of the surrogate's loss at the iterate.

        Returns:
            How many backward passes that took.
        """
        backward = 0
        for change in self.changes:
            if isinstance(change, PreparedEveryStep):
                self.context.looking, backward = change, backward + change.looks
                change.look(loss, x_adv, clean, self.context)
        self.context.looking = None
        return backward

    def forward(self, x: Tensor) -> Tensor:
        with attached(self.model, self.changes, self.context):
            out: Tensor = self.model(x)
        return out


def unchanged(model: nn.Module) -> nn.Module:
    """The surrogate under an attack's changes."""
    while isinstance(model, Changed):
        model = model.model
    return model


def runs_back(model: nn.Module) -> int:
    """Backward passes of a surrogate for each that is asked for."""
    changes = model.changes if isinstance(model, Changed) else ()
    return 1 + sum(isinstance(change, OwnBackward) for change in changes)


def begin_step(model: nn.Module, draws: Draws | None) -> None:
    """Tell a surrogate that draws at random which step begins, or that the attack is over."""
    if isinstance(model, Stepped):
        model.at_step(draws)


@contextmanager
def attacked(models: Sequence[nn.Module]) -> Iterator[None]:
    """Surrogates under attack; afterwards those that draw something are at no step, as they were."""
    try:
        yield
    finally:
        for model in models:
            begin_step(model, None)


@contextmanager
def attached(model: nn.Module, changes: Sequence[ModelChange], context: ChangeContext) -> Iterator[None]:
    """``model`` under changes for a while."""
    handles: list[Handle] = []
    try:
        for change in changes:
            handles += change.attach(model, context)
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


def called(model: nn.Module) -> str:
    """What a message calls a model."""
    return f"'{getattr(model, 'name', type(model).__name__)}'"
