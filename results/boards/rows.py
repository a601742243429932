"""The rows that boards are computed from, read when they are needed and once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pandas as pd

from advens.errors import InputError
from advens.files import inside
from advens.results.boards.likeness import marked
from advens.results.boards.means import Means
from advens.results.boards.outcomes import Contributions, contributions, expected
from advens.results.store import RunStore, schema

_COLUMNS = [name for name in schema.SAMPLES.names if name != "attack_params"]


class NoRows(InputError):
    """The rows that a board would be computed from do not exist."""


class Rows:
    """What lies below the boards of a directory.

    Args:
        directory: of a run, or of a folder of runs as suites of defenses leave them.
    """

    def __init__(self, directory: Path | str) -> None:
        self.directory = Path(directory)
        self._parts: dict[str, Rows] = {}

    def part(self, folder: str) -> Rows:
        """The rows of a run in one of its folders."""
        return self._parts.setdefault(folder, Rows(inside(self.directory, folder)))

    @property
    def samples(self) -> pd.DataFrame:
        """The samples of the run. Raises NoRows when there are none."""
        return self._loaded[0]

    @property
    def cells(self) -> pd.DataFrame:
        """The cells of the run, as `RunStore.read_cells` gives them."""
        return self._loaded[1]

    @cached_property
    def contributions(self) -> Contributions:
        """The samples as arrays, with the default denominator."""
        return contributions(self.samples)

    @cached_property
    def means(self) -> Means:
        """The means over held-out targets, with their intervals."""
        return Means(self.contributions)

    @cached_property
    def expected(self) -> pd.DataFrame:
        """What is left of every image after every attack, expected over a target's members."""
        return expected(self.samples)

    @cached_property
    def _loaded(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        if not RunStore(self.directory).has_rows():
            raise NoRows(f"{self.directory} holds no finished samples yet")
        return load([self.directory])


def load(directories: Sequence[Path | str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The samples and the cells of some runs, one after the other.

    Two directories that hold suites of one name are told apart by ``name (directory)``.

    Raises:
        InputError: when a directory holds no run, or none of its samples is finished.
    """
    stores = {str(store.directory): store for store in map(RunStore.open, directories)}
    samples, cells = [], []
    for name, store in stores.items():
        found = store.read_samples(_COLUMNS)
        if found.empty:
            raise NoRows(f"{name} holds no finished samples yet")
        samples.append(marked(found, store.directory))
        cells.append(store.read_cells())
    if len(stores) == 1:
        return samples[0], cells[0]
    named = [set(found["suite"].unique()) for found in samples]
    for k, (directory, found, spent) in enumerate(zip(stores, samples, cells, strict=True)):
        others = set().union(*named[:k], *named[k + 1 :])
        names = {suite: f"{suite} ({directory})" for suite in named[k] & others}
        samples[k] = found.assign(suite=found["suite"].astype(str).replace(names))
        cells[k] = spent.assign(suite=spent["suite"].astype(str).replace(names))
    return pd.concat(samples, ignore_index=True), pd.concat(cells, ignore_index=True)
