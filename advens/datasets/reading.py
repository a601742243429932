"""Decoding slices of rows, in this process or in others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from advens.datasets.source import Bytes
from advens.errors import InputError

if TYPE_CHECKING:
    from advens.datasets.dataset import Dataset


def read_slices(data: Dataset, slices: Sequence[range], workers: int) -> Iterator[Bytes]:
    """The pixels of every slice in turn, (n, 3, H, W), one slice per worker at a time."""
    if workers <= 0:
        for indices in slices:
            yield read(data, indices)
        return
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        _Rows(data),  # type: ignore[arg-type]
        batch_sampler=[list(indices) for indices in slices],
        num_workers=min(workers, len(slices)),
        collate_fn=_as_it_is,
        generator=torch.Generator(),  # else the loader draws from the caller's random state
    )
    for pixels in loader:
        if isinstance(pixels, InputError):
            raise pixels
        yield pixels


def read(data: Dataset, indices: Sequence[int]) -> Bytes:
    """The pixels of some rows, (n, 3, H, W), read in the order in which they are stored."""
    order = np.argsort(data.rows[np.asarray(indices)], kind="stable").tolist()
    first = data.pixels(indices[order[0]])
    out = np.empty((len(indices), *first.shape), np.uint8)
    out[order[0]] = first
    for place in order[1:]:
        out[place] = data.pixels(indices[place])
    return out


class _Rows:
    """What a worker holds. It hands arrays back, which travel through a pipe (tensors would need
    shared memory, which is small in containers), and errors as values: raised inside a worker they
    would come back as a traceback.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Bytes:
        return self.data.pixels(index)

    def __getitems__(self, indices: list[int]) -> Bytes | InputError:
        try:
            return read(self.data, indices)
        except InputError as error:
            return InputError(str(error))


def _as_it_is(pixels: Any) -> Any:
    return pixels
