"""How studies write a row of a leaderboard in a cell of their own tables, and what they say below it.

Kept boards of older runs, whose samples are gone, hold no answer for new models and new images.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

MODELS = "models_group"


def rate(row: Any) -> str:
    """``63.1 a (bc)``: the mean in %, letters for new models, and in parentheses those for these targets."""
    models = getattr(row, MODELS, None)
    shown = [f"{100 * row.mean_asr:.1f}", models if isinstance(models, str) else "", f"({row.group})"]
    return " ".join(part for part in shown if part)


def answered(found: pd.DataFrame) -> bool:
    """Whether the boards hold letters for new models and new images."""
    return MODELS in found and bool(found[MODELS].fillna("").ne("").any())


def caption(found: pd.DataFrame, what: str, where: str) -> str:
    """What the numbers and letters of some boards mean, as sentences.

    Args:
        what: the rows are, as ``fusions``.
        where: letters are compared, as ``in a column``.
    """
    n, targets = int(found["n"].max()), int(found["targets"].max())
    lines = [
        f"mean attack success in % on {targets} held-out models, {n} images. Letters compare {what} {where}: "
        "those that share one cannot be told apart (Holm, 5 %)."
    ]  # fmt: skip
    if answered(found):
        lines.append(
            "Letters without parentheses are for new models and new images (two-way test; "
            f"{_half(found, 'models')})."
        )
    else:
        lines.append("New models are not asked: there are no samples, or fewer than five targets.")
    lines.append(
        "Letters in parentheses are for these targets and new images (paired sign-flip test; "
        f"{_half(found, 'asr')})."
    )
    return " ".join(lines)


def _half(found: pd.DataFrame, name: str) -> str:
    half = 100 * ((found[f"{name}_high"] - found[f"{name}_low"]) / 2).median()
    return f"half a 95 % interval is {half:.1f} points in the median"
