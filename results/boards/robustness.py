"""How robust each model is under each white-box attack: the accuracy that is left, and what it took.

A row is a model under an attack or a sequence of attacks; a sequence's row counts what its last attack
spent on the samples that still stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from advens.results.boards.board import Board, declare
from advens.results.boards.leaderboard import LEVEL
from advens.results.boards.outcomes import expected, share_broken
from advens.results.boards.rows import NoRows
from advens.results.columns import BOOL, INT, REAL, TEXT, Column
from advens.results.formats import (
    LABEL,
    Drop,
    Flag,
    Interval,
    Number,
    Numbers,
    Plain,
    percent,
    shorten,
)
from advens.results.statistics import content_seed, holm, letters, paired_tests, wilson

SPENT = {
    "forwards_per_sample": "total_forwards", "backwards_per_sample": "total_backwards",
    "seconds_per_image": "total_seconds",
}  # fmt: skip
"""What an attack spent on an image, and the column of what it spent with the stages before it."""
COLUMNS = (
    Column("suite", TEXT, "suite the row belongs to"),
    Column("model", TEXT, "model that is attacked", header="model", format=Plain(short=True)),
    Column("attack", TEXT, "attack, or sequence of attacks", header="attack", format=Plain(LABEL)),
    Column("n", INT, "distinct images", unit="image"),
    Column("clean_accuracy", REAL, "of all images, right before the attack", unit="fraction"),
    Column("robust_accuracy", REAL, "of all images, right before and after the attack", unit="fraction",
           header="robust accuracy", format=Interval("low", "high")),
    Column("low", REAL, "lower end of the 95 % Wilson interval", unit="fraction"),
    Column("high", REAL, "upper end of the 95 % Wilson interval", unit="fraction"),
    Column("group", TEXT, "attacks on one model sharing a letter cannot be told apart (paired, Holm, 5 %)",
           header="group", format=Plain(8)),
    Column("forwards_per_sample", REAL, "forward passes of the attack per image", unit="pass", nullable=True,
           header="F/B passes", format=Numbers("backwards_per_sample")),
    Column("backwards_per_sample", REAL, "backward passes of the attack per image", unit="pass",
           nullable=True),
    Column("seconds_per_image", REAL, "time of the attack per image on the run's device", unit="s",
           nullable=True),
    Column("total_forwards", REAL, "forward passes per image, with the stages before", unit="pass",
           nullable=True, header="with stages\nbefore", format=Numbers("total_backwards")),
    Column("total_backwards", REAL, "backward passes per image, with the stages before", unit="pass",
           nullable=True),
    Column("total_seconds", REAL, "time per image, with the stages before", unit="s", nullable=True,
           header="ms/image", format=Number(1000)),
    Column("rounds", INT, "rounds that followed the attack; null where the row is about no rounds",
           nullable=True, optional=True),
    Column("last_broke", REAL, "of all images, what the last round broke", unit="fraction", nullable=True,
           optional=True, header="last round", format=Drop("rounds"), when="known"),
    Column("converged", BOOL, "the last round broke less than the share that the suite states", nullable=True,
           optional=True, header="converged", format=Flag("no"), when="known"),
)  # fmt: skip
ROUNDS = ("rounds", "last_broke", "converged")
"""Columns of tables in which rounds followed an attack."""
WORST = "worst of all"
REPEATED = ", rounds"
"""What is added to an attack's name for the row of all its rounds."""


