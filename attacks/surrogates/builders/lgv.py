"""LGV: large geometric vicinity. Weights along SGD at a constant high learning rate.

Source: Gubri et al., "LGV: Boosting Adversarial Example Transferability from Large Geometric Vicinity",
ECCV 2022. Published code differs in this: every quarter epoch begins a newly shuffled pass, so that four
quarters of an epoch overlap (and with a loader that does not shuffle see the same images, a trap in a
popular port); here they are the quarters of one pass. It augments with random crops and flips
(``augment = "imagenet"``), also where it estimates batch-norm statistics; here those are of plain images.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from advens.attacks.parts import part
from advens.attacks.surrogates.builders.averages import (
    average,
    check_several,
    mean,
    shuffled_rows,
    stack,
    weights,
)  # fmt: skip
from advens.attacks.surrogates.builders.build import Of, Trained, Work
from advens.attacks.surrogates.builders.train import refresh
from advens.attacks.surrogates.builders.trajectory import even_points, trajectory
from advens.fields import Augment, BelowOne, Count, NonNegative, Positive, Several, Share
from advens.seeding import derive

PAPER = "Gubri et al., ECCV 2022 (LGV)"


@part("builder", "lgv", family="surrogate", paper=PAPER, year=2022)
class LGV(Trained):
    """Weights collected along SGD with a constant learning rate; the model itself is not among them.

    Batch-norm statistics are as they move in train mode; they are not estimated anew.

    Args:
        epochs: of further training.
        per_epoch: weight sets collected in each epoch, at equal distances.
        lr: constant. It matters most: too low gives no diversity.
        momentum, weight_decay, batch_size: of SGD.
        augment: ``imagenet`` for crops and flips, or a strength of the embedded zoo's augmentation.
        sharpness: length of the step of `sharpen`, published with MBA: 0.1; 0 minimises the loss alone.
    """

    epochs: Count = 10
    per_epoch: Count = 4
    lr: Positive = 0.05
    momentum: BelowOne = 0.9
    weight_decay: NonNegative = 1e-4
    batch_size: Several = 256
    augment: Augment = 0.0
    sharpness: NonNegative = 0.0

    def members(self, models: int) -> int:
        return models * self.epochs * self.per_epoch

    def collect(self, work: Work) -> None:
        # the cuts of one epoch, the same in all
        cuts = even_points(work, self, 1, self.per_epoch)
        at = [epoch * cuts[-1] + cut for epoch in range(self.epochs) for cut in cuts]
        trajectory(work, self, epochs=self.epochs, at=at, lr=lambda update: self.lr)


@part("builder", "lgv-swa", family="surrogate", paper=PAPER, year=2022)
class LGVSWA(Trained):
    """The mean of the weights that LGV collects, batch-norm statistics estimated anew: one surrogate.

    The trained model itself is not in the mean, as in what the paper attacks with.

    Args:
        of: the builder whose weights are averaged; its members are kept in the cache, too.
        bn_data: share of the images that batch-norm statistics are estimated on; published: 0.1.
    """

    of: Of = Field(default_factory=LGV)
    bn_data: Share = 1.0

    def members(self, models: int) -> int:
        return models

    def collect(self, work: Work) -> None:
        if work.done == 0:
            centre = work.snapshot(average(work.made_by(self.of)))
            refresh(centre, work.images, shuffled_rows(work, self.bn_data))
            work.commit(centre.net.state_dict())


@part("builder", "lgv-subspace", family="surrogate", paper=PAPER, year=2022)
class LGVGaussian(Trained):
    """Gaussian samples around the mean of the LGV weights, in the subspace their deviations span.

    ``w = mean + scale / sqrt(K - 1) sum_k z_k (w_k - mean)``, z ~ N(0, I): at scale 1 the covariance is
    that of the K weight sets. Parameters are sampled; buffers are those of the mean.

    Args:
        of: the builder whose weights span the subspace; its members are kept in the cache, too.
        samples: surrogates that are drawn, as many as in the published script.
        scale: of the deviations.
        batch_norm: statistics estimated for ``each`` sample, as published, or once for the ``mean``.
        bn_data: share of the images they are estimated on.
    """

    of: Of = Field(default_factory=LGV)
    samples: Count = 50
    scale: Positive = 1.0
    batch_norm: Literal["each", "mean"] = "each"
    bn_data: Share = 0.1

    def members(self, models: int) -> int:
        return models * self.samples

    def collect(self, work: Work) -> None:
        models = work.made_by(self.of)
        check_several(len(models))
        sets, rows = weights(models), shuffled_rows(work, self.bn_data)
        centre = work.snapshot(mean(sets))
        if self.batch_norm == "mean":
            refresh(centre, work.images, rows)
        state = centre.net.state_dict()
        learned = {name for name, _ in models[0].net.named_parameters(remove_duplicate=False)}
        names = [name for name in sets[0] if name in learned and sets[0][name].is_floating_point()]
        for index in range(work.done, self.samples):
            generator = torch.Generator().manual_seed(derive(work.seed, "sample", index))
            z = torch.randn(len(sets), generator=generator, dtype=torch.float64)
            z *= self.scale / math.sqrt(len(sets) - 1)
            drawn = {name: self._sample(stack(sets, name), z).to(state[name].dtype) for name in names}
            sample = work.snapshot({k: t.clone() for k, t in state.items()} | drawn)
            if self.batch_norm == "each":
                refresh(sample, work.images, rows)
            work.commit(sample.net.state_dict())

    @staticmethod
    def _sample(w: Tensor, z: Tensor) -> Tensor:
        centre = w.mean(0)
        along: Tensor = torch.tensordot(z.to(w.device), w - centre, 1)
        return centre + along
