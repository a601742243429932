"""LGV: large geometric vicinity. Weights along SGD at a constant high learning rate.

Source: Gubri et al., "LGV: Boosting Adversarial Example Transferability from Large Geometric Vicinity",
ECCV 2022. Published code differs in this: every quarter epoch begins a newly shuffled pass, so that four
quarters of an epoch overlap (and with a loader that does not shuffle see the same images, a trap in a
popular port); here they are the quarters of one pass. It augments with random crops and flips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from advens.attacks.builders.averages import Weights, average, sampled, shuffled_rows, stack
from advens.attacks.builders.build import Progress, Work, build
from advens.attacks.builders.fields import BelowOne, Count, FromZero, Of, Positive, Several, Share
from advens.attacks.builders.train import refresh
from advens.attacks.builders.trajectory import even_points, trajectory
from advens.attacks.parts import part
from advens.classifier import Classifier
from advens.datasets import Dataset

PAPER = "Gubri et al., ECCV 2022 (LGV)"


@part("builder", "lgv", family="surrogate", paper=PAPER, year=2022)
class LGV:
    """Weights collected along SGD with a constant learning rate; the model itself is not among them.

    Batch-norm statistics are as they move in train mode; they are not estimated anew.

    Args:
        epochs: of further training.
        per_epoch: weight sets collected in each epoch, at equal distances.
        lr: constant. It matters most: too low gives no diversity.
        momentum, weight_decay, batch_size: of SGD.
        augment: strength of the embedded zoo's augmentation; 0 is none.
    """

    epochs: Count = 10
    per_epoch: Count = 4
    lr: Positive = 0.05
    momentum: BelowOne = 0.9
    weight_decay: FromZero = 1e-4
    batch_size: Several = 256
    augment: FromZero = 0.0

    def members(self, models: int) -> int:
        return models * self.epochs * self.per_epoch

    def build(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0,
        cache: Path | str | None = None, progress: Progress | None = None,
    ) -> list[Classifier]:  # fmt: skip
        return build(self, models, data, seed, cache, progress)

    def collect(self, work: Work) -> None:
        # the cuts of one epoch, the same in all
        cuts = even_points(work, self, 1, self.per_epoch)
        at = [epoch * cuts[-1] + cut for epoch in range(self.epochs) for cut in cuts]
        trajectory(work, self, epochs=self.epochs, at=at, lr=lambda update: self.lr)


@part("builder", "lgv-swa", family="surrogate", paper=PAPER, year=2022)
class LGVSWA:
    """The mean of the weights that LGV collects, batch-norm statistics estimated anew: one surrogate.

    Published code starts the mean from the trained model; here it is of the collected weights alone.

    Args:
        of: the builder whose weights are averaged; its members are kept in the cache, too.
        bn_data: share of the images that batch-norm statistics are estimated on; published: 0.1.
    """

    of: Of = Field(default_factory=LGV)
    bn_data: Share = 1.0

    def members(self, models: int) -> int:
        return models

    def build(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0,
        cache: Path | str | None = None, progress: Progress | None = None,
    ) -> list[Classifier]:  # fmt: skip
        return build(self, models, data, seed, cache, progress)

    def collect(self, work: Work) -> None:
        if work.done == 0:
            mean = work.snapshot(average(work.made_by(self.of)))
            refresh(mean, work.images, shuffled_rows(work, self.bn_data))
            work.commit(mean.net.state_dict())


@part("builder", "lgv-subspace", family="surrogate", paper=PAPER, year=2022)
class LGVGaussian:
    """Gaussian samples around the mean of the LGV weights, in the subspace their deviations span.

    ``w = mean + scale / sqrt(K - 1) sum_k z_k (w_k - mean)``, z ~ N(0, I): at scale 1 the covariance is
    that of the K weight sets. Parameters are sampled; buffers are those of the mean.

    Args:
        of: the builder whose weights span the subspace; its members are kept in the cache, too.
        samples: surrogates that are drawn.
        scale: of the deviations.
        batch_norm: statistics estimated for ``each`` sample, or for the ``mean`` and taken by all.
        bn_data: share of the images they are estimated on.
    """

    of: Of = Field(default_factory=LGV)
    samples: Count = 40
    scale: Positive = 1.0
    batch_norm: Literal["each", "mean"] = "each"
    bn_data: Share = 0.1

    def members(self, models: int) -> int:
        return models * self.samples

    def build(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0,
        cache: Path | str | None = None, progress: Progress | None = None,
    ) -> list[Classifier]:  # fmt: skip
        return build(self, models, data, seed, cache, progress)

    def collect(self, work: Work) -> None:
        def draw(names: Sequence[str], sets: Sequence[Weights], generator: torch.Generator) -> Weights:
            z = torch.randn(len(sets), generator=generator, dtype=torch.float64)
            z *= self.scale / math.sqrt(len(sets) - 1)
            return {name: self._sample(stack(sets, name), z) for name in names}

        sampled(work, self.of, draw, self.samples, each=self.batch_norm == "each", share=self.bn_data)

    @staticmethod
    def _sample(w: Tensor, z: Tensor) -> Tensor:
        mean = w.mean(0)
        along: Tensor = torch.tensordot(z.to(w.device), w - mean, 1)
        return mean + along
