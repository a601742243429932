"""A run directory: where its files lie, and how thousands of them are read as one table."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

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
from advens.results.store.lock import locked

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "CorruptFile", "RunStore", "is_whole", "read_cell", "read_table", "write_bytes",
    "write_examples", "write_table",
]

# the same few strings in every row: kept as dictionaries, which pandas calls categories
REPEATED = ("suite", "attack", "attack_params", "surrogates", "target", "cell", "target_family")
Filters = Mapping[str, Any] | Sequence[tuple[str, str, Any]]
_KEY = re.compile(r"[A-Za-z0-9_=+@~-][A-Za-z0-9_.=+@~-]*")


class RunStore:
    """The files of one run.

    Args:
        directory: the run's directory; nothing is created before something is written.

    Raises:
        InputError: it is a file.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
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
        return self.path("samples", f"{_checked('cell', cell, dots=False)}.{target_key}.parquet")

    def cells(self) -> list[str]:
        """The cells that were crafted, sorted; a file with its final name is whole."""
        return [path.stem for path in _parquet(self.examples)]

    def evaluated(self) -> set[tuple[str, str]]:
        """The (cell, target key) pairs that were evaluated."""
        names = (path.name.removesuffix(".parquet") for path in _parquet(self.samples))
        return {(cell, key) for cell, _, key in (name.partition(".") for name in names)}

    def read_samples(
        self,
        columns: Sequence[str] | None = None,
        cells: Collection[str] | None = None,
        filters: Filters | None = None,
    ) -> pd.DataFrame:
        """All rows of ``samples``, in the order of the file names.

        Args:
            columns: those wanted; None is all of them.
            cells: only these cells; None is all of them.
            filters: only rows that fit: a value or several for each column, or pyarrow's
                ``[("linf", "<", 0.1), ...]``.

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
        paths = [
            self.path("samples", path.name) for path in _parquet(self.samples)
            if wanted is None or path.name.partition(".")[0] in wanted
        ]
        names = list(columns) if columns is not None else schema.SCHEMAS["samples"].names
        try:
            table = _scan(paths, names, filters)
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
        frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
        if "target_label" in frame:
            frame["target_label"] = frame["target_label"].astype("Int64")
        return frame

    def read_cells(self) -> pd.DataFrame:
        """One row per crafted cell: ``cell``, ``samples`` (rows) and ``schema.CELL_FIELDS``."""
        import pandas as pd

        paths = [self.path("examples", path.name) for path in _parquet(self.examples)]
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
        below = (*_parquet(self.samples), *_parquet(self.examples))
        return all(each.stat().st_mtime_ns <= written for each in below)

    def clean(self) -> int:
        """Removes what killed runs left half-written, and counts it; for the lock's holder only."""
        leftovers = [
            path for folder in (self.directory, self.examples, self.samples)
            if folder.is_dir() for path in folder.glob("*.tmp")
        ]
        for path in leftovers:
            with os_errors("remove", path):
                path.unlink(missing_ok=True)
        return len(leftovers)

    @contextlib.contextmanager
    def lock(self) -> Iterator[RunStore]:
        """Keeps every other process from writing here, and cleans up after those that were killed.

        Raises:
            InputError: when another process is at work here, or its folders are links.
        """
        for folder in (self.examples, self.samples):
            if folder.is_symlink():
                raise InputError(f"{folder} is a link; the folders of a run are its own")
        with locked(self.directory):
            self.clean()
            yield self


def _scan(paths: Sequence[Path], columns: list[str], filters: Filters | None) -> pa.Table:
    import pyarrow.dataset as ds  # imports pandas, which listing files does not need

    wanted = pa.schema([
        field.with_type(pa.dictionary(pa.int32(), field.type)) if field.name in REPEATED else field
        for field in schema.SCHEMAS["samples"]
    ])
    if not paths:
        return wanted.empty_table().select(columns)
    layout = ds.ParquetFileFormat(
        dictionary_columns=list(REPEATED),
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(
            page_checksum_verification=True
        ),
    )
    dataset = ds.dataset([str(path) for path in paths], schema=wanted, format=layout)
    chosen = pq.filters_to_expression(_tuples(filters)) if filters else None
    return dataset.to_table(columns=columns, filter=chosen)


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


def _parquet(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if path.is_file()) if folder.is_dir() else []


def _checked(what: str, value: str, dots: bool) -> str:
    if not _KEY.fullmatch(value) or (not dots and "." in value):
        raise InputError(f"{what} '{value}' cannot be part of a file name")
    return value
