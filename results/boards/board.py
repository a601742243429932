"""Boards: tables that are computed from the rows of a run, each declared once and found by name.

A board is a file of its directory, sealed as samples and examples are. It can be written, read with every
byte checked, and computed again to see whether the file says what the rows say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from advens.errors import InputError, RunError, first_line
from advens.files import inside
from advens.registry import Info, Registry
from advens.results.columns import Column, Layout
from advens.results.store import CorruptFile, read_table, schema, write_table
from advens.results.store.files import read_metadata

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from advens.results.boards.rows import Rows

RTOL = 1e-9
"""Numbers that differ by less, relatively, are the same: sums may be taken in another order."""


def no_caption(frame: pd.DataFrame) -> list[str]:
    """Nothing below the table."""
    return []


@dataclass(frozen=True)
class Board:
    """A table of a run.

    Args:
        name: how users call it.
        summary: one line: what its rows are.
        columns: its columns, in order; the first that matches a name declares it.
        compute: the table from the rows below it; raises `NoRows` when there are none. What it puts
            into ``attrs`` under the names of ``about`` is kept in the metadata of the file.
        below: what it is computed from, as ``the samples``.
        about: the entries of ``attrs``, with the values that are not written; an entry whose value
            here is text is text.
        remade: the commands that make the file.
        caption: the lines below the table that people read.
        layout: how people read it: a line for every row, the targets of a matrix side by side, or a
            column for every row.
        keys: columns that say which row it is, repeated when a table is broken into blocks.
        once: those of the keys that are not repeated.
        order: names or patterns in the order in which people read the columns; others follow.
        tables: the column by whose values the rows are put into tables of their own.
    """

    name: str
    summary: str
    columns: tuple[Column, ...]
    compute: Callable[[Rows], pd.DataFrame]
    below: str = "the samples"
    about: Mapping[str, Any] = field(default_factory=dict)
    remade: str = "'advens run'"
    caption: Callable[[pd.DataFrame], list[str]] = no_caption
    layout: Literal["rows", "matrix", "columns"] = "rows"
    keys: tuple[str, ...] = ()
    once: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    tables: str = ""

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.parquet"

    @property
    def table(self) -> Layout:
        """Its columns as a kind of parquet file."""
        return Layout(self.name, self.columns)


BOARDS: Registry[Board] = Registry("board", "advens.results.boards", "advens.boards")


def declare(board: Board) -> Board:
    """Make a board known by its name."""
    BOARDS.register(Info(board.name, summary=board.summary), board)
    return board


def write_board(directory: Path | str | Rows, name: str, **metadata: object) -> pd.DataFrame:
    """Computes a board and writes its file.

    Args:
        directory: of the run, or its `Rows`, which are then read once for several boards.
        metadata: kept in the file under ``advens.<name>``.

    Raises:
        InputError: an unknown name, no rows to compute it from, or a directory that cannot be written.
        RunError: a damaged file below.
    """
    rows, wanted = _rows(directory), BOARDS.get(name)
    frame = wanted.compute(rows)
    about = {key: frame.attrs.get(key) for key in wanted.about}
    kept = {key: value for key, value in about.items() if value != wanted.about[key]}
    write_table(path_of(rows.directory, wanted), to_table(name, frame, **kept | metadata))
    return frame


def path_of(directory: Path | str, board: Board) -> Path:
    """Where the file of a board lies. Raises LinkError for a link that leads out of the directory."""
    return inside(Path(directory), board.file)


def to_table(name: str, frame: pd.DataFrame, **metadata: object) -> pa.Table:
    """A board as its file holds it. Raises RunError for columns that are not those of the board."""
    return schema.to_table(BOARDS.get(name).table, frame, **metadata)


def read_board(directory: Path | str, name: str) -> pd.DataFrame:
    """The board that is stored in a directory, every byte checked; ``attrs`` as when it was computed.

    Raises:
        InputError: an unknown name, or there is no such file.
        CorruptFile: the file is damaged, or not sealed as files of older versions are not.
    """
    wanted = BOARDS.get(name)
    path, remedy = path_of(directory, wanted), f"{wanted.remade} and --out {directory}"
    if not path.is_file():
        raise InputError(f"{directory} holds no {wanted.file}; make it with {remedy}")
    try:
        return _frame(wanted, read_table(path, wanted.table))
    except CorruptFile as error:
        raise CorruptFile(path, error.why, f"make it again with {remedy}") from None
    except ValueError as error:
        raise CorruptFile(path, f"its metadata cannot be read ({first_line(error)})") from None


def suite_digest(directory: Path | str, name: str) -> str | None:
    """The digest of the suite that a stored board was computed for; None where no sound file names one."""
    wanted = BOARDS.get(name)
    try:
        metadata, _ = read_metadata(path_of(directory, wanted), wanted.table)
    except (RunError, InputError):
        return None
    return metadata.get(f"{schema.PREFIX}suite_digest".encode(), b"").decode(errors="replace") or None


def board_mismatches(directory: Path | str | Rows, name: str) -> list[str]:
    """What is wrong with a stored board, a line each: it must be what the rows below it give.

    Whole numbers and text are compared exactly, other numbers to a relative 1e-9. A file that is missing
    although there are rows is a mismatch, and so is one without rows below it, or one that cannot be read.
    """
    from advens.results.boards.rows import NoRows

    rows, wanted = _rows(directory), BOARDS.get(name)
    try:
        there = path_of(rows.directory, wanted).exists()
        frame = wanted.compute(rows)
        found = _frame(wanted, to_table(name, frame))
    except NoRows:
        return [f"{wanted.file}: no board of this kind follows from what is stored here"] * there
    except (RunError, InputError) as error:
        return [str(error)]
    except (KeyError, ValueError, TypeError) as error:  # tables below that fit their columns and no others
        return [f"{wanted.file}: {wanted.below} give none ({type(error).__name__}: {first_line(error)})"]
    if not there:
        return [f"{wanted.file} is missing"]
    try:
        stored = read_board(rows.directory, name)
    except (RunError, InputError) as error:
        return [str(error)]
    about = {key: frame.attrs.get(key, default) for key, default in wanted.about.items()}
    found.attrs = json.loads(json.dumps(about))
    return [
        f"{wanted.file} is not what {wanted.below} give: {difference}"
        for difference in _differences(stored, found)
    ]


def _rows(directory: Path | str | Rows) -> Rows:
    from advens.results.boards.rows import Rows

    return directory if isinstance(directory, Rows) else Rows(directory)


def _frame(wanted: Board, table: pa.Table) -> pd.DataFrame:
    """A table as a frame; whole numbers that may be missing are nullable integers."""
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True)
    for each in table.schema:
        if each.nullable and str(each.type).startswith("int"):
            frame[each.name] = table.column(each.name).to_pandas(integer_object_nulls=True).astype("Int64")
    metadata = table.schema.metadata or {}
    for key, default in wanted.about.items():
        text = metadata.get(f"{schema.PREFIX}{key}".encode())
        if text is None:
            frame.attrs[key] = default
        else:
            frame.attrs[key] = text.decode() if isinstance(default, str) else json.loads(text)
    return frame


def _differences(stored: pd.DataFrame, found: pd.DataFrame) -> Iterable[str]:
    """What differs between two frames of one board, a piece of a line each."""
    import numpy as np

    if list(stored) != list(found):
        yield f"its columns are {', '.join(stored)}, not {', '.join(found)}"
        return
    if len(stored) != len(found):
        yield f"{len(stored)} rows, not {len(found)}"
        return
    for name in found:
        if found[name].dtype.kind == "f":
            same = np.isclose(stored[name], found[name], rtol=RTOL, atol=0, equal_nan=True)
        else:
            none = stored[name].isna() & found[name].isna()
            same = ((stored[name] == found[name]).fillna(False) | none).to_numpy(bool)
        if not same.all():
            yield f"column '{name}', {int((~same).sum())} of {len(same)} rows"
    for key, value in found.attrs.items():
        if stored.attrs.get(key) != value:
            yield f"its entry '{key}' is another"
