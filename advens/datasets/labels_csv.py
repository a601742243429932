"""``csv:PATH``: a labels.csv beside ``images/``, as the NIPS 2017 set is laid out.

Columns: ``filename``, ``label`` and, if wanted, ``targeted_label``; others are passed over. The
option ``label_offset=1`` is subtracted from both, since NIPS 2017 counts its classes from 1.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from advens.datasets.files import FileSource
from advens.datasets.folder import inside, nearby
from advens.datasets.source import Integers
from advens.errors import InputError, nearest

NAME, LABEL, TARGET = "filename", "label", "targeted_label"


def load(path: str, label_offset: str = "0") -> FileSource:
    """The images that a labels.csv lists; ids are the file names as written there.

    Files lie in ``images/`` beside the csv file, or beside it where there is no such folder. The
    number of classes is one more than the largest label of the whole file.

    Args:
        path: the folder that holds labels.csv, or a csv file.
        label_offset: what the file's first class is called.

    Raises:
        InputError: the file, a column or an image is missing, a label is not a class, a name is there
            twice, or leads out of the folder.
    """
    file = _table_path(path)
    rows = _read(file)
    names = [row[NAME].strip() for _, row in rows]
    labels = _classes(file, rows, LABEL, label_offset)
    has_targets = TARGET in rows[0][1]
    targets = _classes(file, rows, TARGET, label_offset) if has_targets else None
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
        given = given / "labels.csv"
        if not given.is_file():
            others = sorted(given.parent.glob("*.csv"))
            hint = f"; did you mean 'csv:{others[0]}'?" if others else ""
            raise InputError(f"folder '{path}' has no labels.csv{hint}")
    if not given.is_file():
        raise InputError(f"csv file or folder '{path}' does not exist{nearby(given)}")
    return given


def _read(file: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of every row that is not blank."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, restval="", skipinitialspace=True)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            for column in (NAME, LABEL):
                if column not in columns:
                    raise InputError(f"{file} has no column '{column}'{nearest(column, columns)}")
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{file} is not a readable csv file: {error}") from error
    if not rows:
        raise InputError(f"{file} lists no images")
    return rows


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
