"""MBA: surrogates drawn from a Gaussian over the weights that training towards flat minima passes through.

Source: Li et al., "Making Substitute Models More Bayesian Can Enhance Transferability of Adversarial
Examples", ICLR 2023, and its published code; the Gaussian is the diagonal of SWAG's, Maddox et al., NeurIPS
2019. What makes the training is its gradient, see `sharpen`. The code collects 306 sets in 10 epochs of
ImageNet, in batches of 1,024, and augments (``augment = "imagenet"``), also where it estimates batch-norm
statistics; here those are of plain images.
"""

from __future__ import annotations

import torch
from pydantic import Field

from advens.attacks.attack import ComposedAttack
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.surrogates.builders.averages import check_several, moments, shuffled_rows
from advens.attacks.surrogates.builders.build import Of, Trained, Work
from advens.attacks.surrogates.builders.drawn import DrawnWeights
from advens.attacks.surrogates.builders.lgv import LGV
from advens.attacks.surrogates.builders.snapshot import bare
from advens.attacks.surrogates.builders.train import refresh
from advens.attacks.uniform import EnsLoss
from advens.fields import Count, Positive, Share
from advens.seeding import Draws
from advens.threat import Threat

PAPER = "Li et al., ICLR 2023 (MBA)"
SMALLEST = 1e-30
"""Least variance of a weight, as published."""


def training() -> LGV:
    """The published training: 300 sets of weights in 10 epochs, the gradient's norm minimised, too."""
    return LGV(epochs=10, per_epoch=30, lr=0.05, weight_decay=5e-4, batch_size=1024, sharpness=0.1)


@part("builder", "mba", family="surrogate", paper=PAPER, year=2023)
class MBA(Trained):
    """Samples of a Gaussian with the mean and the variances of collected weights.

    ``w = mean + scale sqrt(var) z``, z ~ N(0, I). Parameters are sampled; batch-norm statistics are estimated
    anew for the mean, and all samples have them. Each surrogate is drawn anew at every step of an attack: 50
    steps over 20 of them see 1,000 models, of which none is stored.

    Args:
        of: the builder whose weights the Gaussian is fitted to; its members are kept in the cache, too
            (300 sets of a ResNet-50 take 30 GB).
        samples: surrogates.
        scale: of the deviations; published.
        redraw: whether the surrogates are drawn anew at every step, or once and for all.
        bn_data: share of the images that batch-norm statistics are estimated on; published: 0.1.
    """

    of: Of = Field(default_factory=training)
    samples: Count = 20
    scale: Positive = 1.5
    redraw: bool = True
    bn_data: Share = 1.0

    def members(self, models: int) -> int:
        return models * self.samples

    def collect(self, work: Work) -> None:
        check_several(self.of.members(1))
        means, variances = moments(work.sets_by(self.of))
        like = work.models[0].net.state_dict()
        centre = work.snapshot({name: means[name].to(t.dtype) for name, t in like.items()})
        refresh(centre, work.images, shuffled_rows(work, self.bn_data))
        mean = centre.net.state_dict()
        learned = {name for name, _ in centre.net.named_parameters(remove_duplicate=False)}
        spread = {
            name: (self.scale * variances[name].clamp(min=SMALLEST).sqrt()).to(t.dtype)
            if name in learned and name in variances else torch.zeros_like(t)
            for name, t in mean.items()
        }  # fmt: skip
        if self.redraw:
            work.drawn = self.samples
            for state in (mean, spread)[work.done :]:
                work.commit(state)
            return
        net = work.models[0].net
        once = DrawnWeights(bare(net), net, mean, spread, "sample")
        for index in range(work.done, self.samples):
            weights = once.draw(Draws(work.seed, 1).at(index))
            work.commit({name: weights[name] for name in mean})


@recipe("mba", symbol="MBA", family="surrogate", paper=PAPER, year=2023, builder="mba")
def BayesianAttack() -> ComposedAttack:
    """50 steps of eps/8 at eps 8/255 along the mean gradient of all surrogates; made for those of ``mba``."""
    return ComposedAttack(
        threat=Threat("linf", "8/255"), steps=50, step_size=StepSize("eps/8"), fusion=EnsLoss()
    )
