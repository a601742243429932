"""Two attacks side by side, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from advens.errors import InputError, unknown
from advens.results.boards.leaderboard import paired_difference
from advens.results.boards.outcomes import Contributions, contributions
from advens.results.statistics import (
    Estimate,
    bootstrap_mean,
    content_seed,
    paired_tests,
    wilson,
)


def compare(samples: pd.DataFrame, a: str, b: str, denominator: str = "target") -> dict[str, Any]:
    """The difference in success rate between two attacks, paired over images.

    Args:
        a, b: an attack, or ``attack@surrogates``. Two attacks without a set are compared on each
            surrogate set that both have, and the difference is the mean over these.

    Returns:
        ``a, b, denominator, surrogates, targets, n, difference, low, high, p``: a minus b
        (fraction), its 95 % bootstrap interval and sign-flip p-value, over the targets held out
        from both.
        ``each``: the same per surrogate set (p-values not corrected for their number).

    Raises:
        InputError: for an unknown attack, and when nothing is comparable.
    """
    parts = contributions(samples, denominator)
    pairs = _pairs(parts, a, b)
    whole = _difference(parts, pairs)
    whole.update(a=a, b=b, denominator=denominator)
    whole["each"] = [_difference(parts, [pair]) for pair in pairs]
    return whole


def _difference(parts: Contributions, pairs: list[tuple[int, int]]) -> dict[str, Any]:
    held = parts.held_out
    both = [held[a] & held[b] for a, b in pairs]
    left = np.concatenate([parts.value[a][t] for (a, _), t in zip(pairs, both, strict=True)])
    right = np.concatenate([parts.value[b][t] for (_, b), t in zip(pairs, both, strict=True)])
    values, per_image = paired_difference(left, right)
    shared = ~np.isnan(values).all(axis=1) if values.shape[1] else np.zeros(len(values), bool)
    if not shared.any():
        raise InputError("no image on a target held out from both attacks: nothing to compare")
    seed = content_seed("compare", parts.samples)
    estimate = bootstrap_mean(values[shared], seed)
    if not np.nansum(np.abs(values)):  # no image differs: no bootstrap spread, yet no certainty
        high = wilson(0, shared.sum())[1]
        estimate = Estimate(0.0, -high, high)
    names = parts.rows["surrogates"]
    return {
        "surrogates": list(dict.fromkeys(
            names[a] if names[a] == names[b] else f"{names[a]} / {names[b]}" for a, b in pairs
        )),
        "targets": [parts.targets[t] for t in np.flatnonzero(np.any(both, axis=0))],
        "n": int(shared.sum()),
        "difference": estimate.value, "low": estimate.low, "high": estimate.high,
        "p": float(paired_tests(per_image[:, None], seed)[0]),
    }


def _pairs(parts: Contributions, a: str, b: str) -> list[tuple[int, int]]:
    left, right = _rows(parts, a), _rows(parts, b)
    keys = list(zip(parts.rows["suite"], parts.rows["surrogates"], strict=True))
    for same in (
        lambda i, j: keys[i] == keys[j],
        lambda i, j: keys[i][1] == keys[j][1],
        lambda i, j: len(left) == len(right) == 1,
    ):
        pairs = [(i, j) for i in left for j in right if i != j and same(i, j)]
        if pairs:
            return pairs
    if left == right:
        raise InputError(f"'{a}' and '{b}' are the same rows; give two attacks")
    raise InputError(
        f"'{a}' and '{b}' share no surrogate set; name one of each as attack@surrogates"
    )


def _rows(parts: Contributions, name: str) -> list[int]:
    attacks, sets = parts.rows["attack"], parts.rows["surrogates"]
    rows = np.flatnonzero(attacks == name).tolist()
    if not rows:
        full = attacks + "@" + sets
        rows = np.flatnonzero(full == name).tolist()
        if not rows:
            raise unknown("attack", name, full if "@" in name else attacks)
    return [int(row) for row in rows]
