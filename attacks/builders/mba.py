"""MBA: surrogates drawn from a Gaussian over weights that further training passed through.

Source: Li et al., "Making Substitute Models More Bayesian Can Enhance Transferability of Adversarial
Examples", ICLR 2023; the Gaussian is SWAG's, Maddox et al., NeurIPS 2019. Published code draws 20 models
once with the diagonal alone, spread 1.5 times, under the batch-norm statistics of the mean: that is
``rank = 0`` here. Its training is not known to us beyond the mean and the mean square it keeps; ours is
that of LGV.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from advens.attacks.builders.averages import Weights, sampled, stack
from advens.attacks.builders.build import Progress, Work, build
from advens.attacks.builders.fields import Count, Of, Positive, Share
from advens.attacks.builders.lgv import LGV
from advens.attacks.parts import part
from advens.classifier import Classifier
from advens.datasets import Dataset

SMALLEST = 1e-30
"""Least variance of a weight, as published."""


@part("builder", "mba", family="surrogate", paper="Li et al., ICLR 2023 (MBA)", year=2023)
class MBA:
    """Samples of a Gaussian with the mean, the diagonal and a low-rank covariance of collected weights.

    ``w = mean + scale (sqrt(var) z / sqrt 2 + D z' / sqrt(2 (R - 1)))`` with z, z' ~ N(0, I); D holds the
    last R deviations from the mean so far. Without D (rank 0): ``w = mean + scale sqrt(var) z``.

    Args:
        of: the builder whose weights the Gaussian is fitted to; its members are kept in the cache, too.
        samples: surrogates that are drawn.
        scale: of the deviations; published.
        rank: R, at least 2, or 0. Ours; so many as there are where there are fewer.
        batch_norm: statistics estimated for the ``mean`` and taken by all samples, or for ``each``.
        bn_data: share of the images they are estimated on.
    """

    of: Of = Field(default_factory=LGV)
    samples: Count = 20
    scale: Positive = 1.5
    rank: Annotated[int, Field(ge=0)] = 20
    batch_norm: Literal["mean", "each"] = "mean"
    bn_data: Share = 1.0

    @field_validator("rank")
    @classmethod
    def _rank(cls, rank: int) -> int:
        if rank == 1:
            raise ValueError("0 for the diagonal alone, or at least 2")
        return rank

    def members(self, models: int) -> int:
        return models * self.samples

    def build(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0,
        cache: Path | str | None = None, progress: Progress | None = None,
    ) -> list[Classifier]:  # fmt: skip
        return build(self, models, data, seed, cache, progress)

    def collect(self, work: Work) -> None:
        def draw(names: Sequence[str], sets: Sequence[Weights], generator: torch.Generator) -> Weights:
            rank = min(self.rank, len(sets))
            across = torch.randn(rank, generator=generator, dtype=torch.float64)
            return {name: self._sample(stack(sets, name), across, generator) for name in names}

        sampled(work, self.of, draw, self.samples, each=self.batch_norm == "each", share=self.bn_data)

    def _sample(self, w: Tensor, across: Tensor, generator: torch.Generator) -> Tensor:
        """One tensor of a sample.

        Args:
            w: (K, ...) in the order of collection.
            across: z', the same for all tensors.
        """
        mean, var = w.mean(0), w.var(0, correction=0).clamp_(min=SMALLEST)
        z = torch.randn(mean.shape, generator=generator, dtype=torch.float64).to(w.device)
        rank = len(across)
        if rank == 0:
            return mean + self.scale * var.sqrt() * z
        counts = torch.arange(1, len(w) + 1, dtype=w.dtype, device=w.device)
        so_far = w.cumsum(0) / counts.view(-1, *[1] * mean.dim())
        low: Tensor = torch.tensordot(across.to(w.device), (w - so_far)[-rank:], 1)
        spread: Tensor = var.sqrt() * z / math.sqrt(2) + low / math.sqrt(2 * (rank - 1))
        return mean + self.scale * spread
