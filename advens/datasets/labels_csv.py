"""``csv:PATH``: images with labels in a table, also as the NIPS 2017 set is laid out.

A ``labels.csv`` beside ``images/`` has the columns ``filename``, ``label`` and, if wanted,
``targeted_label``, whose classes count from ``label_offset`` (0). The ``images.csv`` of NIPS 2017 has
``ImageId`` (of the file ``ImageId.png``), ``TrueLabel`` and ``TargetClass``, whose classes count from 1.
Other columns are passed over.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from advens.datasets.files import FileSource
from advens.datasets.folder import inside, nearby
from advens.datasets.source import Integers
from advens.errors import InputError, nearest

TABLES = ("labels.csv", "images.csv")


@dataclass(frozen=True)
class Layout:
    """How a table is written.

    Args:
        name, label, target: its columns; the last need not be there.
        suffix: of the files, where names are without.
        first: what its first class is called.
    """

    name: str
    label: str
    target: str
    suffix: str
    first: str


LABELS = Layout("filename", "label", "targeted_label", "", "0")
NIPS2017 = Layout("ImageId", "TrueLabel", "TargetClass", ".png", "1")


def load(path: str, label_offset: str | None = None) -> FileSource:
    """The images that a table lists; ids are their file names.

    Files lie in ``images/`` beside the csv file, or beside it where there is no such folder. The
    number of classes is one more than the largest label of the whole file.

    Args:
        path: the folder that holds labels.csv or images.csv, or a csv file.
        label_offset: what the file's first class is called; as the layout has it by default.

    Raises:
        InputError: the file, a column or an image is missing, a label is not a class, a name is there
            twice, or leads out of the folder.
    """
    file = _table_path(path)
    rows, layout = _read(file)
    names = [row[layout.name].strip() + layout.suffix for _, row in rows]
    first = layout.first if label_offset is None else label_offset
    labels = _classes(file, rows, layout.label, first)
    has_targets = layout.target in rows[0][1]
    targets = _classes(file, rows, layout.target, first) if has_targets else None
    root = file.parent / "images" if (file.parent / "images").is_dir() else file.parent
    inside(file.parent, root)
    seen: dict[str, int] = {}
    folders: set[Path] = set()
    for (line, _), name in zip(rows, names, strict=True):
        if name in seen:
            raise InputError(f"{file} line {line}: '{name}' is on line {seen[name]} already")
        seen[name] = line
        try:
            _below(root, name, folders)
        except InputError as error:
            raise InputError(f"{file} line {line}: {error}") from None
    largest = max(int(labels.max()), int(targets.max()) if targets is not None else 0)
    return FileSource(root, tuple(names), labels, largest + 1, None, targets)


def _below(root: Path, name: str, known: set[Path]) -> None:
    """Raise InputError unless a name is of a regular file below a folder.

    Args:
        known: folders that were found to be inside, to ask once for each.
    """
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise InputError(f"image '{name}' leads out of '{root}'; data stay in their folder")
    if not path.exists():
        raise InputError(f"image '{path}' does not exist{nearby(path)}")
    if path.parent not in known:
        inside(root, path.parent)
        known.add(path.parent)
    if path.is_symlink():
        inside(root, path)
    if not path.is_file():
        raise InputError(f"image '{path}' is not a regular file")


def _table_path(path: str) -> Path:
    given = Path(path).expanduser()
    if given.is_dir():
        found = [given / table for table in TABLES if (given / table).is_file()]
        if not found:
            others = sorted(given.glob("*.csv"))
            hint = f"; did you mean 'csv:{others[0]}'?" if others else ""
            raise InputError(f"folder '{path}' has neither labels.csv nor images.csv{hint}")
        given = found[0]
    if not given.is_file():
        raise InputError(f"csv file or folder '{path}' does not exist{nearby(given)}")
    return given


def _read(file: Path) -> tuple[list[tuple[int, dict[str, str]]], Layout]:
    """(line number, row) of every row that is not blank, and how the table is written."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="", skipinitialspace=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            layout = NIPS2017 if NIPS2017.name in columns and LABELS.name not in columns else LABELS
            for column in (layout.name, layout.label):
                if column not in columns:
                    raise InputError(f"{file} has no column '{column}'{nearest(column, columns)}")
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{file} is not a readable csv file: {error}") from error
    if not rows:
        raise InputError(f"{file} lists no images")
    return rows, layout


def _classes(
    file: Path, rows: list[tuple[int, dict[str, str]]], column: str, label_offset: str
) -> Integers:
    try:
        offset = int(label_offset)
    except ValueError:
        raise InputError(f"label_offset = '{label_offset}' is not a whole number") from None
    values = np.empty(len(rows), np.int64)
    for i, (line, row) in enumerate(rows):
        try:
            values[i] = int(row[column]) - offset
        except (ValueError, OverflowError):
            raise InputError(
                f"{file} line {line}: {column} '{row[column]}' is not a whole number"
            ) from None
        if values[i] < 0:
            minus = f" minus label_offset {offset}" if offset else ""
            raise InputError(f"{file} line {line}: {column} {row[column]}{minus} is negative")
    return values
