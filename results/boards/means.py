"""Means over held-out targets, with an interval for each of two questions, as every board shows them.

The first question is how the mean would change with new models and new images, the second how it would
change with new images on these very targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from advens.results.boards.outcomes import KEYS, Contributions, Flags, compared_targets
from advens.results.statistics import Array, bootstrap_means, content_seed, nanmean, two_way

INTERVALS = ("models_low", "models_high", "asr_low", "asr_high")


@dataclass(frozen=True)
class Means:
    """The mean of every row of some contributions, and the targets it is over.

    Tests between rows are on the same targets as these means, see `comparable`.
    """

    parts: Contributions

    @cached_property
    def used(self) -> Flags:
        """(R, T) the targets in each row's mean."""
        return compared_targets(self.parts.held_out)[0]

    @cached_property
    def common(self) -> bool:
        """Whether all means are over the same targets."""
        return compared_targets(self.parts.held_out)[1]

    @cached_property
    def names(self) -> list[str] | None:
        """The targets that all means are over; None when each row has its own."""
        found = [self.parts.targets[t] for t in np.flatnonzero(self.used.any(axis=0))]
        return found if self.common else None

    @cached_property
    def blocks(self) -> list[Array]:
        """The values in each row's mean, (images, targets); nan outside the denominator."""
        return [self.parts.value[row][used].T for row, used in enumerate(self.used)]

    @property
    def rates(self) -> Array:
        """``mean_asr`` alone, of every row."""
        rates: Array = nanmean(np.where(self.used, nanmean(self.parts.value, axis=2), np.nan), axis=1)
        return rates

    @cached_property
    def table(self) -> pd.DataFrame:
        """``mean_asr`` and the ends of both intervals, a line for every row of the contributions."""
        estimates = bootstrap_means(self.blocks, content_seed("bootstrap", self.parts.samples))
        ends = [two_way(block)[1:] if block.shape[1] else (np.nan, np.nan) for block in self.blocks]
        numbers = [(e.value, *models, e.low, e.high) for e, models in zip(estimates, ends, strict=True)]
        table: pd.DataFrame = pd.DataFrame(numbers, columns=["mean_asr", *INTERVALS], dtype=float)
        return table

    @cached_property
    def by_family(self) -> pd.DataFrame:
        """The mean of every row over the targets of each family that are in it."""
        asr = np.where(self.used, nanmean(self.parts.value, axis=2), np.nan)
        families = np.array(self.parts.families, dtype=object)
        names = sorted({str(name) for name in families[self.used.any(axis=0)]} - {""})
        table: pd.DataFrame = pd.DataFrame(
            {name: nanmean(asr[:, families == name], axis=1) for name in names}, index=range(len(asr))
        )
        return table

    def comparable(self, a: int, b: int) -> bool:
        """Whether the means of two rows are over the same targets, with an image in common."""
        if not self.used[a].any() or (self.used[a] != self.used[b]).any():
            return False
        return bool((~np.isnan(self.blocks[a]) & ~np.isnan(self.blocks[b])).any())

    def records(self) -> list[dict[str, object]]:
        """The table with its keys, rounded, as it is kept beside a matrix."""
        frame = pd.concat([self.parts.rows[KEYS], self.table.round(9)], axis=1)
        return [
            {key: None if row[key] != row[key] else row[key] for key in sorted(map(str, row))}
            for row in frame.to_dict(orient="records")
        ]
