"""Two attacks side by side, as text."""

from __future__ import annotations

from typing import Any

import pandas as pd

from advens.errors import unknown
from advens.results.boards.outcomes import over
from advens.results.display import text
from advens.results.display.blocks import TextColumn, caption, split, text_of
from advens.results.formats import fold, shorten


def render_comparison(
    found: dict[str, Any], format: str = "table", width: int | None = None
) -> str:
    """What ``compare`` gives as text; arguments as `render_board`."""
    rows = found["each"] if len(found["each"]) == 1 else [*found["each"], found]
    if format == "json":
        return text.dump(found)
    if format == "csv":
        kept = ("surrogates", "difference", "low", "high", "p", "n", "targets")
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
        TextColumn("difference, points", tuple(
            f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            for row in rows
        )),
        TextColumn("p", tuple(f"{row['p']:.2g}" for row in rows)),
        TextColumn("targets", tuple(str(len(row["targets"])) for row in rows)),
        TextColumn("n", tuple(str(row["n"]) for row in rows)),
    ]
    verdict = "differ" if found["p"] < 0.05 else "cannot be told apart"
    lines = [
        f"{found['a']} minus {found['b']}: they {verdict} (paired sign-flip test over images, "
        f"p = {found['p']:.2g}; [95 % bootstrap interval]).",
        f"Success over {over(found['denominator'])}, on targets held out from both: "
        f"{', '.join(shorten(found['targets']))}.",
    ]
    if format == "markdown":
        return text.columns_as_markdown(keys + columns, lines)
    return text_of([*split(keys, columns, width or 80), *caption(lines)], width or 80)
