"""Lists of named things on a terminal: columns of names, and a last one that wraps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def show(columns: Sequence[str], rows: Iterable[Sequence[object]], note: str = "") -> None:
    """Prints rows below a header; the last column is as wide as the terminal lets it be.

    Args:
        columns: the header.
        rows: one value for every column.
        note: a line below.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns, 1):
        table.add_column(column, no_wrap=number < len(columns))
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))  # plain text, never markup
    console = Console(highlight=False)
    console.print(table)
    if note:
        console.print(note, style="dim")
