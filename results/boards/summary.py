"""From run directories to a matrix and boards: from the samples, never from a stored summary."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pandas as pd
import pyarrow as pa

from advens.errors import InputError, unknown
from advens.results.boards.leaderboard import board_of, leaderboard
from advens.results.boards.matrix import matrix_of
from advens.results.boards.outcomes import KEYS, contributions
from advens.results.boards.subset import subset
from advens.results.store import RunStore, schema, write_table

_COLUMNS = [name for name in schema.SCHEMAS["samples"].names if name != "attack_params"]


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
            raise InputError(f"{name} holds no finished samples yet")
        samples.append(found)
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


def boards(
    directories: Sequence[Path | str],
    denominator: str = "target",
    family: str | None = None,
    **chosen: str | None,
) -> list[pd.DataFrame]:
    """The boards of some runs: suites with the same data and budget are ranked together.

    Args:
        family: rank only the attacks of one family of the registry.
        chosen: attacks, surrogates, targets and conditions, see `advens.results.boards.subset.subset`.
    """
    samples, cells = subset(*load(directories), **chosen)
    if family is not None:
        samples, cells = _of_family(samples, cells, family)
    groups = _comparable(samples, cells)
    found = [
        leaderboard(samples[samples["suite"].isin(suites)], cells[cells["suite"].isin(suites)],
                    denominator)
        for suites in groups
    ]
    if len(found) > 1:
        for board in found:
            board.attrs["notes"].append("suites of other data or another budget are ranked apart")
    return found


def summarise(directory: Path | str, suite_digest: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Computes the matrix and the board of a run and writes both beside its samples.

    Raises:
        InputError: when there are no samples, or the directory cannot be written.
    """
    store = RunStore(directory)
    samples, cells = load([directory])
    parts = contributions(samples)
    matrix = matrix_of(parts, "target")
    board = board_of(parts, samples, cells, "target")
    about = {"suite_digest": suite_digest, "denominator": "target"}
    write_table(store.matrix, schema.to_table("matrix", matrix, **about))
    write_table(
        store.leaderboard,
        schema.to_table(
            "leaderboard", board, **about, targets=board.attrs["targets"],
            notes=board.attrs["notes"],
        ),
    )
    return matrix, board


def matrix_table(directory: Path | str) -> pa.Table:
    """The matrix of a run as its file should hold it, from the samples."""
    return schema.to_table("matrix", matrix_of(contributions(load([directory])[0]), "target"))


def _comparable(samples: pd.DataFrame, cells: pd.DataFrame) -> list[list[str]]:
    groups: dict[object, list[str]] = {}
    for suite in sorted(map(str, samples["suite"].unique())):
        own = cells[cells["suite"] == suite]
        about = frozenset(
            (data, norm, _number(eps))
            for data, norm, eps in zip(
                own["data_fingerprint"], own["norm"], own["eps"], strict=True
            )
        )
        groups.setdefault(about or suite, []).append(suite)
    return list(groups.values())


def _of_family(
    samples: pd.DataFrame, cells: pd.DataFrame, family: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    families = sorted(set(cells["family"].dropna().astype(str)))
    if family not in families:
        raise unknown("family", family, families)
    cells = cells[cells["family"] == family]
    wanted = pd.MultiIndex.from_frame(cells[KEYS].drop_duplicates())
    rows = pd.MultiIndex.from_frame(samples[KEYS].astype(str))
    kept = samples[rows.isin(wanted)]
    if kept.empty:
        raise InputError(f"no finished samples of family '{family}'")
    return kept, cells


def _number(eps: object) -> object:
    try:
        return round(float(Fraction(str(eps).replace(" ", ""))), 12)
    except (ValueError, ZeroDivisionError):
        return eps
