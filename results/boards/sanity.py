"""The sanity report of a run: whether each model reacts to attacks as one whose gradients can be trusted.

``sanity.parquet`` holds a row for a model and a check, ``curves.parquet`` the accuracy that a gradient attack
leaves as its radius, its steps or its restarts grow. Both are measured, not computed from other tables. A run
whose report was switched off holds a ``sanity.parquet`` without rows that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from advens.files import inside
from advens.results.boards.board import Board, declare, path_of, read_board, to_table
from advens.results.boards.defenses import WHITE_BOX
from advens.results.boards.rows import NoRows, Rows
from advens.results.columns import BOOL, INT, REAL, TEXT, Column
from advens.results.formats import LABEL, Flag, Number, Plain
from advens.results.store import write_table

CHECKS = (
    Column("model", TEXT, "model that was checked", header="model", format=Plain(short=True)),
    Column("check", TEXT, "what was checked", header="check", format=Plain(LABEL)),
    Column("passed", BOOL, "the check passed", header="passed", format=Flag()),
    Column("value", REAL, "what was measured: images, of randomized ensembles in expectation", unit="image",
           header="value", format=Number()),
    Column("bound", REAL, "up to here the check passes; beyond, where chance plays a part, a test decides",
           unit="image", header="bound", format=Number()),
    Column("detail", TEXT, "the numbers in words, and warnings", header="detail", format=Plain(40)),
)  # fmt: skip
CURVES = (
    Column("model", TEXT, "model that was attacked", header="model", format=Plain(short=True)),
    Column("curve", TEXT, "setting that grows: eps, steps or restarts", header="curve"),
    Column("at", REAL, "its value; 0 stands for the clean images", header="at", format=Number()),
    Column("accuracy", REAL, "over all images, under a gradient attack with this setting", unit="fraction",
           header="accuracy", format=Number()),
    Column("n", INT, "images", unit="image"),
)  # fmt: skip
OFF = "off"
"""Entry of the metadata of a report that was switched off."""


def write_sanity(
    directory: Path, checks: Iterable[Mapping[str, Any]], curves: Iterable[Mapping[str, Any]], off: bool
) -> None:
    """Writes both tables of a run."""
    for name, rows, columns in (("curves", curves, CURVES), ("sanity", checks, CHECKS)):
        frame: pd.DataFrame = pd.DataFrame([dict(row) for row in rows], columns=[c.name for c in columns])
        about = {OFF: True} if off and name == "sanity" else {}
        write_table(inside(directory, f"{name}.parquet"), to_table(name, frame, **about))


def sanity_lines(frame: pd.DataFrame) -> list[str]:
    """A line for every model, for people. Failed checks have lines of their own: see `failed_lines`."""
    if frame.attrs.get(OFF):
        return ["sanity: switched off; whether gradients of these models can be trusted was not checked"]
    return [
        f"sanity: {model}: {int(found['passed'].sum())} of {len(found)} checks passed"
        for model, found in frame.groupby("model", sort=False)
    ]


def sanity_of(directory: Path) -> list[str]:
    """These lines for a run, or for the white-box run in a folder of defenses; none without a report."""
    for place in (directory, inside(directory, WHITE_BOX)):
        if (place / "sanity.parquet").is_file():
            return sanity_lines(read_board(place, "sanity"))
    return []


def failed_lines(frame: pd.DataFrame) -> list[str]:
    """A line for every check that failed."""
    failed = frame[~frame["passed"]]
    return [f"{row.model}: check '{row.check}' failed: {row.detail}" for row in failed.itertuples()]


def _stored(name: str) -> Callable[[Rows], pd.DataFrame]:
    def read(rows: Rows) -> pd.DataFrame:
        board = BOARDS_OF_SANITY[name]
        if not path_of(rows.directory, board).is_file():
            raise NoRows(f"{rows.directory} holds no {board.file}; it is measured, not computed")
        return read_board(rows.directory, name)

    return read


BOARDS_OF_SANITY = {
    board.name: declare(board) for board in (
        Board(
            "sanity", "checks that gradient attacks can measure a model", CHECKS, _stored("sanity"),
            below="the models", about={OFF: False}, caption=sanity_lines, keys=("model", "check"),
        ),
        Board(
            "curves", "accuracy of a model as the radius, steps or restarts of an attack grow", CURVES,
            _stored("curves"), below="the models", keys=("model", "curve", "at"),
        ),
    )
}  # fmt: skip
