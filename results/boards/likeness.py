"""Targets that behave like a surrogate, or like another target, as a run measured it on the clean images.

``likeness.parquet`` holds how alike the answers of each target are to those of every surrogate set and of
every other target, and which pairs are near-duplicates. A target that is a near-duplicate of a surrogate is
white-box to everything crafted on it, as a target with the surrogate's weights is. Near-duplicates among the
targets are one model to a mean: the first of them by name counts. In runs without the table no target is
taken for a near-duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from advens.files import inside
from advens.results.store import read_table, schema, write_table

FILE = "likeness.parquet"
SURROGATE = "behaves_like"
"""Column of samples: the surrogate that the target is a near-duplicate of, and how alike they are."""
FIRST = "alike"
"""Column of samples: the first by name of the near-duplicates that the target is one of."""


def write_likeness(directory: Path, frame: pd.DataFrame) -> None:
    """Writes the table of a run."""
    write_table(inside(directory, FILE), schema.to_table("likeness", frame))


def read_likeness(directory: Path) -> pd.DataFrame | None:
    """The table of a run; None where there is none. Raises CorruptFile for a damaged one."""
    path = inside(directory, FILE)
    if not path.is_file():
        return None
    frame: pd.DataFrame = read_table(path, "likeness").to_pandas(ignore_metadata=True)
    return frame


def marked(samples: pd.DataFrame, directory: Path) -> pd.DataFrame:
    """The samples of a run with its near-duplicates: white-box to their surrogates, named among themselves.

    The columns `SURROGATE` and `FIRST` are added where there is something to say.
    """
    table = read_likeness(directory)
    if table is None or not table["near_duplicate"].any():
        return samples
    near = table[table["near_duplicate"]]
    of_sets = near[near["surrogates"].notna()]
    if len(of_sets):
        keys = list(zip(of_sets["target"], of_sets["surrogates"], strict=True))
        said = of_sets["likeness"].map("{:.3f}".format).where(of_sets["likeness"].notna(), "same weights")
        names = [f"{model} ({how})" for model, how in zip(of_sets["model"], said, strict=True)]
        target, chosen = _codes(samples["target"], of_sets["target"])
        surrogates, sets = _codes(samples["surrogates"], of_sets["surrogates"])
        place = np.full((len(chosen) + 1, len(sets) + 1), -1)
        for number, (t, s) in enumerate(keys):
            place[chosen.index(t), sets.index(s)] = number
        found = place[target, surrogates]
        samples = samples.assign(
            white_box=samples["white_box"].to_numpy(bool) | (found >= 0),
            **{SURROGATE: _text(found, names)},
        )
    first = first_of(near[near["surrogates"].isna()][["target", "model"]].itertuples(index=False))
    if first:
        target, chosen = _codes(samples["target"], pd.Series(list(first)))
        code = np.where(target < len(chosen), target, -1)
        samples = samples.assign(**{FIRST: _text(code, [first[name] for name in chosen])})
    return samples


def first_of(pairs: Iterable[Sequence[str]]) -> dict[str, str]:
    """The first by name of the models that are connected by pairs, for each of them."""
    groups: dict[str, set[str]] = {}
    for one, other in pairs:
        joined = groups.get(one, {one}) | groups.get(other, {other})
        groups.update(dict.fromkeys(joined, joined))
    return {name: min(group) for name, group in groups.items()}


def firsts(samples: pd.DataFrame, targets: Sequence[str]) -> list[str]:
    """For each target the first of its near-duplicates by name, itself when it has none."""
    if FIRST not in samples:
        return list(targets)
    known = samples[["target", FIRST]].dropna().drop_duplicates("target")
    first = dict(zip(known["target"].astype(str), known[FIRST].astype(str), strict=True))
    return [first.get(name, name) for name in targets]


def likeness_notes(samples: pd.DataFrame) -> list[str]:
    """What a reader must be told of the near-duplicates among samples."""
    notes = []
    if SURROGATE in samples:
        pairs = samples[["target", "surrogates", SURROGATE]].dropna().drop_duplicates().astype(str)
        for (target, model), rows in pairs.groupby(["target", SURROGATE]):
            sets = ", ".join(sorted(set(rows["surrogates"])))
            notes.append(f"{target} behaves like the surrogate {model}: it is not held out from {sets}")
    if FIRST in samples:
        known = samples[["target", FIRST]].dropna().drop_duplicates().astype(str)
        for _, rows in known.groupby(FIRST):
            names = sorted(set(rows["target"]))
            if len(names) > 1:
                notes.append(
                    f"{', '.join(names)} behave alike and count once in a mean (the first that is held out)"
                )
    return notes


def _codes(column: pd.Series, names: pd.Series) -> tuple[NDArray[np.int64], list[str]]:
    """The place of each value among some names, sorted; their number for any other value."""
    known = sorted(set(names))
    if isinstance(column.dtype, pd.CategoricalDtype):
        category = pd.Index(known).get_indexer(pd.Index(column.cat.categories.astype(object)))
        code = category[column.cat.codes.to_numpy()]
    else:
        code = pd.Index(known).get_indexer(pd.Index(column.astype(object)))
    return np.where(code < 0, len(known), code), known


def _text(codes: NDArray[np.int64], names: list[str]) -> pd.Categorical:
    """Names by their place, -1 for none."""
    known = sorted(set(names))
    place = np.array([*(known.index(name) for name in names), -1])
    return pd.Categorical.from_codes(place[codes], categories=known)
