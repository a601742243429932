"""The one training loop of all builders, and batch-norm statistics measured anew.

Whatever is random is named by (seed, epoch or update): nothing but weights and optimizer has to be kept
to go on from an update, to the same bits on a CPU (with the same number of threads) and, as far as its
kernels are deterministic, on a GPU. Torch's global generators are as before afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from advens.attacks.surrogates.builders.sharpness import sharpen
from advens.augment import augmented
from advens.classifier import Classifier, borrowed, device_of
from advens.datasets import Dataset
from advens.errors import InputError
from advens.seeding import derive

HELD = 4 << 30
"""Bytes of images that are held in memory; more are decoded anew in every epoch."""
WORKERS = 4
"""Processes that decode what is not held."""
CHUNK = 256
"""Images of one forward pass where nothing is learned."""


class Images:
    """Training images by row: held as bytes where they fit, otherwise decoded when asked for."""

    def __init__(self, data: Dataset) -> None:
        self.data = data
        small = len(data) * data.pixels(0).nbytes <= HELD
        self._held = next(data.batches([slice(0, len(data))])) if small else None

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (n, 3, H, W) in [0, 1] and labels (n,) of each part, a tensor of rows."""
        if self._held is not None:
            for rows in parts:
                yield self._held.pixels[rows].float() / 255, self._held.labels[rows]
            return
        if not parts:
            return
        ends = np.cumsum([len(rows) for rows in parts]).tolist()
        slices = [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        chosen = self.data.rows[torch.cat(list(parts)).numpy()]
        ordered = Dataset(self.data.source, self.data.name, chosen, self.data.resized)
        for batch in ordered.batches(slices, workers=WORKERS):
            yield batch.pixels.float() / 255, batch.labels


def shuffled(count: int, batch_size: int, *name: object) -> list[Tensor]:
    """One pass over ``count`` rows in an order with a name, in batches; a last one of 1 is left out."""
    generator = torch.Generator().manual_seed(derive(*name))
    parts = torch.randperm(count, generator=generator).split(batch_size)
    return [rows for rows in parts if len(rows) > 1]  # batch-norm needs two


def updates(count: int, batch_size: int) -> int:
    """Batches of one pass."""
    return math.ceil(count / batch_size) - (count % batch_size == 1)


def train(
    model: Classifier,
    images: Images,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    batch_size: int,
    lr: Callable[[int], float],
    at: Collection[int],
    collect: Callable[[int, float], None],
    seed: int,
    augment: float | str = 0.0,
    sharpness: float = 0.0,
    first: int = 0,
) -> None:
    """Minimise cross-entropy; every epoch is one shuffled pass.

    With ``sharpness`` an update takes two gradients of one batch under one seed, so that dropout drops the
    same in both; batch-norm statistics move in both, as in the published code.

    Args:
        model: learns in place, in the mode it is in.
        lr: the learning rate of an update, by its number from 0.
        at: numbers of updates done, after which ``collect`` is called with the number and the mean loss of
            the updates since the last one.
        augment: strength of the embedded zoo's augmentation, or ``imagenet``; see `augmented`.
        sharpness: how far away the second gradient is taken; 0 takes none. See `sharpen`.
        first: updates that are done already: they are skipped.
    """
    device, wanted, each = _device(model), frozenset(at), updates(len(images), batch_size)
    last = max(wanted, default=0)  # nothing that is learned later would be seen
    learned = [w for group in optimizer.param_groups for w in group["params"]]
    losses: list[Tensor] = []
    with own_randomness(device) as reseed:
        for epoch in range(first // each, epochs):
            parts = shuffled(len(images), batch_size, seed, "order", epoch)
            start = max(first, epoch * each)
            for done, (x, y) in enumerate(images.batches(parts[start - epoch * each :]), start):
                if done >= last:
                    return
                x = augmented(x, augment, derive(seed, "augment", done), reseed).to(device)
                y = y.to(device)

                def backward(x: Tensor = x, y: Tensor = y, done: int = done) -> Tensor:
                    reseed(derive(seed, "update", done))  # dropout and its kin
                    optimizer.zero_grad()
                    loss = F.cross_entropy(model(x), y)
                    loss.backward()
                    return loss.detach()

                losses.append(backward())
                if sharpness:
                    sharpen(learned, backward, sharpness)
                for group in optimizer.param_groups:
                    group["lr"] = lr(done)
                optimizer.step()
                if done + 1 in wanted:
                    collect(done + 1, float(torch.stack(losses).double().mean()))
                    losses.clear()


@contextmanager
def own_randomness(device: torch.device) -> Iterator[Callable[[int], object]]:
    """Torch's global generators put aside; what is yielded seeds those that are used meanwhile."""
    cuda = device.type == "cuda"

    def reseed(seed: int) -> None:
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)

    with torch.random.fork_rng(devices=[device] if cuda else []):
        yield reseed


@torch.no_grad()
def refresh(model: Classifier, images: Images, rows: Tensor) -> None:
    """Batch-norm statistics of ``model`` as they are on some images: the mean over batches.

    Only batch-norm is in train mode. A batch weighs what it holds. Without batch-norm nothing is done.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    parts = [part for part in rows.split(CHUNK) if len(part) > 1]
    if not norms:
        return
    if not parts:
        raise InputError(f"batch-norm statistics need at least 2 images; there are {len(rows)}")
    momenta = [norm.momentum for norm in norms]
    with borrowed([model]):
        try:
            seen = 0
            for x, _ in images.batches(parts):
                seen += len(x)
                for norm in norms:
                    norm.training, norm.momentum = True, len(x) / seen  # the first batch: 1, forget all
                model(x.to(_device(model)))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


@torch.no_grad()
def accuracy(model: Classifier, images: Images, rows: Tensor) -> float:
    """Share of the rows that ``model``, in eval mode, classifies rightly."""
    hits, device = 0, _device(model)
    with borrowed([model]):
        for x, y in images.batches(rows.split(CHUNK)):
            hits += int((model(x.to(device)).argmax(1).cpu() == y).sum())
    return hits / len(rows)


def _device(model: nn.Module) -> torch.device:
    return device_of(model) or torch.device("cpu")
