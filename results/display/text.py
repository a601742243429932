"""Small text: percentages with intervals, short names, csv, json and markdown of plain cells."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from advens.printable import markdown, printable, table_cell

FORMATS = ("table", "csv", "json", "markdown")


def common_prefix(names: Iterable[str]) -> str:
    """``digits:`` when every name begins with it, else nothing."""
    prefixes = {name.partition(":")[0] + ":" if ":" in name else "" for name in names}
    return prefixes.pop() if len(prefixes) == 1 else ""


def shorten(names: Sequence[str]) -> list[str]:
    """The names without the source they all share."""
    prefix = common_prefix(names)
    return [name[len(prefix) :] for name in names]


def percent(value: float, digits: int = 0) -> str:
    """``63`` for 0.63; a dash for nan."""
    return "-" if math.isnan(value) else f"{100 * value:.{digits}f}"


def interval(value: float, low: float, high: float, digits: int = 0, mark: str = "") -> str:
    """``63 [59-67]`` in %, with an en dash; a dash when there is nothing to say."""
    if math.isnan(value):
        return "-"
    return f"{percent(value, digits)}{mark} [{percent(low, digits)}\u2013{percent(high, digits)}]"


def plus_minus(value: float, low: float, high: float, digits: int = 0, mark: str = "") -> str:
    """``63 ±4`` in %: the longer half of the interval; a dash when there is nothing to say."""
    if math.isnan(value):
        return "-"
    return f"{percent(value, digits)}{mark} ±{percent(max(value - low, high - value), digits)}"


def digits_for(low: pd.Series, high: pd.Series) -> int:
    """Decimals of a percentage that its interval can carry: one when it is within 1.5 points."""
    half = ((high - low) / 2).median()
    return 1 if half < 0.015 else 0


def number(value: float, digits: int = 3) -> str:
    """A plain number with some significant digits; a dash for nan."""
    if math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def fold(name: str, width: int) -> str:
    """The name on lines of at most ``width``, broken after ``-_/:,+@.`` and blanks if it can be."""
    lines = [""]
    for piece in re.findall(r"[^-_/:,+@. ]*[-_/:,+@. ]?", printable(name)):
        while len(lines[-1]) + len(piece.rstrip()) > width:
            if lines[-1]:
                lines.append("")
            else:
                lines[-1], piece = piece[:width], piece[width:]
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


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


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
