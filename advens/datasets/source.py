"""What a data source is: rows with labels and ids, whose pixels are made one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]


class Source(Protocol):
    """Rows in their natural order. Opening one lists them; nothing is decoded until asked for."""

    @property
    def labels(self) -> Integers:
        """(N,) classes, 0-based."""

    @property
    def sample_ids(self) -> Sequence[str]:
        """(N,) unique names that stay the same from run to run."""

    @property
    def target_labels(self) -> Integers | None:
        """(N,) wanted classes for targeted attacks, where the source has them."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, where the source has them."""

    @property
    def num_classes(self) -> int:
        """How many classes there are, as far as the source can tell."""

    @property
    def in_memory(self) -> bool:
        """Whether pixels are at hand, so that worker processes would only cost."""

    def header_sizes(self, rows: Integers) -> Iterable[tuple[int, tuple[int, int]]]:
        """Sizes known without decoding, as (row, (H, W)).

        One is enough where all rows share it; none are given where only decoding would tell.
        Raises InputError when a header cannot be read.
        """

    def pixels(self, row: int) -> Bytes:
        """(3, H, W) at native size. Raises InputError when the row does not decode."""

    def content(self, rows: Integers) -> Iterable[bytes]:
        """What those rows are made of, for digests: in their order, equal for equal content."""


@dataclass(frozen=True)
class NumberedIds(Sequence[str]):
    """``prefix-000017``: ids made when asked for, so that a million of them cost nothing.

    Args:
        prefix: before the number.
        total: how many.
        digits: the number is padded to this length.
    """

    prefix: str
    total: int
    digits: int = 6

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(self.total)[index])
        return f"{self.prefix}-{range(self.total)[index]:0{self.digits}d}"

    def __iter__(self) -> Iterator[str]:
        return (f"{self.prefix}-{i:0{self.digits}d}" for i in range(self.total))


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Images that are in memory already.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        sample_ids: (N,) unique names.
        num_classes: how many classes there are.
        class_names: their names.
        target_labels: (N,) wanted classes for targeted attacks.
    """

    images: Bytes
    labels: Integers
    sample_ids: Sequence[str]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    target_labels: Integers | None = None
    in_memory: bool = True

    def header_sizes(self, rows: Integers) -> Iterator[tuple[int, tuple[int, int]]]:
        """(H, W), the same for every row."""
        yield int(rows[0]), (self.images.shape[2], self.images.shape[3])

    def pixels(self, row: int) -> Bytes:
        """A copy of one image."""
        image: Bytes = self.images[row].copy()
        return image

    def content(self, rows: Integers) -> Iterator[bytes]:
        """The digest of every image's bytes."""
        for row in rows:
            yield hashlib.sha256(self.images[row].tobytes()).digest()
