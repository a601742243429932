"""What a defense declares of its training: hyper-parameters, phases, and what a loss is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from advens.classifier import Classifier
from advens.defenses.compute import Counter, counting
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.layers import layers
from advens.defenses.stacked import Members, Stacking, stackable, together
from advens.fields import BelowOne, Count, NonNegative, Positive, Several
from advens.seeding import Draws

MILESTONES = (0.5, 0.75)
"""Parts of a phase after which the learning rate falls to a tenth, in the papers of most defenses."""


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Training:
    """Hyper-parameters of training that all defenses share.

    Args:
        epochs: of every phase.
        lr: learning rate at the beginning.
        optimizer: ``sgd`` (momentum 0.9), ``nesterov`` (the same, looking ahead) or ``adam``.
        weight_decay: of the optimizer.
        schedule: ``steps``, a tenth after 50 and 75 % of a phase; ``cosine``, to zero; or ``linear``, down
            to a hundredth between 50 and 90 %.
        batch_size: images of one update.
        augment: strength of `advens.augment.jitter` (shifts, rotations, brightness, noise); 0 is none.
        average: the weights that a phase ends with: ``none``, those of the last update; ``ema``, an
            exponential moving average over the updates; or ``swa``, the mean over the ends of the epochs in
            the second half, with batch-norm's statistics computed again on the training images.
        decay: of the exponential moving average, for every update.
        validation: the part of the training images that is left out of training and used for early
            stopping: a phase ends with the weights of the epoch that were most accurate on them, or of the
            first of several such epochs. 0 keeps the weights of the last epoch.
        validation_eps: l_inf radius of the 10 steps of PGD after which that accuracy is measured; 0 measures
            the accuracy on clean images.
        stacked: whether members are computed together as one batched kernel a layer, by defenses that
            can: where it is faster, ``always`` or ``never``. Results are the same up to rounding.
    """

    epochs: Count = 200
    lr: Positive = 0.1
    optimizer: Literal["sgd", "nesterov", "adam"] = "sgd"
    weight_decay: NonNegative = 1e-4
    schedule: Literal["steps", "cosine", "linear"] = "steps"
    batch_size: Several = 128
    augment: NonNegative = 1.0
    average: Literal["none", "ema", "swa"] = "none"
    decay: BelowOne = 0.999
    validation: BelowOne = 0.0
    validation_eps: NonNegative = 0.0
    stacked: Stacking = "auto"

    added: ClassVar = ("average", "decay", "validation", "validation_eps")

    def rate(self, done: float) -> float:
        """The learning rate after the part ``done`` of a phase, in [0, 1]."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        if self.schedule == "linear":
            return self.lr * (1 - 0.99 * min(1.0, max(0.0, (done - 0.5) / 0.4)))
        return self.lr * 0.1 ** sum(done >= milestone for milestone in MILESTONES)


@dataclass
class Batch:
    """What an objective is given.

    Args:
        x: images (N, C, H, W) in [0, 1], augmented.
        y: labels (N,).
        other: gives a second, independent batch of the same size.
        draws: random numbers of this update.
        epoch_draws: random numbers that stay the same for the whole epoch.
        done: the part of the phase that is over, in [0, 1].
    """

    x: Tensor
    y: Tensor
    other: Callable[[], tuple[Tensor, Tensor]]
    draws: Draws
    epoch_draws: Draws
    done: float = 0.0


@dataclass
class Team:
    """The members in training, and the probability of each.

    Args:
        members: networks of one architecture.
        probabilities: (M,) float64.
        stacks: whether they can be stacked, once this was tried.
        known: their layers, once they were counted.
        counter: of the passes through a stack of all of them; passes through a member are counted there.
    """

    members: list[Classifier]
    probabilities: Tensor
    stacks: bool | None = None
    known: list[int] | None = None
    counter: Counter | None = None

    def uniform(self, count: int) -> None:
        """Give the first ``count`` members equal probabilities, and the others 0."""
        self.probabilities = torch.zeros(len(self.members), dtype=torch.float64)
        self.probabilities[:count] = 1 / count

    def layers(self, x: Tensor) -> list[int]:
        """The members' layers, as images like ``x`` (N, C, H, W) show them."""
        if self.known is None:
            self.known = layers(self.members[0], x)
        return self.known

    @contextmanager
    def together(self, x: Tensor, how: Stacking) -> Iterator[Members]:
        """The members as one network, for one update on images like ``x`` (N, C, H, W)."""
        if self.stacks is None:
            self.stacks = stackable(self.members, x, how)
        with together(self.members, stacked=self.stacks) as everyone:
            watched = [everyone] if self.stacks and self.counter else []
            with counting(self.counter or Counter(), watched):
                yield everyone


class Objective(Protocol):
    """The summed loss of the learners: the gradient of a learner is that of its own loss."""

    def __call__(self, team: Team, batch: Batch) -> Tensor:
        """A scalar."""
        ...


@dataclass
class Phase:
    """A stretch of training.

    Args:
        name: of the phase, in the history.
        learners: members that learn.
        objective: what they minimise.
        before: called once before the first epoch.
        after_epoch: called with the epoch's number from 1 when it is over; may change probabilities.
        alone: whether the learners do not depend on each other, so that each may stop at its own epoch.
    """

    name: str
    learners: Sequence[int]
    objective: Objective
    before: Callable[[Team], None] | None = None
    after_epoch: Callable[[Team, int, Tensor, Tensor], None] | None = None
    alone: bool = False


class Defense(Protocol):
    """A frozen dataclass of parameters."""

    members: int
    training: Training

    def phases(self) -> list[Phase]:
        """The phases, in order."""
        ...

    def finish(self, team: Team) -> Ensemble | RandomizedEnsemble:
        """The ensemble that was trained."""
        ...


@runtime_checkable
class Nested(Protocol):
    """A defense whose first members do not depend on the later ones."""

    def nested(self, history: Sequence[Mapping[str, Any]]) -> list[list[float]]:
        """Probabilities of the ensembles of the first 1, 2, ... members, given the training's history."""
        ...
