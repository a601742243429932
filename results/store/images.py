"""How the adversarial images of a cell are stored: as differences from the clean images, or whole.

A difference is the adversarial image minus the clean one, modulo 256, which is exact for any two images.
Small perturbations take few of the 256 values, so zstd packs them to a fraction of what images take. The
SHA-256 of the whole image stands beside either form. Once a difference has been added to a clean image, it
tells whether this is the image that was stored, and so whether the clean image was the right one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from advens.errors import InputError, RunError
from advens.results.store import schema
from advens.results.store.files import cell_of, read_table

if TYPE_CHECKING:
    from advens.datasets import Dataset
    from advens.results.store.run_store import RunStore

Pixels = NDArray[np.uint8]


def image_columns(images: Pixels, clean: Pixels | None = None) -> dict[str, Any]:
    """The columns of ``examples`` that hold images.

    Args:
        images: (N, 3, H, W).
        clean: the images that differences are stored from; without, images are stored whole.
    """
    count, _, height, width = images.shape
    stored = [row.tobytes() for row in (images if clean is None else images - clean)]  # uint8 wraps around
    nothing = [None] * count
    return {
        "image": stored if clean is None else nothing,
        "difference": nothing if clean is None else stored,
        "height": np.full(count, height, np.int32),
        "width": np.full(count, width, np.int32),
        "sha256": digests(images),
    }


def digests(images: Pixels) -> list[str]:
    """The SHA-256 of every image (N, 3, H, W)."""
    return [hashlib.sha256(np.ascontiguousarray(image).data).hexdigest() for image in images]


def clean_digest(clean: Pixels) -> str:
    """The SHA-256 of the clean images of a shard, which the description of a cell holds."""
    return hashlib.sha256(np.ascontiguousarray(clean).data).hexdigest()


def are_differences(table: pa.Table) -> bool:
    """Whether a table of examples holds differences. Raises RunError unless all are of one form."""
    image = table.column("image")
    missing = table.num_rows  # of the differences: runs from before there were any lack the column
    if "difference" in table.column_names:
        missing = table.column("difference").null_count
    if (image.null_count, missing) == (0, table.num_rows):
        return False
    if (image.null_count, missing) == (table.num_rows, 0):
        return True
    raise RunError("it holds neither all images nor all differences")


def decoded(table: pa.Table, clean: Callable[[], Pixels]) -> Pixels:
    """The images of a table of examples, whatever their digests say, uint8 (N, 3, H, W).

    Args:
        clean: gives the clean images of these rows, (N, 3, H, W); called for differences alone.

    Raises:
        RunError: what is stored are no images of the size that the table says.
        InputError: the clean images are of another size or number.
    """
    if not are_differences(table):
        images: Pixels = _stored(table, "image").copy()
        return images
    differences, given = _stored(table, "difference"), clean()
    if given.shape != differences.shape:
        raise InputError(
            f"the clean images are {_size(given)}, and not {_size(differences)} as those that the stored "
            "differences are from"
        )
    images = differences + given
    return images


def whole_images(table: pa.Table, clean: Callable[[], Pixels]) -> Pixels:
    """The images of a table of examples, uint8 (N, 3, H, W), each with its digest checked.

    Images that were stored whole are covered by the seal of their file.

    Raises:
        InputError: the clean images are not those that the differences are from.
        RunError: what is stored are no such images, or differences that do not give them.
    """
    kept: list[Pixels] = []

    def once() -> Pixels:
        kept.append(clean())
        return kept[0]

    images = decoded(table, once)
    if not kept:
        return images
    wrong = changed(table, digests(images))
    if wrong and clean_digest(kept[0]) != _said(table):
        raise InputError(
            "the clean images are not those that the stored differences are from: these are other data, or "
            "they decode to other pixels here"
        )
    if wrong:
        raise RunError(f"{len(wrong)} of its images were changed after they were written (first: {wrong[0]})")
    return images


def changed(table: pa.Table, found: Sequence[str]) -> list[str]:
    """The samples whose images have other digests than the table says."""
    rows = zip(table.column("sample_id").to_pylist(), table.column("sha256").to_pylist(), found, strict=True)
    return [name for name, stored, digest in rows if stored != digest]


def signed_differences(table: pa.Table) -> NDArray[np.int8] | None:
    """Stored differences (N, 3, H, W) as numbers; None for whole images, and where they exceed 127 levels."""
    if not are_differences(table) or not table.column("linf").to_numpy().max() * 255 < 127.5:
        return None
    return _stored(table, "difference").view(np.int8)


class CleanImages:
    """The clean images that runs name: each source is opened once, and the rows of a shard are read once."""

    def __init__(self) -> None:
        self._data: dict[str, Dataset] = {}
        self._rows: dict[tuple[str, int, int], Pixels] = {}

    def rows(self, source: str, start: int, stop: int) -> Pixels:
        """The images of [start, stop), (N, 3, H, W). Raises InputError when they cannot be read."""
        from advens.datasets import find_data

        key = source, start, stop
        if key not in self._rows:
            if source not in self._data:
                self._data[source] = find_data(source)
            data = self._data[source]
            if not 0 <= start < stop <= len(data):
                raise InputError(f"it has {len(data)} images, and no {start} to {stop}")
            self._rows[key] = np.stack([data.pixels(row) for row in range(start, stop)])
        return self._rows[key]


def read_images(store: RunStore, cell: str, clean: CleanImages) -> tuple[pa.Table, Pixels]:
    """The table of examples of a cell, and its images (N, 3, H, W).

    Raises:
        InputError: the images are stored as differences, and the data cannot be read or are others.
        RunError: a damaged file.
    """
    path: Path = store.examples_path(cell)
    table = read_table(path, "examples")
    said = cell_of(path, table.schema.metadata)
    start = said["shard"][0]
    try:
        return table, whole_images(table, lambda: clean.rows(said["data"], start, start + table.num_rows))
    except InputError as error:
        raise InputError(
            f"{path.name} holds differences from images of '{said['data']}', which must be at hand: {error}"
        ) from error
    except RunError as error:
        raise RunError(f"{path}: {error}") from error


def _stored(table: pa.Table, name: str) -> Pixels:
    """The bytes of a column as images, without a copy."""
    if not table.num_rows:
        raise RunError("it holds no images")
    height, width = (table.column(side)[0].as_py() for side in ("height", "width"))
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    size = 3 * (height or 0) * (width or 0)
    if min(height or 0, width or 0) < 1 or (np.diff(starts) != size).any():
        raise RunError("the stored images are not of the size the table says")
    flat = np.frombuffer(data, np.uint8)[starts[0] : starts[-1]]
    return flat.reshape(-1, 3, height, width)


def _said(table: pa.Table) -> str | None:
    """The digest of the clean images by the description of the cell."""
    with suppress(KeyError, ValueError, RecursionError, AttributeError):
        digest = json.loads((table.schema.metadata or {})[schema.CELL]).get("clean_sha256")
        return digest if isinstance(digest, str) else None
    return None


def _size(images: Any) -> str:
    count, _, height, width = images.shape
    return f"{count} of {height}x{width}"
