"""Boards of several runs, or of a part of one, computed from the samples."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pandas as pd

from advens.errors import InputError, unknown
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.outcomes import KEYS
from advens.results.boards.rows import load
from advens.results.boards.subset import subset

__all__ = ["boards", "load"]


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


def _comparable(samples: pd.DataFrame, cells: pd.DataFrame) -> list[list[str]]:
    groups: dict[object, list[str]] = {}
    for suite in sorted(map(str, samples["suite"].unique())):
        own = cells[cells["suite"] == suite]
        about = frozenset(
            (data, norm, radius(eps))
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


def radius(eps: object) -> object:
    """An eps as a number, however it is written; as it is where it is none."""
    try:
        return round(float(Fraction(str(eps).replace(" ", ""))), 12)
    except (ValueError, ZeroDivisionError):
        return eps
