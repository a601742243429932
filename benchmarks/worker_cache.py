"""What a worker process keeps in memory: models and shards of the data, within a byte budget."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from advens.classifier import Classifier
from advens.datasets import Batch, Dataset, find_data
from advens.datasets.loading import is_own
from advens.models.pool import ModelPool

SHARD_BYTES = 1 << 30
CHUNK = 32
MOST = 1024
"""Images at once that a probe of a GPU tries at most."""


class WorkerCache:
    """Models, shards and clean predictions of one process on one device.

    Args:
        device: as torch names it; ``cuda:0,cuda:1`` spreads the surrogates of an attack over several.
    """

    def __init__(self, device: str) -> None:
        self.device, *more = map(torch.device, device.split(","))
        self.models = ModelPool(self.device, more=more)
        self.gpu = self.device.type == "cuda"
        if self.gpu:  # float32 is float32: torch allows less for convolutions
            torch.backends.cudnn.allow_tf32 = False
        self._fits: dict[tuple[tuple[str, ...], tuple[int, ...], bool], int] = {}
        self.clean: dict[tuple[str, tuple[int, int], str, int | None], np.ndarray] = {}
        self._data: dict[str, Dataset] = {}
        self._spread: dict[tuple[str, int], Batch] = {}
        self._reproducible: dict[tuple[str, int, int], bool] = {}
        self._shards: OrderedDict[tuple[str, int, int], Batch] = OrderedDict()

    def shard(self, source: str, start: int, stop: int) -> Batch:
        """Clean images and labels of [start, stop), decoded by worker processes."""
        key = (source, start, stop)
        if key not in self._shards:
            found = self._read(self.data(source), start, stop)
            # page-locked memory is copied to a GPU while it computes
            self._shards[key] = found._replace(pixels=found.pixels.pin_memory()) if self.gpu else found
        self._shards.move_to_end(key)
        while (
            len(self._shards) > 1
            and sum(b.pixels.nbytes for b in self._shards.values()) > SHARD_BYTES
        ):
            self._shards.popitem(last=False)
        return self._shards[key]

    def reproducible(self, source: str, start: int, stop: int) -> bool:
        """Whether the same data give the same clean images whenever they are read.

        Sources of this package do. A plug-in may draw anew whenever it is asked, so its shard is read again.
        """
        if is_own(source):
            return True
        key = (source, start, stop)
        if key not in self._reproducible:
            again = self._read(find_data(source), start, stop)
            self._reproducible[key] = torch.equal(again.pixels, self.shard(*key).pixels)
        return self._reproducible[key]

    def data(self, source: str) -> Dataset:
        """A data source, opened once."""
        if source not in self._data:
            self._data[source] = find_data(source)
        return self._data[source]

    def spread(self, source: str, most: int) -> Batch:
        """Clean images and labels of at most so many rows, evenly spread over the data."""
        key = (source, most)
        if key not in self._spread:
            data = self.data(source)
            every = slice(0, len(data), -(-len(data) // most))
            self._spread[key] = next(data.batches([every]))
        return self._spread[key]

    def images(self, pixels: Tensor) -> Tensor:
        """Bytes (N, 3, H, W) as float images in [0, 1] on the device."""
        return pixels.to(self.device, non_blocking=True).float() / 255

    def batch(self, models: Sequence[Classifier], pixels: Tensor, *, gradient: bool = False) -> int:
        """Images to work on at once when nobody says; on a GPU, the most that were found to fit, by a probe.

        Args:
            models: that are run; those that gradients are taken of keep their graphs together.
            pixels: images (N, 3, H, W) of the kind to come.
            gradient: whether gradients are taken.
        """
        if not self.gpu:
            return default_batch(pixels)
        key = (tuple(model.name for model in models), tuple(pixels.shape[1:]), gradient)
        if key not in self._fits:
            found = largest(lambda size: self._passes(models, pixels[:1], size, gradient), MOST)
            self._fits[key] = max(1, found // 2) if gradient else found  # an attack keeps images of its own
        return self._fits[key]

    def _passes(self, models: Sequence[Classifier], pixels: Tensor, size: int, gradient: bool) -> None:
        """One pass of all models on so many images."""
        x = self.images(pixels).expand(size, *pixels.shape[1:]).clone().requires_grad_(gradient)
        with torch.set_grad_enabled(gradient):
            out = [model(x.to(model.mean.device)).sum().to(self.device) for model in models]
            if gradient:
                torch.autograd.grad(torch.stack(out).sum(), x)

    def _read(self, data: Dataset, start: int, stop: int) -> Batch:
        stop = min(stop, len(data))  # a file may claim any shard
        slices = [slice(at, min(at + CHUNK, stop)) for at in range(start, stop, CHUNK)]
        workers = min(len(slices) - 1, os.cpu_count() or 1, 8)
        parts = list(data.batches(slices, workers=workers if workers > 1 else 0))
        targets = [part.target_labels for part in parts if part.target_labels is not None]
        return Batch(
            torch.cat([part.pixels for part in parts]),
            torch.cat([part.labels for part in parts]),
            tuple(name for part in parts for name in part.sample_ids),
            torch.cat(targets) if targets else None,
        )


@lru_cache(maxsize=1)
def worker_cache(device: str) -> WorkerCache:
    """The cache of this process."""
    return WorkerCache(device)


@lru_cache(maxsize=1)
def cache_for(device: str, work: str) -> WorkerCache:
    """The cache of this process for one piece of work: what was loaded for an earlier one is not believed."""
    return WorkerCache(device)


def largest(run: Callable[[int], None], most: int) -> int:
    """The largest power of two up to ``most`` that ``run`` has memory for; at least 1.

    It is found by doubling, so that little more is done than one run of the largest size.
    """
    from advens.attacks.running import out_of_memory

    size = 1
    while 2 * size <= most:
        try:
            run(2 * size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            break
        size *= 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return size


def default_batch(pixels: Tensor) -> int:
    """Images to work on at once when nobody says: about 2 million values, at least 16."""
    return max(16, 2_000_000 // max(1, pixels[0].numel()))
