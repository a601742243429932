"""Notes on images whose gradient was zero: such an attack says nothing about its targets."""

from __future__ import annotations

import pandas as pd

from advens.results.boards.outcomes import KEYS


def silent_lines(cells: pd.DataFrame) -> list[str]:
    """A line for every row of the board with steps in which an image got a gradient of zeros.

    Args:
        cells: ``RunStore.read_cells``; cells that hold no count are passed over.
    """
    if "silent_images" not in cells:
        return []
    counted = cells[pd.to_numeric(cells["silent_images"], errors="coerce") > 0]
    several = counted["suite"].nunique() > 1
    lines = []
    for (suite, attack, surrogates), group in counted.groupby(KEYS, observed=True):
        own = cells[(cells[KEYS] == [suite, attack, surrogates]).all(axis=1)]
        images, steps = int(group["silent_images"].sum()), int(group["silent_steps"].sum())
        where = f" in {suite}" if several else ""
        lines.append(
            f"{attack} on {surrogates}{where}: the surrogates' gradient was zero for {images:,} of "
            f"{int(own['samples'].sum()):,} images, in {steps:,} steps; such a step leads nowhere"
        )
    return lines
