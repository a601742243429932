"""The view of a source that everybody uses: some of its rows, in an order, at a size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from advens.datasets.decoding import Crop
from advens.datasets.source import Bytes, Integers, Source
from advens.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


class Sample(NamedTuple):
    """One image: float32 (3, H, W), exact 8-bit values / 255; its class; its name."""

    image: Tensor
    label: int
    sample_id: str


class Batch(NamedTuple):
    """Rows decoded together.

    Args:
        pixels: uint8 (n, 3, H, W).
        labels: int64 (n,).
        sample_ids: n names.
        target_labels: int64 (n,) or None.
    """

    pixels: Tensor
    labels: Tensor
    sample_ids: tuple[str, ...]
    target_labels: Tensor | None


class Dataset:
    """Images with labels and stable ids. Opens instantly; an image is decoded when asked for.

    Args:
        source: where the rows come from.
        name: how users call it (its spec).
        rows: which of the source's rows, in which order; all of them by default.
        size: how images are brought to one size; a number resizes the shorter side to it and crops the
            centre square. By default the images stay as they are and must all be of one size.

    Raises:
        InputError: there are no rows.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        rows: Sequence[int] | Integers | None = None,
        size: Crop | int | None = None,
    ) -> None:
        self.source = source
        self.name = name
        self.rows: Integers = np.arange(len(source.labels), dtype=np.int64)
        if rows is not None:
            self.rows = np.asarray(rows, dtype=np.int64)
        if len(self.rows) == 0:
            raise InputError(f"data '{name}' holds no images")
        self.labels: Integers = source.labels[self.rows]
        ids, targets = source.sample_ids, source.target_labels
        self.sample_ids: Sequence[str] = (
            ids if rows is None else tuple(ids[row] for row in self.rows.tolist())
        )
        self.target_labels: Integers | None = None if targets is None else targets[self.rows]
        self.resized = Crop(size) if isinstance(size, int) else size
        self._seen: tuple[str, tuple[int, int]] | None = None

    @property
    def num_classes(self) -> int:
        """How many classes the source has, whichever of them the rows are of."""
        return self.source.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, where the source has them."""
        return self.source.class_names

    @cached_property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of every image; None where only decoding would tell.

        Raises:
            InputError: the images' headers say that their sizes differ, or cannot be read.
        """
        if self.resized is not None:
            return self.resized.size, self.resized.size
        for row, size in self.source.header_sizes(self.rows):
            self._same_size(row, size)
        return None if self._seen is None else self._seen[1]

    @cached_property
    def digest(self) -> str:
        """The fingerprint of all rows."""
        return self.fingerprint(range(len(self)))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        import torch

        image = torch.from_numpy(self.pixels(index)).to(torch.float32).div_(255)
        return Sample(image, int(self.labels[index]), self.sample_ids[int(index)])

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        size = "" if self.size is None else f", {self.size[0]}x{self.size[1]}"
        return f"<Dataset '{self.name}': {len(self)} images{size}, {self.num_classes} classes>"

    def pixels(self, index: int) -> Bytes:
        """The 8-bit image at ``index``, (3, H, W).

        Raises:
            InputError: it does not decode, or is not of the size of those before.
        """
        row = int(self.rows[index])
        image = self.source.pixels(row)
        if self.resized is not None:
            return self.resized(image)
        self._same_size(row, (image.shape[1], image.shape[2]))
        return image

    def fingerprint(self, indices: Iterable[int] | slice) -> str:
        """What those rows are, as a hex digest: contents, ids, labels, targets and the size option.

        It says nothing of where the data lie or what they are called, and the order counts.
        """
        if isinstance(indices, slice):
            indices = range(len(self))[indices]
        chosen = np.array(list(indices), dtype=np.int64)
        total = hashlib.sha256(f"rows {len(chosen)} size {self.resized}\0".encode())
        total.update(self.labels[chosen].astype("<i8").tobytes())
        if self.target_labels is not None:
            total.update(b"targets\0" + self.target_labels[chosen].astype("<i8").tobytes())
        for i in chosen.tolist():
            text = self.sample_ids[i].encode()
            total.update(len(text).to_bytes(4, "little") + text)
        for part in self.source.content(self.rows[chosen]):
            total.update(part)
        return total.hexdigest()

    def batches(self, slices: Sequence[slice], workers: int = 0) -> Iterator[Batch]:
        """Every slice of rows in turn, decoded when it is reached (or just ahead, by workers).

        Args:
            slices: which rows; a slice is held in memory as a whole, the data never is.
            workers: processes that decode; 0 decodes here, as sources in memory always do.

        Raises:
            InputError: a slice holds no row, an image does not decode, or sizes differ.
        """
        import torch

        wanted = [range(*slice_.indices(len(self))) for slice_ in slices]
        for slice_, indices in zip(slices, wanted, strict=True):
            if len(indices) == 0:
                raise InputError(
                    f"slice {slice_.start}:{slice_.stop} holds none of the {len(self)} images of "
                    f"'{self.name}'"
                )
        count = 0 if self.source.in_memory else workers
        for indices, pixels in zip(wanted, _read_slices(self, wanted, count), strict=True):
            if self.resized is None:  # workers do not see each other's images
                self._same_size(int(self.rows[indices[0]]), (pixels.shape[2], pixels.shape[3]))
            chosen = np.asarray(indices)
            targets = self.target_labels
            yield Batch(
                torch.from_numpy(pixels),
                torch.from_numpy(self.labels[chosen]),
                tuple(self.sample_ids[i] for i in indices),
                None if targets is None else torch.from_numpy(targets[chosen]),
            )

    def take(self, limit: int, seed: int = 0) -> Dataset:
        """The first ``limit`` rows of a shuffle drawn from ``seed``: a prefix of any longer take.

        Raises:
            InputError: there are fewer rows.
        """
        if not 1 <= limit <= len(self):
            raise InputError(
                f"limit = {limit} of data '{self.name}' must be from 1 to {len(self)}, "
                f"which is all it has"
            )
        # RandomState's stream is frozen: the same rows on every machine and version
        order = np.random.RandomState(seed).permutation(len(self))[:limit]
        return Dataset(self.source, self.name, self.rows[order], self.resized)

    def _same_size(self, row: int, size: tuple[int, int]) -> None:
        if self._seen is None:
            self._seen = (self.source.sample_ids[row], size)
        elif self._seen[1] != size:
            name, (height, width) = self._seen
            raise InputError(
                f"images of '{self.name}' differ in size: '{name}' is {height}x{width}, "
                f"'{self.source.sample_ids[row]}' is {size[0]}x{size[1]} (height x width); "
                f"add {'&' if '?' in self.name else '?'}size=224 to bring them to one"
            )


def _read_slices(data: Dataset, slices: Sequence[range], workers: int) -> Iterator[Bytes]:
    """The pixels of every slice in turn, (n, 3, H, W), one slice per worker at a time."""
    if workers <= 0:
        for indices in slices:
            yield _read(data, indices)
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


def _read(data: Dataset, indices: Sequence[int]) -> Bytes:
    """The pixels of some rows, (n, 3, H, W), read in the order in which they are stored."""
    order = np.argsort(data.rows[np.asarray(indices)], kind="stable").tolist()
    first = data.pixels(indices[order[0]])
    out = np.empty((len(indices), *first.shape), np.uint8)
    out[order[0]] = first
    for place in order[1:]:
        out[place] = data.pixels(indices[place])
    return out


class _Rows:
    """The rows of a data set, as a loader's worker process reads them.

    It returns arrays, which are sent through a pipe (tensors would need shared memory, which is small in
    containers), and errors as values: raised inside a worker they would come back as a traceback.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Bytes:
        return self.data.pixels(index)

    def __getitems__(self, indices: list[int]) -> Bytes | InputError:
        try:
            return _read(self.data, indices)
        except InputError as error:
            return InputError(str(error))


def _as_it_is(pixels: Any) -> Any:
    return pixels
