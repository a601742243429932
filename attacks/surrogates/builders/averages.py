"""Arithmetic on sets of weights: means and variances. One tensor or one set at a time, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from advens.attacks.surrogates.builders.build import Work
from advens.attacks.surrogates.builders.snapshot import check_same
from advens.classifier import Classifier
from advens.errors import InputError
from advens.seeding import derive

Weights = Mapping[str, Tensor]


def weights(models: Sequence[Classifier]) -> list[Weights]:
    """The weights of each model. Raises InputError unless all are of one architecture."""
    sets = [model.net.state_dict() for model in models]
    for other in sets[1:]:
        check_same(*({name: t.shape for name, t in each.items()} for each in (sets[0], other)))
    return list(sets)


def average(models: Sequence[Classifier]) -> dict[str, Tensor]:
    """The mean of the weights of all models; what is no number with a fraction is the last one's."""
    return mean(weights(models))


def mean(sets: Sequence[Weights]) -> dict[str, Tensor]:
    """The mean of sets of weights, in their own types."""
    last = sets[-1]
    return {
        name: stack(sets, name).mean(0).to(t.dtype) if t.is_floating_point() else t.clone()
        for name, t in last.items()
    }


def stack(sets: Sequence[Weights], name: str) -> Tensor:
    """One tensor of every set, (K, ...), float64."""
    first = sets[0][name]
    return torch.stack([each[name].detach().to(first.device, torch.float64) for each in sets])


def shuffled_rows(work: Work, share: float) -> Tensor:
    """A share of the images, at least two where there are so many, in an order of its own."""
    generator = torch.Generator().manual_seed(derive(work.seed, "batch-norm"))
    order = torch.randperm(len(work.images), generator=generator)
    return order[: max(2, round(share * len(order)))]


def moments(sets: Iterable[Weights]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean and variance (over K, not K - 1) of sets of weights, float64, one set at a time.

    What is no number with a fraction is the last one's in the mean, and has no variance.
    """
    means: dict[str, Tensor] = {}
    variances: dict[str, Tensor] = {}
    count = 0
    for count, each in enumerate(sets, 1):
        for name, t in each.items():
            if not t.is_floating_point():
                means[name] = t.clone()
                continue
            w = t.detach().double()
            mean = means.setdefault(name, torch.zeros_like(w))
            off = w - mean
            mean += off / count
            total = variances.setdefault(name, torch.zeros_like(w))
            total += off * (w - mean)
    return means, {name: total / count for name, total in variances.items()}


def check_several(count: int) -> None:
    """Raise InputError for fewer than two sets of weights, around which nothing can be sampled."""
    if count < 2:
        raise InputError(f"samples need at least 2 sets of weights; there are {count}")
