"""The matrix as people read it: a line for every attack, the targets side by side, or turned round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType

from advens.results.boards.matrix import held_out_means
from advens.results.boards.means import INTERVALS
from advens.results.boards.outcomes import held_out_names, over, sizes
from advens.results.display.blocks import TextColumn, caption, fits, split, stacked, table
from advens.results.formats import (
    LABEL,
    digits_for,
    ends,
    fold,
    interval,
    percent,
    plus_minus,
    shorten,
)

_HEADER = 12
_NARROW = 8
"""Characters of a column's header where there is little room."""
_UNFOLDED = 10_000
NAN = float("nan")


def matrix_columns(
    frame: pd.DataFrame, short: bool = False
) -> tuple[list[TextColumn], list[str]]:
    """The columns of the matrix, names unbroken, and its caption.

    Args:
        short: whether an interval is written as its longer half.
    """
    keys, columns, summary, lines = _columns(frame, _UNFOLDED, short)
    return keys + columns + summary, lines


def matrix_parts(frame: pd.DataFrame, width: int) -> list[RenderableType]:
    """The matrix and its caption for a terminal of that width, as rich renderables.

    The first of these that fits: one table; the same turned round (targets as rows); both again with
    shorter intervals; blocks of targets.
    """
    for short in (False, True):
        keys, columns, summary, lines = _columns(frame, _HEADER, short)
        turned = _turned(keys, columns, summary, _NARROW if short else LABEL)
        for layout in ((keys, columns + summary), turned):
            if fits(*layout, width):
                return [table(*layout), *caption(lines)]
    keys, columns, summary, lines = _columns(frame, _HEADER)
    return [*stacked(split(keys, columns + summary, width)), *caption(lines)]


def _columns(
    frame: pd.DataFrame, width: int, short: bool = False
) -> tuple[list[TextColumn], list[TextColumn], list[TextColumn], list[str]]:
    """Keys, one column per target, the mean and its intervals, caption; rows by set, then strength.

    Args:
        short: whether an interval is written as its longer half.
    """
    written = plus_minus if short else interval
    means, common = held_out_means(frame)
    order = means.reset_index().sort_values(
        ["suite", "surrogates", "mean_asr", "attack"], ascending=[True, True, False, True]
    )
    rows = list(order[["suite", "attack", "surrogates"]].itertuples(index=False, name=None))
    targets = sorted(frame["target"].unique())
    digits = digits_for(frame["asr_low"], frame["asr_high"])
    found = {
        (r.suite, r.attack, r.surrogates, r.target): r for r in frame.itertuples(index=False)
    }
    columns = []
    for target, name in zip(targets, shorten(targets), strict=True):
        cells, styles = [], []
        for row in rows:
            r: Any = found.get((*row, target))
            mark = "*" if r is not None and r.white_box else ""
            cells.append(
                "" if r is None else written(r.asr, r.asr_low, r.asr_high, digits, mark)
            )
            styles.append("dim" if mark else "")
        columns.append(TextColumn(fold(name, width), tuple(cells), styles=tuple(styles)))
    mean = tuple(percent(means.loc[row], 1) for row in rows)
    summary = [TextColumn("mean\nheld-out", mean, styles=("bold",) * len(rows))]
    summary += _intervals(frame, rows, means, 0 if short else 1)
    held = held_out_names(common, "the row's own held-out targets")
    white = " * white-box, not in the mean." if frame["white_box"].any() else ""
    seeds = f", mean over {max(frame['seeds'])} seeds" if max(frame["seeds"]) > 1 else ""
    rates = f"{over(frame.attrs.get('denominator'))}, n = {sizes(frame['n'])}{seeds}"
    half = "± the longer half of the 95 % Wilson interval" if short else "[95 % Wilson interval]"
    lines = [
        f"Attack success rate in % over {rates} {half} for this target and new images.",
        f"Mean over {held}.{white}",
    ]
    if summary[1:]:
        models = ", out of reach with fewer than five held-out targets" * (len(summary) < 3)
        lines.append(
            f"95 % intervals of the mean: for new models and new images{models}, and for these targets and "
            "new images."
        )
    if drawn := frame.attrs.get("randomized"):
        lines.append(
            f"Randomized, expected over the members: {', '.join(shorten(drawn))}. Transfer is no "
            "adaptive attack on these: 'advens robustness' with arc is."
        )
    lines += [f"Note: {note}." for note in frame.attrs.get("near_duplicates", [])]
    return _keys(rows, width), columns, summary, lines


def _intervals(
    frame: pd.DataFrame, rows: Sequence[tuple[str, ...]], means: pd.Series, digits: int
) -> list[TextColumn]:
    """The intervals of the means: for new models where there is one, and for these targets.

    None when they are not of these means, as in a part of a matrix.
    """
    records = frame.attrs.get("means")
    known: dict[tuple[str, ...], dict[str, Any]] = {
        (str(r.get("suite")), str(r.get("attack")), str(r.get("surrogates"))): r
        for r in (records if isinstance(records, list) else []) if isinstance(r, dict)
    }  # fmt: skip
    of_rows: list[dict[str, float]] = []
    for row in rows:
        if row not in known:
            return []
        numbers = {name: known[row].get(name) for name in ("mean_asr", *INTERVALS)}
        found = {name: float(n) if isinstance(n, (int, float)) else NAN for name, n in numbers.items()}
        if not np.isclose(found["mean_asr"], means.loc[row], rtol=0, atol=1e-8, equal_nan=True):
            return []
        of_rows.append(found)
    columns = [
        (header, tuple(ends(row[f"{name}_low"], row[f"{name}_high"], digits) for row in of_rows))
        for header, name in (("new\nmodels", "models"), ("these\ntargets", "asr"))
    ]
    return [TextColumn(header, cells) for header, cells in columns if set(cells) != {"-"}]


def _keys(rows: Sequence[tuple[str, ...]], width: int) -> list[TextColumn]:
    """The columns that name a row; the suite only when there are several."""
    label = max(width, LABEL)
    suites, attacks, sets = zip(*rows, strict=True) if rows else ((), (), ())
    keys = [
        TextColumn("attack", tuple(fold(name, label) for name in attacks), right=False),
        TextColumn("surrogates", tuple(fold(name, label) for name in shorten(sets)), right=False),
    ]
    if len(set(suites)) > 1:
        keys.insert(0, TextColumn("suite", tuple(fold(name, label) for name in suites), right=False))
    return keys


def _turned(
    keys: list[TextColumn], columns: list[TextColumn], summary: list[TextColumn], width: int
) -> tuple[list[TextColumn], list[TextColumn]]:
    """Targets as rows, attacks on their surrogates as columns, whose names are folded."""
    names = [column.header.replace("\n", "") for column in columns]
    names += [column.header.replace("\n", " ") for column in summary]
    left = [TextColumn("target", tuple(names), right=False)]
    columns = [*columns, *summary]
    right = [
        TextColumn(
            "\n".join(fold(key.cells[k].replace("\n", ""), width) for key in keys),
            tuple(column.cells[k] for column in columns),
            styles=tuple(column.styles[k] if column.styles else "" for column in columns),
        )
        for k in range(len(keys[0].cells))
    ]
    return left, right
