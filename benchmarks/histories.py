"""How sets of surrogates came about, call by call: kept in the run that uses them, compared by ``verify``.

A builder notes the trials of a search, or the learning rate and the loss of every collection of weights, in
the cache. A run copies the history of its sets to ``history/``, so that it can be shown without the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd

from advens.benchmarks.suites import Suite, built_sets
from advens.classifier import Classifier
from advens.datasets import Dataset, find_data
from advens.digest import value_digest
from advens.errors import InputError, RunError
from advens.files import LinkError
from advens.models import find_model
from advens.results.store import RunStore, is_whole, read_table, schema, write_table

FOLDER = "history"
KEYS = ["model", "call", "what"]
History = Sequence[Mapping[str, Any]]
"""Rows with a model, a call, what was noted, and its value."""


def history_of(builder: Any, models: Sequence[Classifier], data: Dataset, seed: int) -> History:
    """The history of a set that was built; no rows where its builder or the cache has none."""
    if not hasattr(builder, "history"):
        return []
    wide: pd.DataFrame = builder.history(models, data, seed=seed)
    return [
        {"model": str(row["model"]), "call": int(row["call"]), "what": str(what), "value": float(value)}
        for row in wide.to_dict(orient="records")
        for what, value in row.items() if what not in KEYS and not pd.isna(value)
    ]  # fmt: skip


def keep_histories(store: RunStore, made: Mapping[tuple[str, int], History]) -> None:
    """Write the histories of a run's sets, by set and seed, that are not there yet."""
    for (name, seed), rows in made.items():
        path = store.path(FOLDER, f"{_key(name, seed)}.parquet")
        if rows and not is_whole(path, FOLDER):
            frame = pd.DataFrame(rows).assign(surrogates=name, seed=seed)
            write_table(path, schema.to_table(FOLDER, frame))


def history_mismatches(store: RunStore, suite: Suite, notes: list[str]) -> Iterator[str]:
    """What is wrong with the histories of a run: they are of its sets, and say what the cache says.

    Args:
        notes: told of histories that could not be compared.
    """
    wanted = {
        _key(name, seed): (name, each, seed)
        for name, each in built_sets(suite).items()
        for seed in (suite.seeds if each.seed is None else [each.seed])
    }  # fmt: skip
    for path in sorted(store.path(FOLDER).glob("*")):
        shown = f"{FOLDER}/{path.name}"
        if path.suffix != ".parquet" or path.stem not in wanted:
            yield f"{shown} is of no set that the suite builds"
            continue
        name, each, seed = wanted[path.stem]
        try:
            frame = read_table(store.path(FOLDER, path.name), FOLDER).to_pandas(ignore_metadata=True)
        except (RunError, LinkError) as error:
            yield str(error)
            continue
        if set(zip(frame["surrogates"], frame["seed"], strict=True)) != {(name, seed)}:
            yield f"{shown} is not of surrogates '{name}', seed {seed}, alone"
            continue
        rows: History = []
        with suppress(InputError):  # it is not in the cache
            models = [find_model(model) for model in each.models]
            rows = history_of(each.builder(), models, find_data(each.source), seed)
        if not rows:
            notes.append(f"surrogates '{name}': {shown} was not compared, as the cache has no such build")
        elif not _same(frame, pd.DataFrame(rows)):
            yield f"{shown} is not how surrogates '{name}' came about"


def _same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two histories say the same, up to rounding."""
    if one[KEYS].to_numpy().tolist() != other[KEYS].to_numpy().tolist():
        return False
    return bool(np.isclose(one["value"], other["value"], rtol=1e-6, atol=1e-9).all())


def _key(name: str, seed: int) -> str:
    return value_digest([name, seed], 20)
