"""Two attacks side by side, as text."""

from __future__ import annotations

from typing import Any

import pandas as pd

from advens.errors import unknown
from advens.results.boards.outcomes import over
from advens.results.display import text
from advens.results.display.blocks import TextColumn, caption, split, stacked, text_of
from advens.results.formats import fold, shorten
from advens.results.statistics import LEAST_TARGETS


def render_comparison(
    found: dict[str, Any], format: str = "table", width: int | None = None
) -> str:
    """What ``compare`` gives as text; arguments as `render_board`."""
    rows = found["each"] if len(found["each"]) == 1 else [*found["each"], found]
    if format == "json":
        return text.dump(found)
    if format == "csv":
        kept = (
            "surrogates", "difference", "low", "high", "p", "models_low", "models_high", "models_p", "n",
            "targets",
        )  # fmt: skip
        frame = pd.DataFrame([{k: row[k] for k in kept} for row in rows])
        frame.insert(0, "b", found["b"])
        frame.insert(0, "a", found["a"])
        for name in ("surrogates", "targets"):
            frame[name] = frame[name].map(" ".join)
        return text.as_csv(frame)
    if format not in text.FORMATS:
        raise unknown("format", format, text.FORMATS)
    sets = [*(", ".join(row["surrogates"]) for row in found["each"]), "all of these"][: len(rows)]
    keys = [TextColumn("surrogates", tuple(fold(name, 40) for name in sets), right=False)]
    columns = [
        TextColumn("difference,\npoints", tuple(f"{100 * row['difference']:+.1f}" for row in rows)),
        TextColumn("new\nmodels", tuple(_ends(row["models_low"], row["models_high"]) for row in rows)),
        TextColumn("p, new\nmodels", tuple(_p(row["models_p"]) for row in rows)),
        TextColumn("these\ntargets", tuple(_ends(row["low"], row["high"]) for row in rows)),
        TextColumn("p, these\ntargets", tuple(_p(row["p"]) for row in rows)),
        TextColumn("targets", tuple(str(len(row["targets"])) for row in rows)),
        TextColumn("n", tuple(str(row["n"]) for row in rows)),
    ]
    lines = [
        f"{found['a']} minus {found['b']}, for new models and new images: "
        f"{_verdict(found['models_p'], 'two-way test over images and targets; [95 % two-way interval]')}.",
        "For these targets and new images: "
        f"{_verdict(found['p'], 'paired sign-flip test over images; [95 % bootstrap interval]')}.",
        f"Success over {over(found['denominator'])}, on targets held out from both: "
        f"{', '.join(shorten(found['targets']))}.",
    ]
    if format == "markdown":
        return text.columns_as_markdown(keys + columns, lines)
    if format == "latex":
        return text.as_latex(keys, columns, lines, "comparison")
    return text_of([*stacked(split(keys, columns, width or 80)), *caption(lines)], width or 80)


def _ends(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"


def _verdict(p: float | None, by: str) -> str:
    if p is None:
        return f"out of reach, without {LEAST_TARGETS} targets that are held out from both on every set"
    return f"they {'differ' if p < 0.05 else 'cannot be told apart'}, p = {p:.2g} ({by})"
