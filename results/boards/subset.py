"""A part of a run: some attacks, surrogate sets and targets, by wildcards or a condition."""

from __future__ import annotations

from fnmatch import fnmatch

import pandas as pd

from advens.errors import InputError, first_line, unknown
from advens.results.boards.outcomes import KEYS

COLUMNS = (*KEYS, "target", "target_family", "seed", "white_box")
"""The names that a condition may use, beside ``family``, that of the attack."""


def subset(
    samples: pd.DataFrame,
    cells: pd.DataFrame,
    *,
    attacks: str | None = None,
    surrogates: str | None = None,
    targets: str | None = None,
    where: str | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The samples and cells that are chosen; every mean, interval and test is then theirs alone.

    Args:
        attacks, surrogates, targets: names with wildcards, ``A,B*``; None takes all.
        where: a condition on the rows in pandas' query language, as ``target_family == 'vit'``.

    Raises:
        InputError: a pattern that matches nothing, a condition that cannot be read, nothing left.
    """
    chosen = pd.Series(True, index=samples.index)
    for column, patterns in (("attack", attacks), ("surrogates", surrogates), ("target", targets)):
        if patterns is not None:
            chosen &= samples[column].isin(_matching(samples[column], column, patterns))
    samples = samples[chosen]
    if where is not None and not samples.empty:
        samples = _where(samples, cells, where)
    if samples.empty:
        raise InputError("no sample of the run is left by what was chosen")
    wanted = pd.MultiIndex.from_frame(samples[KEYS].astype(str).drop_duplicates())
    return samples, cells[pd.MultiIndex.from_frame(cells[KEYS].astype(str)).isin(wanted)]


def _matching(column: pd.Series, kind: str, patterns: str) -> set[str]:
    names = sorted(map(str, column.unique()))
    found: set[str] = set()
    for pattern in (part.strip() for part in patterns.split(",")):
        here = {name for name in names if fnmatch(name, pattern)}
        if not here:
            raise unknown({"surrogates": "surrogate set"}.get(kind, kind) + " in this run", pattern, names)
        found |= here
    return found


def _where(samples: pd.DataFrame, cells: pd.DataFrame, condition: str) -> pd.DataFrame:
    """The rows for which a condition holds; it is asked once for all rows that are alike."""
    columns = [name for name in COLUMNS if name in samples]
    place = samples.groupby(columns, observed=True, dropna=False, sort=False).ngroup()
    kinds = samples.loc[~place.duplicated(), columns].reset_index(drop=True)
    kinds = kinds.astype(dict.fromkeys(kinds.select_dtypes("category"), object))
    families = cells.drop_duplicates(KEYS).set_index(KEYS)["family"]
    kinds["family"] = families.reindex(pd.MultiIndex.from_frame(kinds[KEYS].astype(str))).to_numpy()
    try:
        numbers = kinds.query(condition, engine="python").index
    except Exception as error:  # pandas passes on whatever its parser raises
        raise InputError(
            f"--where {condition!r} cannot be read ({first_line(error)}); it speaks of "
            f"{', '.join([*columns, 'family'])}, as target_family == 'vit'"
        ) from None
    return samples[place.isin(numbers)]
