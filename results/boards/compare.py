"""Two attacks side by side, image by image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from advens.errors import InputError, unknown
from advens.results.boards.leaderboard import paired_difference
from advens.results.boards.outcomes import Contributions, compared_targets, contributions
from advens.results.statistics import (
    Array,
    Estimate,
    bootstrap_mean,
    content_seed,
    nanmean,
    paired_tests,
    two_way_difference,
    two_way_test,
    wilson,
)


def compare(samples: pd.DataFrame, a: str, b: str, denominator: str = "target") -> dict[str, Any]:
    """The difference in success rate between two attacks, paired over images.

    Args:
        a, b: an attack, or ``attack@surrogates``. Two attacks without a set are compared on each
            surrogate set that both have, and the difference is the mean over these.

    Returns:
        ``a, b, denominator, surrogates, targets, n, difference``: a minus b (fraction), over the targets
        held out from both on all sets; when there is none, over those of each set.
        ``low, high, p``: for these targets and new images, the 95 % bootstrap interval and the p-value of
        a sign-flip test over images.
        ``models_low, models_high, models_p``: for new models and new images, the same by the two-way
        variance over images and targets; None below five targets, and when sets differ in their targets.
        ``each``: the same per surrogate set (p-values not corrected for their number).

    Raises:
        InputError: for an unknown attack, and when nothing is comparable.
    """
    parts = contributions(samples, denominator)
    pairs = _pairs(parts, a, b)
    whole = difference(parts, pairs)
    whole.update(a=a, b=b, denominator=denominator)
    whole["each"] = [difference(parts, [pair]) for pair in pairs]
    return whole


def difference(parts: Contributions, pairs: list[tuple[int, int]]) -> dict[str, Any]:
    held = parts.held_out
    both, common = compared_targets(np.stack([held[a] & held[b] for a, b in pairs]))
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
        **_for_new_models(values if common else values[:, :0], len(pairs)),
    }


def _for_new_models(values: Array, sets: int) -> dict[str, float | None]:
    """The answer for new models and new images; None below five targets.

    Args:
        values: differences (images, sets x targets), of every set on the same targets.
    """
    of_target = nanmean(values.reshape(len(values), sets, -1), axis=1)
    estimate, p = two_way_difference(of_target), two_way_test(of_target)
    numbers = {"models_low": estimate.low, "models_high": estimate.high, "models_p": p}
    return {key: None if np.isnan(number) else float(number) for key, number in numbers.items()}


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
