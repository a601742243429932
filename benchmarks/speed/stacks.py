"""Snapshots as one batched model, beside one after the other, for `advens.benchmarks.speed.builders`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from advens.attacks.surrogates.builders.snapshot import OwnWeights, Snapshot
from advens.classifier import Classifier
from advens.errors import InputError


class Stack:
    """Snapshots of one architecture as one batched model: images (N, 3, H, W) to logits (K, N, classes).

    The weights are stacked once, a second copy of them.

    Raises:
        InputError: they are no snapshots of one network, preprocessed alike.
    """

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        if not snapshots or any(s.shared is not snapshots[0].shared for s in snapshots):
            raise InputError("a stack is made of snapshots that share one network")
        nets: list[OwnWeights] = [s.net for s in snapshots]  # type: ignore[misc]
        parameters, buffers = torch.func.stack_module_state(list[nn.Module](nets))
        self.weights = {**parameters, **buffers}
        self.net, first = nets[0], snapshots[0]
        self.prepared = Classifier(
            nn.Identity(), name=first.name, num_classes=first.num_classes, family=first.family,
            input_size=first.input_size, interpolation=first.interpolation,
        )  # fmt: skip
        self.prepared.mean, self.prepared.std = first.mean, first.std

    def __call__(self, x: Tensor) -> Tensor:
        def one(weights: Mapping[str, Tensor], images: Tensor) -> Tensor:
            with self.net.lent(weights) as net:
                out: Tensor = net(images)
            return out

        mapped: Callable[..., Tensor] = torch.vmap(one, in_dims=(0, None))
        with warnings.catch_warnings():  # what cannot be batched runs one by one, and torch says so
            warnings.filterwarnings("ignore", "There is a performance drop")
            return mapped(self.weights, self.prepared(x))


def stacked(snapshots: Sequence[Snapshot], x: Tensor) -> Tensor:
    """Logits (K, N, classes) in one batched call."""
    return Stack(snapshots)(x)


def looped(snapshots: Sequence[Snapshot], x: Tensor) -> Tensor:
    """The same, one snapshot after the other."""
    return torch.stack([snapshot(x) for snapshot in snapshots])


class Race(NamedTuple):
    """Which way was faster, and the seconds of a forward and backward pass each way.

    A network that cannot be batched has ``stack = inf``.
    """

    way: str
    stack: float
    loop: float


def faster(snapshots: Sequence[Snapshot], x: Tensor) -> Race:
    """Measure both ways once, after a pass to warm up; without the stacking, which is done once."""
    try:
        batched = _seconds(Stack(snapshots), x)
    except (RuntimeError, NotImplementedError):
        batched = float("inf")
    loop = _seconds(lambda images: looped(snapshots, images), x)
    return Race("stack" if batched < loop else "loop", batched, loop)


def _seconds(logits: Callable[[Tensor], Tensor], x: Tensor) -> float:
    seconds = 0.0
    for _ in range(2):
        _wait(x)
        started = time.perf_counter()
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(logits(leaf).sum(), leaf)
        _wait(x)
        seconds = time.perf_counter() - started
    return seconds


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
