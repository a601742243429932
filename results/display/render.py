"""Boards as people and programs read them, from their declarations: terminal, markdown, LaTeX, csv, json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from advens.errors import unknown
from advens.printable import markdown, printable
from advens.results.boards import BOARDS, Board
from advens.results.columns import Column, matches
from advens.results.display import text
from advens.results.display.blocks import TextColumn, caption, split, stacked, text_of
from advens.results.display.matrix import matrix_columns, matrix_parts
from advens.results.formats import fold, shorten

_NAME = 14
"""Characters of a name above a column on one line."""


@dataclass(frozen=True)
class Part:
    """One of the tables of a board.

    Args:
        title: above it; empty when the board is one table.
        keys: the columns that say which row it is.
        columns: the others.
    """

    title: str
    keys: tuple[TextColumn, ...]
    columns: tuple[TextColumn, ...]


def render_board(
    name: str, frame: pd.DataFrame, format: str = "table", width: int | None = None
) -> str:
    """A board as text.

    Args:
        name: of the board.
        frame: what it holds, as it was computed or read.
        format: ``table`` (at most ``width`` characters, 80 by default), ``csv``, ``json``,
            ``markdown``, ``latex``.

    Raises:
        InputError: for another format.
    """
    if format == "table":
        return text_of(board_parts(name, frame, width or 80), width or 80)
    if format == "csv":
        return text.as_csv(frame)
    if format == "json":
        return text.as_json(frame)
    if format == "markdown":
        return _markdown(BOARDS.get(name), frame)
    if format == "latex":
        return _latex(BOARDS.get(name), frame)
    raise unknown("format", format, text.FORMATS)


def board_parts(name: str, frame: pd.DataFrame, width: int) -> list[RenderableType]:
    """A board and its caption for a terminal of that width, as rich renderables."""
    board = BOARDS.get(name)
    if board.layout == "matrix":
        return matrix_parts(frame, width)
    lines = board.caption(frame)
    if board.layout == "columns":
        return [_turned(board, frame), *caption(lines)]
    parts: list[RenderableType] = []
    for part in laid_out(board, frame):
        parts += [Text("")] * bool(parts)
        parts += [Text(printable(part.title), style="bold")] * bool(part.title)
        parts += stacked(split(part.keys, part.columns, width))
    return [*parts, *caption(lines)]


def laid_out(board: Board, frame: pd.DataFrame, folded: bool = True) -> list[Part]:
    """The tables of a board whose rows are lines.

    Args:
        folded: whether long names may be broken into several lines.
    """
    if not board.tables:
        return [_part(board, frame, "", folded)]
    groups = frame.groupby(board.tables, sort=False)
    return [_part(board, rows, str(name), folded) for name, rows in groups]


def _part(board: Board, frame: pd.DataFrame, title: str, folded: bool) -> Part:
    shown = _shown(board, frame)
    texts = {name: _text(frame, name, column, folded, board.once) for name, column in shown.items()}
    keys = tuple(texts.pop(name) for name in board.keys if name in texts)
    return Part(title, keys, tuple(texts.values()))


def _text(
    frame: pd.DataFrame, name: str, column: Column, folded: bool, once: Sequence[str]
) -> TextColumn:
    cells = tuple(column.format.cells(frame, name, folded))
    return TextColumn(column.title(name), cells, right=column.format.right, once=name in once)


def _shown(board: Board, frame: pd.DataFrame) -> dict[str, Column]:
    """The columns that people read, in their order."""
    layout, found = board.table, {}
    for name in map(str, frame.columns):
        column = layout.column(name)
        if column is None or column.header is None:
            continue
        if column.when == "several" and frame[name].nunique() < 2:
            continue
        if column.when == "known" and not _known(frame, name):
            continue
        if column.unless and _known(frame, column.unless):
            continue
        found[name] = column

    def place(name: str) -> int:
        order = [k for k, pattern in enumerate(board.order) if matches(pattern, name)]
        return order[0] if order else len(board.order)

    return {name: found[name] for name in sorted(found, key=place)}


def _known(frame: pd.DataFrame, name: str) -> bool:
    """Whether a column is there and holds anything; empty text is nothing."""
    return name in frame and bool((frame[name].notna() & (frame[name].astype(str) != "")).any())


def _sideways(board: Board, frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a board that has a column for every row and a line for every column."""
    (key,) = board.keys
    lines = [
        [column.title(name), *column.format.cells(frame, name, folded=False)]
        for name, column in _shown(board, frame).items()
    ]
    return ["", *_short([str(name) for name in frame[key]])], lines


def _turned(board: Board, frame: pd.DataFrame) -> Table:
    header, lines = _sideways(board, frame)
    made = Table(box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(header):
        made.add_column(Text(fold(name, _NAME)), justify="right" if k else "left", overflow="fold")
    for line in lines:
        made.add_row(*(Text(printable(cell)) for cell in line))
    return made


def _short(names: Sequence[str]) -> list[str]:
    """Names without the source and the folder that all share."""
    short = shorten(names)
    last = [name.rpartition("/")[2] for name in short]
    return last if len(set(last)) == len(last) else short


def _markdown(board: Board, frame: pd.DataFrame) -> str:
    if board.layout == "matrix":
        columns, lines = matrix_columns(frame)
        return text.columns_as_markdown(columns, lines)
    lines = board.caption(frame)
    if board.layout == "columns":
        return text.as_markdown(*_sideways(board, frame), lines)
    blocks = []
    for part in laid_out(board, frame, folded=False):
        blocks += [f"**{markdown(part.title)}**"] * bool(part.title)
        blocks.append(text.columns_as_markdown([*part.keys, *part.columns]).rstrip("\n"))
    return "\n\n".join([*blocks, *map(markdown, lines)]) + "\n"


def _latex(board: Board, frame: pd.DataFrame) -> str:
    if board.layout == "matrix":
        columns, lines = matrix_columns(frame, short=True)
        keys = [column for column in columns if not column.right]
        return text.as_latex(keys, [c for c in columns if c.right], lines, board.name)
    lines = board.caption(frame)
    if board.layout == "columns":
        header, rows = _sideways(board, frame)
        cells = zip(*rows, strict=True)
        first, *others = [TextColumn(name, each) for name, each in zip(header, cells, strict=True)]
        return text.as_latex([replace(first, right=False)], others, lines, board.name)
    parts = laid_out(board, frame, folded=False)
    numbers = [f"-{k}" for k in range(1, len(parts) + 1)] if len(parts) > 1 else [""]
    return "\n".join(
        text.as_latex(part.keys, part.columns, lines, board.name + number, part.title)
        for part, number in zip(parts, numbers, strict=True)
    )
