"""What several trainings of the same defenses say together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from advens.printable import markdown, printable
from advens.results.boards.robustness import groups
from advens.results.display import text
from advens.results.display.blocks import Column, split
from advens.results.statistics import Estimate, wilson

KEYS = ["table", "label", "members"]
NUMBERS = ("diversity", "mflops")
"""Measures that are no shares of images."""
NOTES = (
    "Accuracy in %, the mean over {} trainings ± half of a 95 % interval: Student's over trainings or "
    "Wilson's over images, the wider; of randomized ensembles the expected accuracy. transfer: the worst of "
    "each image's transferred images, of {}. The others attack the model itself, on {}; worst: of each "
    "image, the one that leaves least; missed: accuracy that transfer took and they left, as masked "
    "gradients do. Those of a table that share a letter are not told apart by a paired test over images "
    "(Holm, 5 %).",
    "diversity: cross-entropy of members on images that feel to another like the target (DVERGE). shared: "
    "images crafted on one member that break another, in %. MFLOP: of one inference.",
)


def over_trainings(values: np.ndarray, n: int | None = None) -> Estimate:
    """The mean over trainings (S,) and a 95 % interval: Student's t; Wilson's over n images if wider.

    Of one training there is no spread: the interval is Wilson's, or not a number.
    """
    from scipy.stats import t

    mean, count = float(np.mean(values)), len(values)
    low = high = mean if count > 1 else math.nan
    if count > 1:
        half = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
        low, high = mean - half, mean + half
    if n is not None:
        least, most = wilson(mean * n, n)
        low, high = float(np.nanmin([max(low, 0), least])), float(np.nanmax([min(high, 1), most]))
    return Estimate(mean, low, high)


def pooled(each: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """One row for every label and size: means over trainings, with ``NAME low`` and ``NAME high``.

    Of the transfer at the largest budget, and of the worst attack in the open, ``NAME group`` has letters:
    lines of a table that share one are not told apart by a paired test over images, of each its mean over
    trainings (Holm, 5 %).

    Args:
        each: a row for every trained model: `KEYS`, ``seed``, ``kind``, ``n``, ``n open`` and the
            measures of ``advens defend``.
        images: what these are means of: ``defense``, ``measure``, ``sample_id``, ``left``.
    """
    measures = [
        name for name in each.columns
        if name not in (*KEYS, "seed", "defense", "kind", "n", "n open")
        and not name.endswith((" low", " high"))
    ]  # fmt: skip
    rows = []
    for key, group in each.groupby(KEYS, sort=False):
        row: dict[str, Any] = dict(zip(KEYS, key, strict=True))
        row |= {"kind": group["kind"].iloc[0], "trainings": len(group)}
        row |= {name: int(group[name].iloc[0]) for name in ("n", "n open")}
        for name in measures:
            values = group[name].dropna().to_numpy(float)
            found = Estimate(math.nan, math.nan, math.nan)
            if len(values):
                found = over_trainings(values, _images(row, name))
            row |= {name: found.value, f"{name} low": found.low, f"{name} high": found.high}
        rows.append(row)
    table: pd.DataFrame = pd.DataFrame(rows)
    for measure in _ranked(measures):
        own = images[images["measure"] == measure].merge(each[[*KEYS, "defense"]], on="defense")
        letters: dict[str, str] = {}
        for _, part in own.groupby("table", sort=False):
            left = part.pivot_table("left", "sample_id", KEYS, observed=True)
            left = left[left.mean().sort_values(ascending=False, kind="stable").index]
            if len(left.columns) > 1:
                letters |= groups(left)
        lines = table[KEYS].itertuples(index=False, name=None)
        table[f"{measure} group"] = [letters.get(str(line), "") for line in lines]
    return table


def _images(row: dict[str, Any], name: str) -> int | None:
    """How many images a measure is a share of; None for what is none."""
    if name in NUMBERS:
        return None
    count: int = row["n" if name == "clean" or name.startswith("transfer ") else "n open"]
    return count


def _ranked(measures: Sequence[str]) -> list[str]:
    """The transfer at the largest budget, and the worst in the open."""
    return [*[name for name in measures if name.startswith("transfer ")][-1:], "open worst"]


def study_parts(table: pd.DataFrame, width: int) -> list[RenderableType]:
    """What ``pooled`` gives for a terminal of that width, as rich renderables."""
    parts: list[RenderableType] = []
    for name, columns in laid_out(table):
        parts.append(Text(printable(name), style="bold"))
        parts += [each for part in split(columns[:2], columns[2:], width) for each in (part, Text(""))]
    return [*parts, *(Text(line, style="italic") for line in notes(table))]


def study_markdown(table: pd.DataFrame) -> str:
    """What ``pooled`` gives, a markdown table for each of its tables."""
    texts = []
    for name, columns in laid_out(table):
        rows = zip(*(column.cells for column in columns), strict=True)
        header = [column.header for column in columns]
        texts.append(f"**{markdown(name)}**\n\n" + text.as_markdown(header, rows, ()).rstrip() + "\n")
    return "\n".join([*texts, "\n\n".join(notes(table)), ""])


def laid_out(table: pd.DataFrame) -> list[tuple[str, list[Column]]]:
    """The columns of every table by its name: the defense, then all that was measured there."""
    found = []
    for name, rows in table.groupby("table", sort=False):
        measures = [
            str(each) for each in rows if f"{each} low" in rows and bool(rows[each].notna().any())
        ]
        keys = [
            Column("defense", tuple(rows["label"]), right=False),
            Column("members", tuple(map(str, rows["members"]))), Column("answers", tuple(rows["kind"])),
        ]  # fmt: skip
        columns = [
            Column(_header(each), tuple(_cell(row, each) for row in rows.to_dict(orient="records")))
            for each in measures
        ]
        found.append((str(name), [*keys, *columns]))
    return found


def _header(name: str) -> str:
    return {"mflops": "MFLOP"}.get(name, name.removeprefix("open "))


def _cell(row: dict[Hashable, Any], name: str) -> str:
    value, half = row[name], (row[f"{name} high"] - row[f"{name} low"]) / 2
    if math.isnan(value):
        return "-"
    if name in NUMBERS:
        return text.number(value)
    group = row.get(f"{name} group", "")
    return f"{100 * value:.1f} ±{100 * half:.1f}{' ' if group else ''}{group}"


def notes(table: pd.DataFrame) -> list[str]:
    """What the numbers are."""
    most = table[["trainings", "n", "n open"]].max()
    return [line.format(*map(int, most)) for line in NOTES]
