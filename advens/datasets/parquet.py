"""``parquet:PATH``: a file, or a folder of ``*.parquet`` shards, with ``image`` and ``label``.

``?image=img&label=fine_label`` names other columns, ``?split=test`` takes the shards of one
split. ``image`` holds the bytes of a PNG, JPEG, ...; or is a struct with a field ``bytes``, as Hugging
Face writes; or, where the file has integer columns ``height`` and ``width``, may hold the raw 8-bit
pixels (3, H, W). Optional columns: ``sample_id`` and ``target_label``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from advens.datasets.decoding import decode
from advens.datasets.folder import nearby
from advens.datasets.parquet_tables import joined, read_images, read_table, unique_ids
from advens.datasets.source import Bytes, Integers
from advens.errors import InputError

SHARD = re.compile(
    r"(?P<split>\w+?)-\d+-of-\d+(-\w+)?\.parquet"
    r"|(?P<only>train|training|test|validation|valid|val|dev|eval)\.parquet"
)
"""Names of shards that say of which split they are."""


@dataclass(frozen=True)
class RowGroup:
    """A part of a file that is read as one.

    Args:
        file: the shard.
        index: its number in the shard.
        start: its first row, counted over all shards.
    """

    file: Path
    index: int
    start: int


@dataclass
class _Held:
    """The row group read last, by which process."""

    process: int = -1
    group: RowGroup | None = None
    images: Any = None


@dataclass(frozen=True, eq=False)
class ParquetSource:
    """Rows of parquet shards. The small columns are read at once, images one row group at a time.

    Args:
        groups: the row groups in order.
        image: the column of the images.
        labels: (N,) int64.
        sample_ids: (N,) unique names.
        num_classes: how many classes there are.
        class_names: their names, where the file says them as Hugging Face does.
        target_labels: (N,) wanted classes for targeted attacks.
        raw_sizes: (N, 2) height and width, where the file has them.
    """

    groups: tuple[RowGroup, ...]
    image: str
    labels: Integers
    sample_ids: tuple[str, ...]
    num_classes: int
    class_names: tuple[str, ...] | None
    target_labels: Integers | None
    raw_sizes: Integers | None
    in_memory: bool = False
    _held: _Held = field(default_factory=_Held, repr=False)

    @cached_property
    def _starts(self) -> Integers:
        return np.array([group.start for group in self.groups], np.int64)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": _Held()}

    def header_sizes(self, rows: Integers) -> Iterator[tuple[int, tuple[int, int]]]:
        """The first row of every stated height and width, if the first image is raw pixels."""
        if self.raw_sizes is not None and self._is_raw(int(rows[0]), self._image(int(rows[0]))):
            sizes, first = np.unique(self.raw_sizes[rows], axis=0, return_index=True)
            for (height, width), i in zip(sizes.tolist(), first.tolist(), strict=True):
                yield int(rows[i]), (height, width)

    def pixels(self, row: int) -> Bytes:
        """The decoded image, (3, H, W)."""
        encoded = self._image(row)
        if self.raw_sizes is not None:
            height, width = self.raw_sizes[row].tolist()
            if self._is_raw(row, encoded):
                raw: Bytes = np.frombuffer(encoded, np.uint8).reshape(3, height, width).copy()
                return raw
        try:
            return decode(encoded, f"'{self.sample_ids[row]}'")
        except InputError as error:
            if self.raw_sizes is None:
                raise
            raise InputError(
                f"image '{self.sample_ids[row]}' has {len(encoded)} bytes: neither an encoded "
                f"image nor 3 x {height} x {width} raw pixels"
            ) from error

    def content(self, rows: Integers) -> Iterator[bytes]:
        """The digest of every image's bytes and stated size, in the order of ``rows``."""
        digests: dict[int, bytes] = {}
        for row in np.unique(rows).tolist():  # sorted: every row group is read once
            stated = "" if self.raw_sizes is None else str(self.raw_sizes[row].tolist())
            digests[row] = hashlib.sha256(stated.encode() + b"\0" + self._image(row)).digest()
        return (digests[row] for row in rows.tolist())

    def _image(self, row: int) -> bytes:
        group = self.groups[int(np.searchsorted(self._starts, row, side="right")) - 1]
        held = self._held
        if held.group is not group or held.process != os.getpid():
            held.images = None  # before the next is read, so that two are never held
            held.images = read_images(group.file, group.index, self.image)
            held.group, held.process = group, os.getpid()
        value: bytes | None = held.images[row - group.start].as_py()
        if value is None:
            raise InputError(f"{group.file}: image '{self.sample_ids[row]}' is missing (null)")
        return value

    def _is_raw(self, row: int, cell: bytes) -> bool:
        # data sets in the wild also state the sizes of encoded images
        return self.raw_sizes is not None and len(cell) == 3 * int(self.raw_sizes[row].prod())


