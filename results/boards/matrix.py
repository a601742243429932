"""The transferability matrix: every attack on every surrogate set against every target."""

from __future__ import annotations

import numpy as np
import pandas as pd

from advens.results.boards.board import Board, declare
from advens.results.boards.likeness import FIRST, likeness_notes
from advens.results.boards.means import Means
from advens.results.boards.outcomes import compared_targets, contributions, counted_once
from advens.results.boards.rows import Rows
from advens.results.columns import BOOL, INT, REAL, TEXT, Column
from advens.results.statistics import nanmean, wilson

COLUMNS = (
    Column("suite", TEXT, "suite the row belongs to"),
    Column("attack", TEXT, "attack"),
    Column("surrogates", TEXT, "name of the surrogate set"),
    Column("target", TEXT, "model the images were shown to"),
    Column("white_box", BOOL, "the target is among the surrogates"),
    Column("n", INT, "distinct images in the denominator", unit="image"),
    Column("clean_accuracy", REAL, "of all images, right before the attack", unit="fraction", nullable=True),
    Column("asr", REAL, "attack success rate over the n images, mean over seeds", unit="fraction",
           nullable=True),
    Column("asr_low", REAL, "lower end of the 95 % Wilson interval", unit="fraction"),
    Column("asr_high", REAL, "upper end of the 95 % Wilson interval", unit="fraction"),
    Column("robust_accuracy", REAL, "of all images, right before and after the attack", unit="fraction",
           nullable=True),
    Column("error_rate", REAL, "of all images, wrong after the attack", unit="fraction", nullable=True),
    Column("seeds", INT, "number of seeds"),
    Column(FIRST, TEXT, "first by name of the near-duplicates that the target is one of, of which one counts",
           nullable=True, optional=True),
)  # fmt: skip


def transfer_matrix(samples: pd.DataFrame, denominator: str = "target") -> pd.DataFrame:
    """One row per attack, surrogate set and target, with a Wilson interval.

    Args:
        samples: columns of the ``samples`` schema.
        denominator: ``target``, ``all`` or ``common``; see ``contributions``.

    Returns:
        The columns of the ``matrix`` schema, sorted by suite, attack, surrogates, target. ``n`` is
        the number of distinct images in the denominator; with none, ``asr`` is nan and its
        interval (0, 1). ``robust_accuracy`` and ``error_rate`` are over all images, whatever the
        denominator. ``attrs["denominator"]`` says which, ``attrs["randomized"]`` which targets are
        randomized ensembles, whose rates are expected over their members, and ``attrs["means"]`` what
        the mean of every row is over held-out targets, with its intervals.
    """
    return _matrix(samples, Means(contributions(samples, denominator)), denominator)


def _matrix(samples: pd.DataFrame, means: Means, denominator: str) -> pd.DataFrame:
    parts = means.parts
    row, target = np.nonzero(parts.evaluated)
    n = (~np.isnan(parts.value)).sum(axis=2)[row, target]
    asr = nanmean(parts.value, axis=2)[row, target]
    low, high = wilson(np.nan_to_num(asr) * n, n)
    frame: pd.DataFrame = parts.rows.iloc[row].reset_index(drop=True)
    frame["target"] = [parts.targets[t] for t in target]
    frame["white_box"] = parts.white_box[row, target]
    frame["n"] = n
    frame["clean_accuracy"] = parts.clean_accuracy[row, target]
    frame["asr"], frame["asr_low"], frame["asr_high"] = asr, low, high
    frame["robust_accuracy"] = parts.robust_accuracy[row, target]
    frame["error_rate"] = parts.error_rate[row, target]
    frame["seeds"] = parts.seeds[row, target]
    if FIRST in samples:
        alone = [parts.firsts.count(first) == 1 for first in parts.firsts]
        frame[FIRST] = [None if alone[t] else parts.firsts[t] for t in target]
    randomized = sorted(set(samples.loc[samples["member"].notna(), "target"]))
    frame.attrs = {
        "denominator": denominator, "randomized": randomized, "means": means.records(),
        "near_duplicates": likeness_notes(samples),
    }  # fmt: skip
    return frame


def _compute(rows: Rows) -> pd.DataFrame:
    return _matrix(rows.samples, rows.means, "target")


declare(Board(
    "matrix", "the success of every attack on every target", COLUMNS, _compute,
    about={"denominator": "", "randomized": [], "means": None, "near_duplicates": []}, layout="matrix",
))  # fmt: skip


def held_out_means(matrix: pd.DataFrame) -> tuple[pd.Series, list[str] | None]:
    """The mean over held-out targets of every row of the matrix, by the board's rule.

    Returns:
        Means indexed by (suite, attack, surrogates); and the targets they are over, or None when
        each row has its own.
    """
    keys = ["suite", "attack", "surrogates"]
    by_target = matrix.assign(held_out=~matrix["white_box"].astype(bool)).pivot(
        index=keys, columns="target", values=["asr", "held_out"]
    )
    names = [str(name) for name in by_target["asr"].columns]
    held = by_target["held_out"].eq(True).to_numpy(bool)
    if FIRST in matrix:
        first = matrix.drop_duplicates("target").set_index("target")[FIRST].dropna()
        held = counted_once(held, [first.get(name, name) for name in names])
    used, common = compared_targets(held)
    asr = np.where(used, by_target["asr"].to_numpy(float), np.nan)
    means = pd.Series(nanmean(asr, axis=1), index=by_target.index, name="mean_asr")
    return means, [names[t] for t in np.flatnonzero(np.any(used, axis=0))] if common else None
