"""How numbers and names are written for people, and the formats that columns declare."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from advens.printable import printable

if TYPE_CHECKING:
    import pandas as pd

LABEL = 18
"""Characters of an attack's or a surrogate set's name on one line."""


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
    """``63 [59-67]`` in %, with an en dash; a dash for nan."""
    if math.isnan(value):
        return "-"
    return f"{percent(value, digits)}{mark} {ends(low, high, digits)}"


def ends(low: float, high: float, digits: int = 0) -> str:
    """``[59-67]`` in %, with an en dash; a dash for nan."""
    if math.isnan(low):
        return "-"
    return f"[{percent(low, digits)}\u2013{percent(high, digits)}]"


def plus_minus(value: float, low: float, high: float, digits: int = 0, mark: str = "") -> str:
    """``63 ±4`` in %: the longer half of the interval; a dash for nan."""
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


class Format(Protocol):
    """How people read a column of a board."""

    @property
    def right(self) -> bool:
        """Whether the cells are aligned to the right."""
        ...

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        """A cell for every row of the board.

        Args:
            name: of the column.
            folded: whether long names may be broken into several lines, as on a terminal.
        """
        ...


@dataclass(frozen=True)
class Plain:
    """Text as it is; nothing where there is none.

    Args:
        width: characters of a line on a terminal; 0 breaks no line.
        short: whether the source that all names share is left out.
        right: whether it is aligned to the right.
    """

    width: int = 0
    short: bool = False
    right: bool = False

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        values = ["" if value is None or value != value else str(value) for value in frame[name]]
        values = shorten(values) if self.short else values
        return [fold(value, self.width) for value in values] if self.width and folded else values


@dataclass(frozen=True)
class Count:
    """A whole number."""

    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        return [str(value) for value in frame[name]]


@dataclass(frozen=True)
class Flag:
    """``yes``, or nothing.

    Args:
        no: what stands for false; nothing stands for a value that is missing.
    """

    no: str = ""
    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        found = zip(frame[name], frame[name].isna(), strict=True)
        return ["" if missing else "yes" if value else self.no for value, missing in found]


@dataclass(frozen=True)
class Number:
    """A plain number with three significant digits.

    Args:
        scale: what it is multiplied with first, as 1000 for milliseconds.
    """

    scale: float = 1
    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        return [number(self.scale * value) for value in _floats(frame, name)]


@dataclass(frozen=True)
class Numbers:
    """Two plain numbers, ``40/20``: this column and another one."""

    other: str
    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        both = zip(_floats(frame, name), _floats(frame, self.other), strict=True)
        return [f"{number(one)}/{number(other)}" for one, other in both]


@dataclass(frozen=True)
class Percent:
    """A fraction in percent with one decimal."""

    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        return [percent(value, 1) for value in _floats(frame, name)]


@dataclass(frozen=True)
class Drop:
    """A fraction by which something fell, in points, and after how many: ``-0.5 (3)``; nothing for nan.

    Args:
        count: the column of that number.
    """

    count: str
    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        both = zip(_floats(frame, name), _floats(frame, self.count), strict=True)
        return [
            "" if math.isnan(value) else f"{-100 * value + 0:.1f} ({count:.0f})" for value, count in both
        ]


@dataclass(frozen=True)
class Interval:
    """A fraction in percent with its interval, ``63.2 [59.1-67.0]``.

    Args:
        low, high: the columns of the ends; ``NAME low`` and ``NAME high`` when nothing is said.
    """

    low: str = ""
    high: str = ""
    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        low, high = self.low or f"{name} low", self.high or f"{name} high"
        rows = zip(_floats(frame, name), _floats(frame, low), _floats(frame, high), strict=True)
        return [interval(*row, 1) for row in rows]


@dataclass(frozen=True)
class Ends:
    """The ends of an interval of a fraction in percent, ``[59.1-67.0]``; this column is the lower one.

    Args:
        high: the column of the upper end.
    """

    high: str
    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        rows = zip(_floats(frame, name), _floats(frame, self.high), strict=True)
        return [ends(low, high, 1) for low, high in rows]


@dataclass(frozen=True)
class Between:
    """Whole numbers from this column to another one: ``2-3``, or ``2``.

    Args:
        high: the column of the last.
    """

    high: str
    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        rows = zip(_floats(frame, name), _floats(frame, self.high), strict=True)
        return [
            "-" if math.isnan(low) else f"{low:.0f}" if low == high else f"{low:.0f}\u2013{high:.0f}"
            for low, high in rows
        ]


@dataclass(frozen=True)
class PValue:
    """A p-value with two significant digits."""

    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        return ["-" if math.isnan(value) else f"{value:.2g}" for value in _floats(frame, name)]


@dataclass(frozen=True)
class HalfInterval:
    """A fraction in percent, half of its interval, and its letters: ``63.2 ±3.9 ab``.

    The interval is that of ``NAME low`` and ``NAME high``, the letters are those of ``NAME group``.
    """

    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        ends = (_floats(frame, name), _floats(frame, f"{name} low"), _floats(frame, f"{name} high"))
        groups = frame[f"{name} group"] if f"{name} group" in frame else [""] * len(frame)
        return [
            "-" if math.isnan(value)
            else f"{100 * value:.1f} ±{100 * (high - low) / 2:.1f} {group}".rstrip()
            for value, low, high, group in zip(*ends, groups, strict=True)
        ]


@dataclass(frozen=True)
class Ensemble:
    """What kind of model a row is: ``randomized of 4``, by the number of members in another column."""

    members: str
    right: ClassVar[bool] = True

    def cells(self, frame: pd.DataFrame, name: str, folded: bool) -> list[str]:
        both = zip(frame[name], frame[self.members], strict=True)
        return [f"{kind} of {count}" if count > 1 else str(kind) for kind, count in both]


def _floats(frame: pd.DataFrame, name: str) -> list[float]:
    return [float(value) for value in frame[name].astype(float)]
