"""Arithmetic on sets of weights: means, and samples around them. One tensor at a time, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from advens.attacks.builders.build import Work
from advens.attacks.builders.snapshot import check_same
from advens.attacks.builders.train import refresh
from advens.classifier import Classifier
from advens.errors import InputError
from advens.seeding import derive

Weights = Mapping[str, Tensor]
Draw = Callable[[Sequence[str], Sequence[Weights], torch.Generator], Weights]
"""Sampled parameters by name, in any type, from sets of weights."""


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


def sampled(work: Work, of: Any, draw: Draw, count: int, *, each: bool, share: float) -> None:
    """Commit ``count`` samples around the mean of what another builder makes.

    A sample has drawn parameters and the mean's buffers. Batch-norm statistics are estimated on a
    share of the images: for each sample, or once for the mean.

    Raises:
        InputError: the other builder makes fewer than two members.
    """
    models = work.made_by(of)
    if len(models) < 2:
        raise InputError(f"samples need at least 2 sets of weights; there are {len(models)}")
    sets, rows = weights(models), shuffled_rows(work, share)
    parameters = {name for name, _ in models[0].net.named_parameters(remove_duplicate=False)}
    names = [name for name in sets[0] if name in parameters and sets[0][name].is_floating_point()]
    centre = work.snapshot(mean(sets))
    if not each:
        refresh(centre, work.images, rows)
    state = centre.net.state_dict()
    for index in range(work.done, count):
        generator = torch.Generator().manual_seed(derive(work.seed, "sample", index))
        drawn = {k: t.to(state[k].dtype) for k, t in draw(names, sets, generator).items()}
        sample = work.snapshot({k: t.clone() for k, t in state.items()} | drawn)
        if each:
            refresh(sample, work.images, rows)
        work.commit(sample.net.state_dict())
