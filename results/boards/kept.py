"""Outcomes that outlive their runs: one small file from which means, letters and differences follow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from advens.errors import InputError
from advens.results.boards.outcomes import KEYS, OF_TARGET, Contributions

CATALOGUE = Path(__file__).parents[1] / "reference" / "digits-catalogue.parquet"
"""Every attack of the catalogue on models of the digits; see `advens.benchmarks.studies.catalogue`."""
_PASSES = ("forwards_per_sample", "backwards_per_sample")


def as_table(parts: Contributions, spent: pd.DataFrame) -> pa.Table:
    """A line for every row and target, with the list of its values on the images.

    Args:
        parts: the outcomes.
        spent: the passes of every row, with its keys: columns of a leaderboard.
    """
    rows, targets = len(parts.rows), len(parts.targets)
    passes = parts.rows[KEYS].merge(spent[[*KEYS, *_PASSES]], on=KEYS, how="left", validate="1:1")
    columns: dict[str, Any] = {
        **{name: np.repeat(passes[name].to_numpy(), targets) for name in [*KEYS, *_PASSES]},
        "target": np.tile(parts.targets, rows),
        "family": np.tile(parts.families, rows),
        "first": np.tile(parts.firsts, rows),
        **{name: getattr(parts, name).ravel() for name in OF_TARGET},
        "value": list(parts.value.reshape(rows * targets, -1)),
    }
    table: pa.Table = pa.table(columns)
    return table.replace_schema_metadata({"samples": json.dumps(parts.samples)})


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of several tables. Raises InputError unless they are over the same images and targets."""
    first = tables[0]
    for other in tables[1:]:
        same = set(other["target"].to_pylist()) == set(first["target"].to_pylist())
        if not same or other.schema.metadata != first.schema.metadata:
            raise InputError("these outcomes are not over the same images and targets")
    return pa.concat_tables(tables)


def write(path: Path, table: pa.Table) -> None:
    """Write outcomes as parquet."""
    pq.write_table(table, path, compression="zstd", compression_level=19)


def read(path: Path) -> tuple[Contributions, pd.DataFrame]:
    """The outcomes of a file, and the passes of their rows beside the keys.

    Raises:
        InputError: there is no file, or it was not written by `write`.
    """
    if not path.is_file():
        raise InputError(f"no outcomes at {path}")
    try:
        table = pq.read_table(path)
        samples = json.loads(table.schema.metadata[b"samples"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{path} holds no outcomes of a study") from None
    frame = table.to_pandas().sort_values([*KEYS, "target"], ignore_index=True)
    targets = sorted(set(frame["target"]))
    lines, shape = frame.iloc[:: len(targets)], (-1, len(targets))
    of_target = frame.iloc[: len(targets)]
    parts = Contributions(
        rows=lines[KEYS].reset_index(drop=True), targets=targets, samples=samples,
        families=of_target["family"].tolist(), firsts=of_target["first"].tolist(),
        value=np.stack(frame["value"].to_list()).reshape(*shape, len(samples)),
        **{name: frame[name].to_numpy().reshape(shape) for name in OF_TARGET},
    )  # fmt: skip
    return parts, lines[[*KEYS, *_PASSES]].reset_index(drop=True)
