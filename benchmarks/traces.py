"""Traces on disk: what the surrogates said at every step, as parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from torch import Tensor

from advens.results.store import RunStore


def trace_path(store: RunStore, cell: str) -> Path:
    """Where the trace of a cell lies."""
    return store.directory / "traces" / f"{cell}.parquet"


def trace_bytes(
    trace: dict[str, Tensor], sample_ids: Sequence[str], surrogates: Sequence[str]
) -> bytes:
    """A trace as parquet, one row per observation.

    Columns: ``what``, ``step``, ``sample_id``, ``surrogate`` (null where it is about all), ``value``.
    """
    frames = []
    for what, values in trace.items():
        each = surrogates if values.dim() == 3 else [None]
        index = pd.MultiIndex.from_product([range(len(values)), sample_ids, each])
        frame = index.to_frame(index=False, name=["step", "sample_id", "surrogate"])
        frames.append(frame.assign(what=what, value=values.flatten().double().numpy()))
    table = pd.concat(frames, ignore_index=True)
    table["surrogate"] = table["surrogate"].astype("string")
    columns = ["what", "step", "sample_id", "surrogate", "value"]
    made: bytes = table[columns].to_parquet(index=False)
    return made
