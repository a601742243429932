"""A run directory: where its files lie, and how thousands of them are read as one table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from advens.digest import value_digest
from advens.errors import InputError, RunError, first_line, unknown
from advens.files import inside, os_errors, write_bytes
from advens.results.store import schema
from advens.results.store.files import (
    CorruptFile,
    cell_of,
    is_whole,
    read_cell,
    read_metadata,
    read_table,
    write_examples,
    write_table,
)
from advens.results.store.listing import (
    Listing,
    Piece,
    look,
    look_at_rows,
    named_pair,
    pair_file,
    parquet_files,
)
from advens.results.store.lock import claimed, locked, silent

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CorruptFile", "RunStore", "is_whole", "read_cell", "read_table", "write_bytes",
    "write_examples", "write_table",
]

# the same few strings in every row: kept as dictionaries, which pandas calls categories
REPEATED = ("suite", "attack", "attack_params", "surrogates", "target", "cell", "target_family")
BATCH_ROWS = 4_000_000
"""Rows that are read at once, before filters: a few hundred MB."""
CLAIMS = "claims"
"""The folder of what those that share a run are at work on."""
Filters = Mapping[str, Any] | Sequence[tuple[str, str, Any]]
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # of s3://, as Path shortens it
_KEY = re.compile(r"[A-Za-z0-9_=+@~-][A-Za-z0-9_.=+@~-]*")


class RunStore:
    """The files of one run.

    Args:
        directory: the run's directory; nothing is created before something is written.

    Raises:
        InputError: it is a file, or an address.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        if _ADDRESS.match(str(directory)):
            raise InputError(f"{directory} is an address; a run needs a directory of a file system")
        if self.directory.is_file():
            raise InputError(f"{self.directory} is a file; a run needs a directory")

    def __repr__(self) -> str:
        return f"RunStore({str(self.directory)!r})"

    def path(self, *parts: str) -> Path:
        """Where something of the run lies: the only way to its files, for all that read or write them.

        Raises:
            LinkError: a link in the run leads out of it.
        """
        return inside(self.directory, *parts)

    @property
    def suite(self) -> Path:
        """The suite as it was resolved."""
        return self.path("suite.toml")

    @property
    def environment(self) -> Path:
        """What the run depended on."""
        return self.path("environment.json")

    @property
    def examples(self) -> Path:
        """The folder of images."""
        return self.path("examples")

    @property
    def samples(self) -> Path:
        """The folder of rows."""
        return self.path("samples")

    @property
    def matrix(self) -> Path:
        """The transferability matrix."""
        return self.path("matrix.parquet")

    @property
    def leaderboard(self) -> Path:
        """The leaderboard."""
        return self.path("leaderboard.parquet")

    @classmethod
    def open(cls, directory: Path | str) -> RunStore:
        """The store of a run that exists. Raises InputError when there is none."""
        store = cls(directory)
        if not store.directory.is_dir():
            raise InputError(f"{store.directory} does not exist; give the directory of a run")
        inside = sorted(path.parent.name for path in store.directory.glob("*/suite.toml"))
        if not store.has_cells() and (inside or not store.suite.is_file()):
            why = "of attacks" if store.suite.is_file() else "(neither suite.toml nor samples/)"
            which = f"; give one of the runs in it: {', '.join(inside)}" if inside else ""
            raise InputError(f"{store.directory} holds no run {why}{which}")
        return store

    def has_cells(self) -> bool:
        """Whether there is a folder of samples or of images: the directory is a run of attacks then."""
        return self.samples.is_dir() or self.examples.is_dir()

    def examples_path(self, cell: str) -> Path:
        """Where the images of a cell lie."""
        return self.path("examples", f"{_checked('cell', cell, dots=False)}.parquet")

    def samples_path(self, cell: str, target_key: str) -> Path:
        """Where the rows of a cell for one target lie; in the key: letters, digits, ``_.=+@~-``."""
        target_key = _checked("target key", target_key, dots=True)
        return self.path("samples", pair_file(_checked("cell", cell, dots=False), target_key))

    def write_samples(self, rows: Mapping[tuple[str, str], pa.Table]) -> Path:
        """Write rows of some cells for some targets as one file, whole or not at all.

        Args:
            rows: by cell and target key. The same pairs make the same name.
        """
        pairs = sorted(rows, key=lambda pair: pair_file(*pair))
        if len(pairs) == 1:
            path, table = self.samples_path(*pairs[0]), rows[pairs[0]]
        else:
            counts = [[*pair, rows[pair].num_rows] for pair in pairs]
            path = self.path("samples", f"group-{value_digest(pairs, 32)}.parquet")
            whole = pa.concat_tables([rows[pair] for pair in pairs]).combine_chunks()
            table = schema.with_metadata(whole, pairs=counts)
        write_table(path, table)
        return path

    def read_rows(self, piece: Piece) -> pa.Table:
        """The rows of one cell for one target, with all bytes of their file checked."""
        return rows_of(read_table(self.path("samples", piece.file), "samples"), piece)

    def refuse(self, name: str) -> NoReturn:
        """Raise CorruptFile, with the reason, for a damaged file of rows."""
        path = self.path("samples", name)
        read_table(path, "samples")
        raise CorruptFile(path, "it does not say whose rows it holds")

    def drop(self, cells: Collection[str], listing: Listing) -> None:
        """Remove the rows of some cells, and damaged files that do not say whose rows they hold."""
        stale = set(cells)
        for name in listing.damaged:
            pair = named_pair(name)
            if pair is None or pair[0] in stale:
                self._remove("samples", name)
        for name, pieces in listing.files.items():
            if stale.isdisjoint(piece.cell for piece in pieces):
                continue
            kept = {(p.cell, p.key): p for p in pieces if p.cell not in stale}
            if kept:
                table = read_table(self.path("samples", name), "samples")
                self.write_samples({pair: rows_of(table, p) for pair, p in kept.items()})
            self._remove("samples", name)

    def _remove(self, *parts: str) -> None:
        path = self.path(*parts)
        with os_errors("remove", path):
            path.unlink(missing_ok=True)

    def cells(self) -> list[str]:
        """The cells that were crafted, sorted; a file with its final name is whole."""
        return [name.removesuffix(".parquet") for name in parquet_files(self.directory, "examples")]

    def listing(self, *, index: bool = True) -> Listing:
        """What the run holds, from one look at its folders.

        Args:
            index: whether to believe the index about files that it knows, and to write it when it is old.
        """
        return look(self.directory, index)

    def evaluated(self) -> set[tuple[str, str]]:
        """The (cell, target key) pairs that were evaluated, those of damaged files included."""
        found = self.listing(index=False)
        named = filter(None, map(named_pair, found.damaged))
        return {(cell, key) for cell, keys in found.rows.items() for key in keys}.union(named)

    def has_rows(self) -> bool:
        """Whether there are files of rows."""
        return bool(parquet_files(self.directory, "samples"))

    def read_samples(
        self,
        columns: Sequence[str] | None = None,
        cells: Collection[str] | None = None,
        filters: Filters | None = None,
        listing: Listing | None = None,
    ) -> pd.DataFrame:
        """All rows of ``samples``, by cell and key of the target, whatever files hold them.

        Args:
            columns: those wanted; None is all of them.
            cells: only these cells; None is all of them.
            filters: only rows that fit: a value or several for each column, or pyarrow's
                ``[("linf", "<", 0.1), ...]``.
            listing: what the run holds; looked up without.

        Returns:
            Strings that repeat (``schema.samples``' suite, attack, target ...) as categories,
            ``target_label`` as nullable Int64.

        Raises:
            CorruptFile: naming the file whose bytes are not those that were written.
            InputError: an unknown column, or filters that do not fit the columns.
        """
        for name in (*(columns or ()), *_filtered(filters)):
            if name not in schema.SAMPLES.names:
                raise unknown("column", name, schema.SAMPLES.names)
        wanted = None if cells is None else set(cells)
        listing = listing or look_at_rows(self.directory, _of(wanted))
        for name in listing.damaged:
            if wanted is None or name.partition(".")[0] in wanted:
                self.refuse(name)
        pieces = listing.ordered(wanted)
        paths = [self.path("samples", name) for name in sorted({piece.file for piece in pieces})]
        names = list(columns) if columns is not None else schema.SCHEMAS["samples"].names
        try:
            table = _scan(self.samples, listing.files, pieces, names, filters)
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            for path in paths:  # find out which: the scan does not say
                read_table(path, "samples")
            if filters:
                raise InputError(f"the filters do not fit the samples: {first_line(error)}") from error
            raise
        for name in names:
            field = table.schema.field(name)
            if not field.nullable and table.column(name).null_count:
                for path in paths:
                    read_metadata(path, "samples")
                raise RunError(f"{self.samples}: column '{name}' holds nulls")
        return _framed(table)

    def a_piece_of_each(self) -> list[Piece]:
        """Rows of every target, of the first cell that has some, from as few files as that takes.

        Raises:
            CorruptFile: one of these files is damaged.
        """
        first: dict[str, str] = {}
        for name in parquet_files(self.directory, "samples"):
            pair = named_pair(name)
            first.setdefault(name if pair is None else pair[1], name)
        found = look_at_rows(self.directory, set(first.values()).__contains__)
        for name in found.damaged:
            self.refuse(name)
        pieces: dict[str, Piece] = {}
        for piece in found.ordered():
            pieces.setdefault(piece.key, piece)
        return list(pieces.values())

    def read_cells(self) -> pd.DataFrame:
        """One row per crafted cell: ``cell``, ``samples`` (rows) and ``schema.CELL_FIELDS``."""
        import pandas as pd

        paths = [self.path("examples", name) for name in parquet_files(self.directory, "examples")]
        with ThreadPoolExecutor(8) as pool:
            footers = list(pool.map(lambda path: read_metadata(path, "examples"), paths))
        rows = [
            {"cell": path.stem, "samples": count, **cell_of(path, metadata)}
            for path, (metadata, count) in zip(paths, footers, strict=True)
        ]
        columns = ["cell", "samples", *schema.CELL_FIELDS, *schema.CELL_EXTRAS]
        frame: pd.DataFrame = pd.DataFrame(rows or None, columns=columns)
        return frame

    def current(self, path: Path) -> bool:
        """Whether a file was written after all samples and examples of the run, by the times of the files."""
        with os_errors("read", path):
            written = path.stat().st_mtime_ns
        below = (parquet_files(self.directory, folder) for folder in ("samples", "examples"))
        return all(time <= written for each in below for _, time in each.values())

    def clean(self) -> int:
        """Removes what killed runs left half-written or claimed, counts it; for the lock's holder only."""
        leftovers = [
            path for folder in (self.directory, self.examples, self.samples)
            if folder.is_dir() for path in folder.glob("*.tmp")
        ]
        leftovers += self.claims()
        for path in leftovers:
            with os_errors("remove", path):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path(CLAIMS).rmdir()
        return len(leftovers)

    @contextlib.contextmanager
    def lock(self) -> Iterator[RunStore]:
        """Keeps every other process from writing here, and cleans up after those that were killed.

        Raises:
            InputError: when another process is at work here, or its folders are links.
        """
        self._refuse_links()
        with locked(self.directory):
            self.clean()
            yield self

    @contextlib.contextmanager
    def share(self) -> Iterator[RunStore]:
        """Keeps every process from writing here that does not share the run. Raises as `lock`."""
        self._refuse_links()
        with locked(self.directory, shared=True):
            yield self

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For a short time, keeps those that share the run from changing what is not claimed; they wait."""
        with locked(self.directory, ".alone", wait=True):
            yield

    def claim(self, name: str) -> contextlib.AbstractContextManager[bool]:
        """Claim a piece of work among those that share the run: see `advens.results.store.lock.claimed`."""
        return claimed(self.path(CLAIMS, _checked("claim", name, dots=True)))

    def claims(self) -> list[Path]:
        """The claims that are held, or were left by processes that died."""
        folder = self.path(CLAIMS)
        with os_errors("read", folder):
            return sorted(folder.iterdir()) if folder.is_dir() else []

    def release(self, claims: Collection[Path]) -> list[Path]:
        """Remove those of some claims whose holders died, after watching them for a while; returns these."""
        dead = silent(claims)
        for path in dead:
            with os_errors("remove", path):
                path.unlink(missing_ok=True)
        return dead

    def _refuse_links(self) -> None:
        for folder in (self.examples, self.samples):
            if folder.is_symlink():
                raise InputError(f"{folder} is a link; the folders of a run are its own")


def _of(cells: set[str] | None) -> Callable[[str], bool] | None:
    """Which files of rows may hold some cells', by name: a file of several pairs may."""
    return None if cells is None else lambda name: (named_pair(name) or (None,))[0] in {*cells, None}


