"""Boards as csv, json, markdown and LaTeX."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from advens.printable import latex, markdown, table_cell
from advens.results.display.blocks import TextColumn
from advens.results.formats import fold

FORMATS = ("table", "csv", "json", "markdown", "latex")
_PAGE = 120
"""Characters of a line of a page in LaTeX, with small letters."""
_HEADER = 12
"""Characters of a line of a header in LaTeX."""


def as_csv(frame: pd.DataFrame) -> str:
    """Every column, unrounded, with a header; text is no formula to a spreadsheet."""
    shown = frame.rename(columns=table_cell)
    for name in shown.columns:
        if not pd.api.types.is_numeric_dtype(shown[name]):
            shown[name] = shown[name].astype(object).map(table_cell, na_action="ignore")
    return str(shown.to_csv(index=False, lineterminator="\n"))


def as_json(frame: pd.DataFrame) -> str:
    """``{about, rows}``: the frame's attrs, and one object per row with null for nan."""
    return dump({"about": frame.attrs, "rows": frame.to_dict(orient="records")})


def dump(value: Any) -> str:
    """Indented JSON that is strict: nan becomes null."""
    return json.dumps(_plain(value), indent=2, allow_nan=False) + "\n"


def as_markdown(header: Sequence[str], rows: Iterable[Sequence[str]], lines: Iterable[str]) -> str:
    """A markdown table with its caption below; numbers to the right."""
    table = [header, ["---"] * len(header), *rows]
    text = ["| " + " | ".join(map(markdown, row)) + " |" for row in table]
    caption = "\n\n".join(map(markdown, lines))
    return "\n".join([*text, "", caption]) + "\n"


def columns_as_markdown(columns: Sequence[TextColumn], lines: Iterable[str] = ()) -> str:
    """`as_markdown` of columns."""
    rows = zip(*(column.cells for column in columns), strict=True)
    return as_markdown([column.header for column in columns], rows, lines)


def as_latex(
    keys: Sequence[TextColumn],
    columns: Sequence[TextColumn],
    lines: Iterable[str],
    name: str,
    title: str = "",
) -> str:
    """A table in LaTeX that needs the package booktabs alone, with its caption above.

    A table that is wider than a page is broken into several below each other, the keys repeated.

    Args:
        name: of its label.
        title: before the caption; empty for none.
    """
    repeated = [key for key in keys if not key.once]
    tables = [[*keys]]
    for column in columns:
        if len(tables[-1]) > len(keys) and _latex_width([*tables[-1], column]) > _PAGE:
            tables.append([*repeated])
        tables[-1].append(column)
    place = "table*" if _latex_width(tables[0]) > _PAGE / 2 else "table"
    said = " ".join(_sentence(latex(line)) for line in [title, *lines] if line)
    return "\n".join([
        f"\\begin{{{place}}}", "\\centering", "\\small", f"\\caption{{{said}}}", f"\\label{{tab:{name}}}",
        "\n\n\\medskip\n".join(map(_tabular, tables)), f"\\end{{{place}}}",
    ]) + "\n"  # fmt: skip


def _tabular(columns: Sequence[TextColumn]) -> str:
    aligned = "".join("r" if column.right else "l" for column in columns)
    rows = zip(*(column.cells for column in columns), strict=True)
    return "\n".join([
        f"\\begin{{tabular}}{{{aligned}}}", "\\toprule", _latex_row(map(_latex_header, columns)), "\\midrule",
        *(_latex_row(map(_latex_cell, row)) for row in rows), "\\bottomrule", "\\end{tabular}",
    ])  # fmt: skip


def _latex_row(cells: Iterable[str]) -> str:
    """A line of a table; a bracket or star at its start is no option of the line break before it."""
    row = " & ".join(cells) + " \\\\"
    return "{}" * row.startswith(("[", "*")) + row


def _latex_header(column: TextColumn) -> str:
    lines = [latex(line) for line in _header_lines(column)]
    if len(lines) == 1:
        return lines[0]
    side = "r" if column.right else "l"
    return f"\\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}" + r" \\ ".join(lines) + r"\end{tabular}"


def _header_lines(column: TextColumn) -> list[str]:
    return (column.header if "\n" in column.header else fold(column.header, _HEADER)).split("\n")


def _latex_width(columns: Sequence[TextColumn]) -> int:
    """About as many characters as the columns are wide, the space between two as three."""
    return sum(3 + max(map(len, [*_header_lines(column), *column.cells])) for column in columns)


def _latex_cell(cell: str) -> str:
    """A cell: a dash for what is missing, a minus before a number."""
    if cell == "-":
        return "--"
    return f"$-${latex(cell[1:])}" if re.match(r"-[\d.]", cell) else latex(cell)


def _sentence(text: str) -> str:
    return text if text.endswith((".", ":", "!", "?")) else f"{text}."


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if value is pd.NA:
        return None
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
