"""Any data set that answers ``len(data)`` and ``data[i] -> (image, label)``, as torch's do."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advens.datasets.decoding import from_any
from advens.datasets.source import Bytes, Integers, NumberedIds
from advens.digest import file_digest
from advens.errors import InputError, first_line

LABEL_FIELDS = ("targets", "labels", "_labels", "y")
FILE_FIELDS = ("samples", "_samples")


@dataclass(frozen=True, eq=False)
class MapStyleSource:
    """A wrapped map-style data set.

    Args:
        data: ``len(data)`` and ``data[i] -> (image, label)``; see `decoding.from_any` for images.
        name: what to call it in errors.
        labels: (N,) int64.
        sample_ids: (N,) unique names.
        num_classes: how many classes there are.
        class_names: their names.
        files: (N,) the images' files, where the data set says which they are: their bytes then
            stand for the contents, which is much quicker than decoding all.
    """

    data: Any
    name: str
    labels: Integers
    sample_ids: Sequence[str]
    num_classes: int
    class_names: tuple[str, ...] | None = None
    files: tuple[Path, ...] | None = None
    target_labels: None = None
    in_memory: bool = False

    def header_sizes(self, rows: Integers) -> Iterator[tuple[int, tuple[int, int]]]:
        """Nothing: only decoding tells."""
        return iter(())

    def pixels(self, row: int) -> Bytes:
        """The decoded image, (3, H, W)."""
        return from_any(
            _row(self.data, row, self.name)[0], f"'{self.sample_ids[row]}' of {self.name}"
        )

    def content(self, rows: Integers) -> Iterator[bytes]:
        """The digest of every image's file, or of its decoded pixels and their shape."""
        for row in rows.tolist():
            if self.files is not None:
                yield bytes.fromhex(file_digest(self.files[row]))
            else:
                pixels = self.pixels(row)
                yield hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).digest()


def wrap(data: Any, name: str, prefix: str = "row") -> MapStyleSource:
    """The source of a map-style data set.

    Labels come from the attribute it keeps them in, where it has one that agrees with its rows;
    else every row is read once. Ids are row numbers (``prefix-000017``).

    Raises:
        InputError: it is no such data set, or its targets are not classes.
    """
    try:
        count = len(data)
    except TypeError:
        raise InputError(
            f"{name} gave a {type(data).__name__}; it must be a Dataset, a Source, or answer "
            f"len(data) and data[i] -> (image, label)"
        ) from None
    if count == 0:
        raise InputError(f"data '{name}' holds no images")
    labels = _labels(data, count, name)
    classes = getattr(data, "wnids", None) or getattr(data, "classes", None)  # wnids: of ImageNet's
    names = (
        tuple(map(str, classes))
        if isinstance(classes, (list, tuple)) and len(classes) > labels.max()
        else None
    )
    return MapStyleSource(
        data,
        name,
        labels,
        NumberedIds(prefix, count),
        len(names) if names else int(labels.max()) + 1,
        names,
        _files(data, count),
    )


def _labels(data: Any, count: int, name: str) -> Integers:
    probes = sorted({0, count // 2, count - 1})
    expected = [_label(data, row, name) for row in probes]
    candidates = [getattr(data, field, None) for field in LABEL_FIELDS]
    for field in FILE_FIELDS:
        samples = getattr(data, field, None)
        if isinstance(samples, list) and samples and isinstance(samples[0], tuple):
            candidates.append([sample[1] for sample in samples])
    for candidate in candidates:
        if candidate is None:
            continue
        try:
            labels = np.asarray(candidate)
        except (TypeError, ValueError):
            continue
        fits = labels.shape == (count,) and labels.dtype.kind in "iu"
        if fits and labels[probes].tolist() == expected:
            break
    else:
        labels = np.array([_label(data, row, name) for row in range(count)])
    if labels.min() < 0:
        raise InputError(f"{name} has the label {labels.min()}; classes count from 0")
    return labels.astype(np.int64)


def _row(data: Any, row: int, name: str) -> Any:
    try:
        return data[row]
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"image {row} of {name} cannot be decoded: {first_line(error)}") from error


def _label(data: Any, row: int, name: str) -> int:
    pair = _row(data, row, name)
    if not isinstance(pair, (tuple, list)) or len(pair) < 2:
        raise InputError(f"{name} gives no (image, label) pairs, so it cannot be classified")
    label = pair[1].item() if hasattr(pair[1], "item") and np.size(pair[1]) == 1 else pair[1]
    if not isinstance(label, int):
        raise InputError(f"{name} has targets of type {type(label).__name__}; a class is needed")
    return int(label)


def _files(data: Any, count: int) -> tuple[Path, ...] | None:
    for field in FILE_FIELDS:
        samples = getattr(data, field, None)
        if isinstance(samples, list) and len(samples) == count:
            paths = [s[0] for s in samples if isinstance(s, tuple)]
            if len(paths) == count and all(isinstance(path, (str, Path)) for path in paths):
                return tuple(map(Path, paths))
    return None