def robustness(samples: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """One row per model and attack, weakest attack first; then the worst of all, transfer included.

    Args:
        samples: columns of the ``samples`` schema.
        cells: ``RunStore.read_cells``.

    Returns:
        The columns of the board. Accuracies are over all images, the mean over seeds; ``low`` and ``high``
        a Wilson 95 % interval over images. Attacks on one model share a letter in ``group`` when a paired
        test over its images does not tell them apart (Holm, 5 %). Totals include the stages before.
        ``attrs["notes"]``: what a careful evaluator would say.
    """
    cells = cells[cells["goal"] == "robustness"]
    if cells.empty:
        raise NoRows("no attack of a robustness run is finished here")
    about = cells.drop_duplicates("cell").set_index("cell")
    samples = samples[samples["cell"].isin(about.index)]
    randomized = set(samples.loc[samples["member"].notna(), "target"])
    samples = expected(samples)
    samples["model"] = samples["cell"].map(about["surrogate_specs"].map(lambda specs: specs[0]))
    samples["attack"] = samples["cell"].map(settled(about))
    rows: list[dict[str, Any]] = []
    notes = _said(cells)
    for (suite, model), found in samples.groupby(["suite", "target"], sort=True, observed=True):
        own = found[found["model"] == model]
        if own.empty:
            continue
        lowest = own.groupby(["sample_id", "seed", "attack"], observed=True)["left"].min().reset_index()
        left = lowest.pivot_table("left", "sample_id", "attack", aggfunc="mean", observed=True)
        clean = float(own["clean"].mean())
        board = []
        for attack in left.columns:
            mine = about.loc[own.loc[own["attack"] == attack, "cell"].unique()]
            more = _spent(about, mine) | _converged(mine, own)
            board.append(_row(suite, model, attack, clean, left[attack], more))
            if more.get("converged") is False:
                notes.append(
                    f"{model}: '{attack.removesuffix(REPEATED)}' has not converged: the last of "
                    f"{more['rounds']} rounds still broke {percent(more['last_broke'], 1)} % of all images; "
                    "the accuracy is overstated"
                )
        board.sort(key=lambda row: (-row["robust_accuracy"], row["total_backwards"], row["attack"]))
        _lettered(board, left)
        every = found.groupby("sample_id", observed=True)["left"].min()
        if len(board) > 1 or len(found) > len(own):
            board.append(_row(suite, model, WORST, clean, every, {}))
        transferred = found[found["model"] != model]
        notes += _masked(str(model), own, transferred)
        params = about.loc[own["cell"].unique(), "attack_params"]
        if model in randomized and not any(dict(each).get("name") == "arc" for each in params):
            notes.append(
                f"{model} draws a member for every call; 'arc', made for that, was not run, and the accuracy "
                "may be overstated"
            )
        rows += board
    repeated = any(row["rounds"] is not None for row in rows)
    names = [column.name for column in COLUMNS if repeated or column.name not in ROUNDS]
    table: pd.DataFrame = pd.DataFrame(rows, columns=names)
    if repeated:
        table["rounds"] = table["rounds"].astype("Int64")
        table["last_broke"] = table["last_broke"].astype(float)
    table.attrs["notes"] = list(dict.fromkeys(notes))
    return table


def _row(
    suite: object, model: object, attack: str, clean: float, left: pd.Series, more: Mapping[str, Any]
) -> dict[str, Any]:
    known = left.dropna()
    accuracy = float(known.mean())
    low, high = wilson(accuracy * len(known), len(known))
    none = dict.fromkeys([*SPENT, *SPENT.values()], float("nan")) | dict.fromkeys(ROUNDS)
    return {
        "suite": suite, "model": model, "attack": attack, "n": len(known), "clean_accuracy": clean,
        "robust_accuracy": accuracy, "low": low, "high": high, "group": "", **none, **more,
    }  # fmt: skip


def settled(about: pd.DataFrame) -> pd.Series:
    """The attack of every cell as boards name it: all rounds that follow an attack are one.

    Args:
        about: of cells, by their names.
    """
    names = {}
    for cell, row in about.iterrows():
        first, attack = row, row["attack"]
        while _round(first):
            if first["after"] not in about.index:
                break
            first = about.loc[first["after"]]
            attack = f"{first['attack']}{REPEATED}"
        names[cell] = attack
    return pd.Series(names, dtype=object)


def _round(cell: pd.Series) -> int:
    """Which round a cell is; 0 for none."""
    number = cell.get("round")
    return 0 if number is None or pd.isna(number) else int(number)


def _spent(about: pd.DataFrame, mine: pd.DataFrame) -> dict[str, float]:
    """Means per image of an attack's cells, and with those of the stages before.

    Args:
        about: all cells, by their names.
        mine: those of the attack. Of rounds, that are one row, all count.
    """
    last = mine[~mine.index.isin(mine["after"])]
    own, total = (pd.DataFrame(0.0, last.index, [*SPENT]) for _ in range(2))
    for cell in last.index:
        at = cell
        while at in about.index:
            spent = about.loc[at, [*SPENT]].astype(float)
            total.loc[cell] += spent
            if at in mine.index:
                own.loc[cell] += spent
            at = about.loc[at, "after"]
    weights = last["samples"].to_numpy(float)
    return {
        (SPENT[name] if each is total else name): float(np.average(each[name], weights=weights))
        for each in (own, total) for name in SPENT
    }  # fmt: skip


def _converged(mine: pd.DataFrame, own: pd.DataFrame) -> dict[str, Any]:
    """The rounds of an attack and what the last one broke, the mean over seeds; nothing without rounds.

    Args:
        mine: the cells of the attack, by their names.
        own: what these and others left of every image, by `expected`.
    """
    rounds = mine[[_round(cell) > 0 for _, cell in mine.iterrows()]]
    if rounds.empty:
        return {}
    broke, below = [], []
    for _, each in rounds.groupby("seed"):
        last = each[each["round"] == each["round"].max()]
        broke.append(share_broken(own, last["after"].to_dict()))
        whole = last["samples"].sum() == each.loc[each["round"] == 1, "samples"].sum()
        below.append(bool(whole and broke[-1] < last["until"].min()))
    return {
        "rounds": int(rounds["round"].max()), "last_broke": float(np.mean(broke)), "converged": all(below),
    }  # fmt: skip


def _lettered(board: list[dict[str, Any]], left: pd.DataFrame) -> None:
    if len(board) > 1:
        found = groups(left[[row["attack"] for row in board]])
        for row in board:
            row["group"] = found[row["attack"]]


def groups(left: pd.DataFrame) -> dict[str, str]:
    """Letters of the columns, in rank order, that a paired test over images tells apart (Holm, 5 %).

    Args:
        left: accuracy on an image (images, names); nan counts as no difference.
    """
    names = [str(name) for name in left]
    pairs = list(combinations(range(len(names)), 2))
    values = left.to_numpy(float)
    differences = np.nan_to_num(np.stack([values[:, a] - values[:, b] for a, b in pairs], axis=1))
    differences = differences[(differences != 0).any(axis=1)]  # the others decide nothing
    p = paired_tests(differences, content_seed("robustness", sorted(map(str, left.index))))
    apart = [pair for pair, q in zip(pairs, holm(p.tolist()), strict=True) if q < LEVEL]
    return letters(names, [(names[a], names[b]) for a, b in apart])


def _masked(model: str, own: pd.DataFrame, transferred: pd.DataFrame) -> list[str]:
    """Transfer that breaks what white-box attacks did not is a sign of masked gradients."""
    if transferred.empty:
        return []
    open_left = own.groupby("sample_id", observed=True)["left"].min()
    other_left = transferred.groupby("sample_id", observed=True)["left"].min().reindex(open_left.index)
    missed = int(((open_left > 0) & (other_left == 0)).sum())
    if missed <= 0.01 * len(open_left):
        return []
    return [
        f"{model}: images crafted on other models break {missed} samples that no attack on the model itself "
        "broke; its gradients may be masked"
    ]


def _said(cells: pd.DataFrame) -> list[str]:
    about = zip(cells["surrogate_specs"], cells["attack"], cells["notes"], strict=True)
    return [
        f"{specs[0]}, {attack}: {note}"
        for specs, attack, notes in about if isinstance(notes, list) for note in notes
    ]  # fmt: skip


def _caption(table: pd.DataFrame) -> list[str]:
    clean = table.drop_duplicates("model")
    models = zip(shorten(list(clean["model"])), clean["clean_accuracy"], strict=True)
    said = ", ".join(f"{model} {percent(accuracy, 1)}" for model, accuracy in models)
    return [
        f"Robust accuracy in %, over all images, n = {table['n'].max()}. Clean: {said}.",
        "These models, new images: [95 % Wilson interval]; attacks on one model that share a letter cannot "
        "be told apart (paired sign-flip test over images, Holm, 5 %). Every row is about one model, so "
        "nothing is said about new models.",
        "Passes and time are means over all images; broken samples leave at once.",
        *([
            "An attack is repeated in rounds, from new starts on what withstood everything before, until a "
            "round breaks less than a stated share of all images (converged). Last round: the points it took "
            "(how many rounds there were)."
        ] if "rounds" in table else []),
        *(f"Note: {note}." for note in table.attrs.get("notes", [])),
    ]


declare(Board(
    "robustness", "the accuracy that every attack leaves to every model", COLUMNS,
    lambda rows: robustness(rows.samples, rows.cells), below="the samples and cells", about={"notes": None},
    caption=_caption, keys=("model", "attack"),
    order=("robust_accuracy", "last_broke", "converged", "group"),
))  # fmt: skip