def load(
    path: str, image: str | None = None, label: str | None = None, split: str | None = None
) -> ParquetSource:
    """Open a file, the shards of a folder, or those of a pattern (``PATH/test-*.parquet``).

    Ids are ``sample_id``, else ``shard.parquet#row``.

    Args:
        path: the file, folder or pattern.
        image, label: the columns, where they have other names; Hugging Face's metadata is read for them, too.
        split: only the shards of this split, which Hugging Face names ``test-00000-of-00004.parquet``.

    Raises:
        InputError: nothing there, shards of several splits, a file that is cut off or not parquet, a
            missing column, labels that are not classes, or an id that is there twice.
    """
    tables = [read_table(file, image, label) for file in _of_one_split(path, _shards(path), split)]
    groups: list[RowGroup] = []
    total = 0
    for table in tables:
        for what, own, first in (
            ("images in column", table.image, tables[0].image),
            ("classes called", table.class_names, tables[0].class_names),
        ):
            if own != first:
                raise InputError(
                    f"shards differ: '{tables[0].file}' has {what} {_shown(first)}, "
                    f"'{table.file}' {_shown(own)}"
                )
        for index, rows in enumerate(table.group_rows):
            if rows:
                groups.append(RowGroup(table.file, index, total))
            total += rows
    if total == 0:
        raise InputError(f"'{path}' has no rows")
    labels, targets, sizes = (joined(tables, column) for column in ("labels", "targets", "sizes"))
    assert labels is not None
    largest = max(int(labels.max()), 0 if targets is None else int(targets.max()))
    names = tables[0].class_names
    if names is not None and len(names) <= largest:  # a wanted class; labels were checked
        raise InputError(
            f"'{path}': target_label {largest} is beyond the {len(names)} classes that the file names"
        )
    return ParquetSource(
        tuple(groups),
        tables[0].image,
        labels,
        unique_ids(tables),
        len(names) if names else largest + 1,
        names,
        targets,
        sizes,
    )


def _shown(value: object) -> str:
    text = ", ".join(value) if isinstance(value, tuple) else str(value)
    return f"'{text[:40]}'"


def _of_one_split(path: str, files: tuple[Path, ...], split: str | None) -> tuple[Path, ...]:
    """The shards of the split that is wanted; all, where their names say of no more than one."""
    splits = {
        file: match["split"] or match["only"]
        for file in files
        if (match := SHARD.fullmatch(file.name))
    }
    found = sorted(set(splits.values()))
    if split is None:
        if len(found) > 1:
            raise InputError(
                f"'{path}' holds shards of several splits: {', '.join(found)}; add ?split={found[0]}"
            )
        return files
    if split not in found:
        known = f"; there are {', '.join(found)}" if found else "; no file is named after a split"
        raise InputError(f"'{path}' has no split '{split}'{known}")
    return tuple(file for file in files if splits.get(file) == split)


def _shards(path: str) -> tuple[Path, ...]:
    given = Path(path).expanduser()
    if given.is_file():
        return (given,)
    if given.is_dir():
        pattern, folder = "*.parquet", given
    elif "*" in given.name and given.parent.is_dir():
        pattern, folder = given.name, given.parent
    else:
        raise InputError(f"parquet file or folder '{path}' does not exist{nearby(given)}")
    files = tuple(sorted(folder.glob(pattern)))
    if not files:
        raise InputError(f"folder '{folder}' holds no {pattern} files")
    return files