def _scan(
    directory: Path, files: Mapping[str, Sequence[Piece]], pieces: Sequence[Piece], columns: list[str],
    filters: Filters | None,
) -> pa.Table:  # fmt: skip
    """The rows of pieces, one after the other; strings that repeat are dictionaries, in order of appearance.

    Args:
        directory: of the files.
        files: all pieces of every file, by its name.
    """
    import numpy as np
    import pyarrow.dataset as ds  # imports pandas, which listing files does not need

    coded = (*REPEATED, "sample_id")
    wanted = pa.schema([
        field.with_type(pa.dictionary(pa.int32(), field.type)) if field.name in coded else field
        for field in schema.SCHEMAS["samples"]
    ])
    layout = ds.ParquetFileFormat(
        dictionary_columns=list(coded),
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(
            page_checksum_verification=True
        ),
    )
    read = list(dict.fromkeys([*columns, *_filtered(filters)]))
    chosen = pq.filters_to_expression(_tuples(filters)) if filters else None
    ranks: dict[str, list[tuple[int, Piece]]] = {}
    for rank, piece in enumerate(pieces):
        ranks.setdefault(piece.file, []).append((rank, piece))
    parts, places = [wanted.empty_table().select(columns)], [np.zeros(0, np.int64)]
    for names in _batches(files, sorted(ranks)):
        paths = [str(directory / name) for name in names]
        table = ds.dataset(paths, schema=wanted, format=layout).to_table(columns=read)
        owner = np.concatenate([_owners(files[name], ranks[name]) for name in names])
        if len(owner) != table.num_rows:
            raise ValueError("a file was written while it was read")
        table = table.append_column("place", pa.array(owner)).filter(pc.field("place") >= 0)
        if chosen is not None:
            table = table.filter(chosen)
        places.append(table.column("place").to_numpy())
        parts.append(table.select(columns))
    table, place = pa.concat_tables(parts).unify_dictionaries(), np.concatenate(places)
    if len(place) and (np.diff(place) < 0).any():
        table = table.take(pa.array(np.argsort(place, kind="stable")))
    return table


