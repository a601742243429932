"""Tables that fit: columns that do not go side by side go below each other, keys repeated."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from advens.printable import printable


@dataclass(frozen=True)
class TextColumn:
    """A header and one cell per row.

    Args:
        styles: one rich style per cell; empty is none.
        once: of a key: left out where the keys are repeated.
    """

    header: str
    cells: tuple[str, ...]
    right: bool = True
    styles: tuple[str, ...] = ()
    once: bool = False


def fits(keys: Sequence[TextColumn], columns: Sequence[TextColumn], width: int) -> bool:
    """Whether the table is at most ``width`` characters wide."""
    wide = Console(width=10_000, file=io.StringIO())
    return Measurement.get(wide, wide.options, table(keys, columns)).maximum <= width


def split(keys: Sequence[TextColumn], columns: Sequence[TextColumn], width: int) -> list[Table]:
    """As few tables as fit, each with the keys; at least one column in each.

    Keys that are shown once are in the first table only.
    """
    tables, start = [], 0
    while start < len(columns):
        stop = start + 1
        while stop < len(columns) and fits(keys, columns[start : stop + 1], width):
            stop += 1
        tables.append(table(keys, columns[start:stop]))
        keys = [key for key in keys if not key.once]
        start = stop
    return tables


def table(keys: Sequence[TextColumn], columns: Sequence[TextColumn]) -> Table:
    """A table; names are plain text, never markup."""
    drawn = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True,
        header_style="bold",
    )
    everything = [*keys, *columns]
    for column in everything:
        drawn.add_column(
            Text(_shown(column.header)), justify="right" if column.right else "left", overflow="fold",
        )
    for k in range(len(everything[0].cells)):
        drawn.add_row(*[
            Text(_shown(column.cells[k]), style=column.styles[k] if column.styles else "")
            for column in everything
        ])
    return drawn


def stacked(tables: Sequence[RenderableType]) -> list[RenderableType]:
    """Tables below each other, with a blank line between two."""
    spaced: list[RenderableType] = []
    for k, part in enumerate(tables):
        spaced += [Text(""), part] if k else [part]
    return spaced


def caption(lines: Sequence[str]) -> list[RenderableType]:
    """The lines below a table, after a blank one."""
    return [Text(""), *(Text(printable(line), style="italic") for line in lines)] if lines else []


def _shown(cell: str) -> str:
    """A cell of several lines, each printable."""
    return "\n".join(map(printable, cell.split("\n")))


def text_of(parts: Sequence[RenderableType], width: int) -> str:
    """What the parts look like on a plain terminal of that width."""
    console = Console(width=width, file=io.StringIO(), color_system=None, force_terminal=False)
    for part in parts:
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"
