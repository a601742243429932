"""Cyclical learning rates: snapshot ensembles and fast geometric ensembles.

Sources: Huang et al., "Snapshot Ensembles: Train 1, Get M for Free", ICLR 2017; Garipov et al., "Loss
Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018. The first trains from scratch for
hundreds of epochs, the second goes on from three quarters of a training, with its optimizer's state; here
both go on from a trained model with a new optimizer, and the numbers of cycles and epochs are ours.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from pydantic import model_validator

from advens.attacks.parts import part
from advens.attacks.surrogates.builders.build import Trained, Work
from advens.attacks.surrogates.builders.train import updates
from advens.attacks.surrogates.builders.trajectory import even_points, trajectory
from advens.errors import InputError
from advens.fields import Augment, BelowOne, Count, NonNegative, Positive, Several


@part("builder", "snapshots", family="surrogate", paper="Huang et al., ICLR 2017 (SSE)", year=2017)
class Snapshots(Trained):
    """Cosine cycles from ``lr`` to nearly 0; the weights at the end of each cycle.

    ``lr (cos(pi t / T) + 1) / 2`` at update t = 0 ... T - 1 of a cycle, as in the paper; code has 1 ... T.

    Args:
        epochs: of all cycles together.
        cycles: snapshots; they cut the updates into equal pieces.
        lr: at the beginning of every cycle; published for CIFAR: 0.1 or 0.2.
        momentum, weight_decay, batch_size: of SGD, as published.
        nesterov: whether the momentum is Nesterov's, as in the published code.
        augment: ``imagenet`` for crops and flips, or a strength of the embedded zoo's augmentation.
        sharpness: length of the step of `sharpen`, published with MBA: 0.1; 0 minimises the loss alone.
    """

    epochs: Count = 10
    cycles: Count = 5
    lr: Positive = 0.1
    momentum: BelowOne = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 1e-4
    batch_size: Several = 64
    augment: Augment = 0.0
    sharpness: NonNegative = 0.0

    def members(self, models: int) -> int:
        return models * self.cycles

    def collect(self, work: Work) -> None:
        ends = even_points(work, self, self.epochs, self.cycles)
        starts = [0, *ends]

        def lr(update: int) -> float:
            cycle = bisect_right(ends, update)
            done = (update - starts[cycle]) / (ends[cycle] - starts[cycle])
            return self.lr * (math.cos(math.pi * done) + 1) / 2

        trajectory(work, self, epochs=self.epochs, at=ends, lr=lr, nesterov=self.nesterov)


@part("builder", "fge", family="surrogate", paper="Garipov et al., NeurIPS 2018 (FGE)", year=2018)
class FGE(Trained):
    """Triangles from ``lr`` down to ``lr_low`` and up again; the weights in the middle of each.

    With t = i / c for update i = 0 ... c - 1 of a cycle: ``(1 - 2 t) lr + 2 t lr_low`` in the first half,
    ``(2 - 2 t) lr_low + (2 t - 1) lr`` in the second. So has the published code; the paper's formula
    counts from 1 and is one update ahead.

    Args:
        cycles: weight sets.
        cycle_epochs: length of a cycle; published: 4 for CIFAR, 2 for ImageNet.
        lr, lr_low: highest and lowest; published for CIFAR: 0.05 and 5e-4
            (1e-4 where the code is not told).
        momentum, weight_decay, batch_size: of SGD.
        augment: ``imagenet`` for crops and flips, or a strength of the embedded zoo's augmentation.
        sharpness: length of the step of `sharpen`, published with MBA: 0.1; 0 minimises the loss alone.
    """

    cycles: Count = 5
    cycle_epochs: Count = 2
    lr: Positive = 0.05
    lr_low: Positive = 5e-4
    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 1e-4
    batch_size: Several = 128
    augment: Augment = 0.0
    sharpness: NonNegative = 0.0

    @model_validator(mode="after")
    def _falls(self) -> FGE:
        if self.lr_low >= self.lr:
            raise ValueError(f"lr_low = {self.lr_low} must be below lr = {self.lr}")
        return self

    def members(self, models: int) -> int:
        return models * self.cycles

    def collect(self, work: Work) -> None:
        c = self.cycle_epochs * updates(len(work.images), self.batch_size)
        if c < 2:
            raise InputError(
                f"data '{work.data.name}' has {len(work.images)} images: too few for two updates in a cycle"
            )

        def lr(update: int) -> float:
            t = update % c / c
            if t < 0.5:
                return (1 - 2 * t) * self.lr + 2 * t * self.lr_low
            return (2 - 2 * t) * self.lr_low + (2 * t - 1) * self.lr

        at = [cycle * c + c // 2 for cycle in range(self.cycles)]
        trajectory(work, self, epochs=self.cycles * self.cycle_epochs, at=at, lr=lr)