def _batches(files: Mapping[str, Sequence[Piece]], names: Sequence[str]) -> Iterator[list[str]]:
    """Files that are read at once: those of about so many rows, before filters."""
    batch, rows = [], 0
    for name in names:
        batch.append(name)
        rows += files[name][-1].stop
        if rows >= BATCH_ROWS:
            yield batch
            batch, rows = [], 0
    if batch:
        yield batch


def _owners(every: Sequence[Piece], wanted: Sequence[tuple[int, Piece]]) -> Any:
    """The place of the piece of every row of a file; -1 where it is not wanted."""
    import numpy as np

    owner = np.full(every[-1].stop, -1, np.int64)
    for place, piece in wanted:
        owner[piece.start : piece.stop] = place
    return owner


def _framed(table: pa.Table) -> pd.DataFrame:
    """A table of rows for pandas: strings that repeat as categories, in order of appearance."""
    import pandas as pd

    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    for name in frame.columns[frame.dtypes == "category"]:
        seen = pd.unique(frame[name].cat.codes)
        categories = frame[name].cat.categories[seen[seen >= 0]]
        if not categories.equals(frame[name].cat.categories):
            frame[name] = frame[name].cat.set_categories(categories)
    if "sample_id" in frame:
        frame["sample_id"] = frame["sample_id"].astype(frame["sample_id"].cat.categories.dtype)
    if "target_label" in frame:
        frame["target_label"] = frame["target_label"].astype("Int64")
    return frame


def _tuples(filters: Filters) -> Sequence[tuple[str, str, Any]]:
    """Filters as pyarrow takes them."""
    if not isinstance(filters, Mapping):
        return filters
    several = (list, tuple, set, frozenset)
    return [
        (name, "in", list(value)) if isinstance(value, several) else (name, "==", value)
        for name, value in filters.items()
    ]


def _filtered(filters: Filters | None) -> list[str]:
    """The columns that filters are about."""
    return [name for name, *_ in _tuples(filters)] if filters else []


def rows_of(table: pa.Table, piece: Piece) -> pa.Table:
    """The rows of a piece, of the table in its file."""
    told = {k: v for k, v in table.schema.metadata.items() if k not in (schema.PAIRS, schema.ROWS)}
    return table.slice(piece.start, piece.stop - piece.start).replace_schema_metadata(told)


def _checked(what: str, value: str, dots: bool) -> str:
    if not _KEY.fullmatch(value) or (not dots and "." in value):
        raise InputError(f"{what} '{value}' cannot be part of a file name")
    return value
