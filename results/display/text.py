"""Boards as csv, json and markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from advens.printable import markdown, table_cell
from advens.results.display.blocks import TextColumn

FORMATS = ("table", "csv", "json", "markdown")


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
