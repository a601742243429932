"""What a run holds, from one look at each of its folders.

The footer of a file says whether it is whole, and which rows it holds. An index keeps what was found
there, by name, size and time of every file, so that the footers of a large run are read once. It is a cache:
a file that it does not know as it is now is read again, a damaged or missing index costs only time, and
verification does without.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from advens.errors import InputError, RunError
from advens.files import inside, os_errors, read_regular, write_bytes
from advens.results.store import schema
from advens.results.store.files import read_metadata

INDEX, VERSION = "index.json", 1
NEW = 1000
"""Footers that were read since an index was written and are worth another: half a second."""


class Piece(NamedTuple):
    """The rows of one cell for one target, in a file of rows.

    Attributes:
        cell, key: of the cell and of the target.
        file: its name.
        start, stop: the rows of the file.
    """

    cell: str
    key: str
    file: str
    start: int
    stop: int

    @property
    def place(self) -> str:
        """Its place among all rows of a run, whatever file holds it."""
        return pair_file(self.cell, self.key)


@dataclass(frozen=True)
class Listing:
    """What a run holds.

    Args:
        images: the cells whose files of images are whole; none where rows alone were looked at.
        files: the pieces of every whole file of rows, by its name.
        damaged: the names of other files of rows.
    """

    images: frozenset[str]
    files: Mapping[str, tuple[Piece, ...]]
    damaged: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> dict[str, dict[str, Piece]]:
        """The rows of every cell, by cell and key of the target; where two files hold them, of the first."""
        found: dict[str, dict[str, Piece]] = {}
        for name in sorted(self.files):
            for piece in self.files[name]:
                found.setdefault(piece.cell, {}).setdefault(piece.key, piece)
        return found

    def has(self, cell: str, key: str) -> bool:
        """Whether there are rows of a cell for a target."""
        return key in self.rows.get(cell, ())

    def ordered(self, cells: Collection[str] | None = None) -> list[Piece]:
        """The rows in one order, whatever files hold them; those of some cells, or of all."""
        wanted = self.rows if cells is None else {cell: self.rows.get(cell, {}) for cell in cells}
        return sorted((piece for each in wanted.values() for piece in each.values()), key=lambda p: p.place)


def pair_file(cell: str, key: str) -> str:
    """The name of a file with the rows of one cell for one target."""
    return f"{cell}.{key}.parquet"


def named_pair(name: str) -> tuple[str, str] | None:
    """The cell and target that a file of rows is named after; None for a file of several."""
    cell, _, key = name.removesuffix(".parquet").partition(".")
    return (cell, key) if key else None


Entries = dict[str, list[Any]]
"""By the name of a file: its size, its time, and what its footer says."""


def look(directory: Path, index: bool = True) -> Listing:
    """What a run holds.

    Args:
        index: whether to believe the index about files that it knows, and to write it when it is old.

    Raises:
        LinkError: a link leads out of the run.
    """
    kept = _read_index(directory) if index else {}
    # rows first: those of a cell that another process finishes meanwhile are not seen without its images
    rows, more, damaged = _whole(directory, "samples", kept.get("samples", {}))
    images, read, _ = _whole(directory, "examples", kept.get("examples", {}))
    if index and read + more >= NEW:
        _write_index(directory, {"version": VERSION, "examples": images, "samples": rows})
    names = frozenset(name.removesuffix(".parquet") for name in images)
    return Listing(names, _by_file(rows), tuple(damaged))


def look_at_rows(directory: Path, only: Callable[[str], bool] | None = None) -> Listing:
    """The rows alone that a run holds, read anew.

    Args:
        only: which files count, by name; None is all of them.

    Raises:
        LinkError: a link leads out of the run.
    """
    rows, _, damaged = _whole(directory, "samples", {}, only)
    return Listing(frozenset(), _by_file(rows), tuple(damaged))


def _by_file(rows: Entries) -> dict[str, tuple[Piece, ...]]:
    return {name: tuple(_pieces(name, said)) for name, (_, _, said) in rows.items()}


def parquet_files(directory: Path, folder: str) -> dict[str, tuple[int, int]]:
    """Size and time of every parquet file in a folder of a run, by name, sorted."""
    path = inside(directory, folder)
    found: dict[str, tuple[int, int]] = {}
    if not path.is_dir():
        return found
    with os_errors("read", path), os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(".parquet"):
                if entry.is_symlink():
                    inside(directory, folder, entry.name)
                with suppress(FileNotFoundError):  # removed meanwhile, or a link to nothing
                    if entry.is_file():
                        about = entry.stat()
                        found[entry.name] = about.st_size, about.st_mtime_ns
    return dict(sorted(found.items()))


def _whole(
    directory: Path, kind: str, kept: Mapping[str, Any], only: Callable[[str], bool] | None = None
) -> tuple[Entries, int, list[str]]:
    """The whole files of a folder, how many of them were read now, and the names of the others."""
    there = parquet_files(directory, kind)
    if only is not None:
        there = {name: about for name, about in there.items() if only(name)}
    unknown = [name for name, about in there.items() if tuple(kept.get(name, ())[:2]) != about]
    with ThreadPoolExecutor(8) as pool:
        said = dict(zip(unknown, pool.map(lambda name: _said(directory, kind, name), unknown), strict=True))
    entries = {
        name: [*about, said[name]] if name in said else kept[name]
        for name, about in there.items() if said.get(name, ()) is not None
    }  # fmt: skip
    damaged = [name for name, what in said.items() if what is None]
    return entries, len(unknown) - len(damaged), damaged


def _said(directory: Path, kind: str, name: str) -> Any:
    """What the footer of a file says: how many rows there are, or of which pairs; None if it is damaged."""
    try:
        metadata, rows = read_metadata(inside(directory, kind, name), kind)
        if kind == "examples" or not _is_group(name):
            return rows
        pairs = [(str(cell), str(key), int(count)) for cell, key, count in json.loads(metadata[schema.PAIRS])]
    except (RunError, InputError, KeyError, ValueError, TypeError, RecursionError):
        return None
    distinct = {(cell, key) for cell, key, _ in pairs}
    counts = [count for _, _, count in pairs]
    sound = len(distinct) == len(pairs) and min(counts, default=0) > 0 and sum(counts) == rows
    return [list(pair) for pair in pairs] if sound else None  # as the index says it


def _is_group(name: str) -> bool:
    return named_pair(name) is None


def _pieces(name: str, said: Any) -> Iterator[Piece]:
    at, pair = 0, named_pair(name)
    for cell, key, count in [(*pair, said)] if pair is not None else said:
        yield Piece(cell, key, name, at, at + count)
        at += count


def _read_index(directory: Path) -> dict[str, Any]:
    """What the index says; nothing where it is missing or damaged."""
    with suppress(InputError, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        kept: dict[str, Any] = json.loads(read_regular(inside(directory, INDEX)))
        images, rows = ([(n, s) for n, (_, _, s) in kept[kind].items()] for kind in ("examples", "samples"))
        sound = all(_is_pairs(said) if _is_group(name) else type(said) is int for name, said in rows)
        if kept["version"] == VERSION and sound and all(type(said) is int for _, said in images):
            return kept
    return {}


def _is_pairs(said: Any) -> bool:
    return isinstance(said, list) and all(
        isinstance(cell, str) and isinstance(key, str) and type(count) is int for cell, key, count in said
    )


def _write_index(directory: Path, kept: dict[str, Any]) -> None:
    with suppress(InputError):  # somebody else's run, or a full disk: the next look reads the files again
        write_bytes(inside(directory, INDEX), json.dumps(kept, separators=(",", ":")).encode())
