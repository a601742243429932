"""The board: attacks ranked by transfer to models they never saw, with intervals and groups."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from advens.results.boards.board import Board, declare
from advens.results.boards.outcomes import (
    KEYS,
    Contributions,
    Flags,
    compared_targets,
    contributions,
    held_out_names,
    over,
    sizes,
)
from advens.results.boards.rows import Rows
from advens.results.boards.silence import silent_lines
from advens.results.columns import BOOL, INT, REAL, TEXT, Column
from advens.results.formats import LABEL, Count, Flag, Interval, Number, Numbers, Percent, Plain
from advens.results.statistics import (
    Array,
    bootstrap_means,
    content_seed,
    holm,
    letters,
    nanmean,
    paired_tests,
)

COLUMNS = (
    Column("suite", TEXT, "suite the row belongs to", header="suite", format=Plain(LABEL), when="several"),
    Column("attack", TEXT, "attack", header="attack", format=Plain(LABEL)),
    Column("surrogates", TEXT, "name of the surrogate set", header="surrogates",
           format=Plain(LABEL, short=True)),
    Column("rank", INT, "by mean_asr, 1 is the strongest", header="#", format=Count()),
    Column("group", TEXT, "rows sharing a letter cannot be told apart (paired test, Holm, 5 %)",
           header="group", format=Plain(8)),
    Column("mean_asr", REAL, "mean attack success rate over held-out targets", unit="fraction", nullable=True,
           header="mean ASR", format=Interval("asr_low", "asr_high")),
    Column("asr_low", REAL, "lower end of the 95 % bootstrap interval over images", unit="fraction",
           nullable=True),
    Column("asr_high", REAL, "upper end of the 95 % bootstrap interval over images", unit="fraction",
           nullable=True),
    Column("white_box_asr", REAL, "mean attack success rate over white-box targets", unit="fraction",
           nullable=True, header="white-box", format=Percent()),
    Column("forwards_per_sample", REAL, "forward passes through surrogates per image", unit="pass",
           nullable=True, header="F/B passes", format=Numbers("backwards_per_sample")),
    Column("backwards_per_sample", REAL, "backward passes through surrogates per image", unit="pass",
           nullable=True),
    Column("seconds_per_image", REAL, "crafting time per image on the run's device", unit="s", nullable=True,
           header="ms/image", format=Number(1000)),
    Column("mean_linf", REAL, "mean l_inf norm of the perturbations", unit="intensity in [0, 1]",
           nullable=True, header="l_inf", format=Number()),
    Column("mean_l2", REAL, "mean l_2 norm of the perturbations", unit="intensity in [0, 1]", nullable=True),
    Column("targets", INT, "held-out targets in mean_asr", unit="model", header="targets", format=Count(),
           when="several"),
    Column("n", INT, "distinct images in mean_asr", unit="image"),
    Column("family", TEXT, "family of the attack in the registry"),
    Column("pareto", BOOL, "no attack on the same surrogates is as strong with less compute, or "
     "stronger with as much (compute: forwards + 2 backwards)", header="Pareto", format=Flag()),
)  # fmt: skip
LEVEL = 0.05
COMPUTE = ["forwards_per_sample", "backwards_per_sample", "seconds_per_image"]
_PAIRS = 2000  # tests whose differences are held in memory at a time


def leaderboard(
    samples: pd.DataFrame, cells: pd.DataFrame | None = None, denominator: str = "target"
) -> pd.DataFrame:
    """One row per attack and surrogate set, strongest first.

    ``mean_asr`` is over the targets held out from every row; when there is no such target, over
    each row's own. White-box targets never enter it. Its interval is a bootstrap over images. Two
    rows share a letter in ``group`` when a paired test over the images both saw, on the targets
    held out from both, does not tell them apart at 5 % (Holm over all pairs).

    Args:
        samples: columns of the ``samples`` schema.
        cells: ``RunStore.read_cells``, for the compute spent; None leaves it nan.
        denominator: ``target``, ``all`` or ``common``; see ``contributions``.

    Returns:
        The columns of the ``leaderboard`` schema. ``attrs``: ``denominator``; ``targets``, the
        names the mean is over, or None when each row has its own; ``notes``, lines a reader must
        see.
    """
    return _leaderboard(contributions(samples, denominator), samples, cells, denominator)


def _leaderboard(
    parts: Contributions, samples: pd.DataFrame, cells: pd.DataFrame | None, denominator: str
) -> pd.DataFrame:
    used, common = compared_targets(parts.held_out)
    blocks = [parts.value[r][used[r]].T for r in range(len(parts.rows))]
    asr = nanmean(parts.value, axis=2)
    white = parts.white_box & parts.evaluated
    board = parts.rows.copy()
    seed = content_seed("bootstrap", parts.samples)
    for name, column in zip(
        ("mean_asr", "asr_low", "asr_high"),
        np.array(bootstrap_means(blocks, seed)).reshape(-1, 3).T, strict=True,
    ):
        board[name] = column
    board["white_box_asr"] = nanmean(np.where(white, asr, np.nan), axis=1)
    board["targets"] = used.sum(axis=1)
    board["n"] = [int((~np.isnan(block)).any(axis=1).sum()) for block in blocks]
    norms = samples.groupby(KEYS, observed=True)[["linf", "l2"]].mean()
    spent = _spent(cells)
    keys = pd.MultiIndex.from_frame(board[KEYS])
    board["mean_linf"] = norms["linf"].reindex(keys).to_numpy()
    board["mean_l2"] = norms["l2"].reindex(keys).to_numpy()
    for name in COMPUTE:
        board[name] = spent[name].reindex(keys).to_numpy(float)
    board["family"] = spent["family"].reindex(keys).fillna("").to_numpy()
    board["row"] = np.arange(len(board))
    board = board.sort_values(
        ["mean_asr", "attack", "surrogates", "suite"], ascending=[False, True, True, True],
        na_position="last", kind="stable",
    ).reset_index(drop=True)
    board["rank"] = np.arange(1, len(board) + 1)
    board["group"] = _groups(parts, board["row"].to_list())
    board["pareto"] = _pareto(board)
    ranked: pd.DataFrame = board[[column.name for column in COLUMNS]]
    names = [parts.targets[t] for t in np.flatnonzero(used.any(axis=0))]
    ranked.attrs = {
        "denominator": denominator, "targets": names if common else None,
        "notes": _notes(ranked, cells, common),
    }
    return ranked


def paired_difference(a: Array, b: Array) -> tuple[Array, Array]:
    """Differences between two rows where both count.

    Args:
        a, b: (targets, images), nan outside the denominator.

    Returns:
        Per image and target (images, targets), nan where either is; and per image (images,),
        weighted so that its mean over images is the difference of the means over targets.
    """
    both = (a - b).T
    per_target = (~np.isnan(both)).sum(axis=0)
    able = per_target > 0
    weight = np.where(able, len(both) / np.maximum(per_target, 1), 0.0) / max(int(able.sum()), 1)
    return both, np.nan_to_num(both) @ weight


def _groups(parts: Contributions, order: list[int]) -> list[str]:
    """Group letters of the rows in rank order; rows without a held-out target have none."""
    held = parts.held_out
    ranked = [r for r in order if held[r].any()]
    pairs = list(combinations(ranked, 2))
    seed = content_seed("paired", parts.samples)
    p: list[float] = []
    for start in range(0, len(pairs), _PAIRS):
        differences = [
            paired_difference(parts.value[a][both], parts.value[b][both])[1]
            for a, b in pairs[start : start + _PAIRS] for both in [held[a] & held[b]]
        ]
        p += paired_tests(np.stack(differences, axis=1), seed).tolist()
    different = [
        (str(a), str(b)) for (a, b), q in zip(pairs, holm(p), strict=True) if q < LEVEL
    ]
    found = letters([str(r) for r in ranked], different)
    return [found.get(str(r), "") for r in order]


def _pareto(board: pd.DataFrame) -> Flags:
    """Rows that no row of the same surrogate set dominates in mean ASR and compute.

    A backward pass counts as two forward passes; rows whose compute is unknown are not marked.
    """
    compute = (board["forwards_per_sample"] + 2 * board["backwards_per_sample"]).to_numpy(float)
    asr = board["mean_asr"].to_numpy(float)
    sets = (board["suite"].astype(str) + "\0" + board["surrogates"].astype(str)).to_numpy()
    at_least = (asr[None] >= asr[:, None]) & (compute[None] <= compute[:, None])
    better = (asr[None] > asr[:, None]) | (compute[None] < compute[:, None])
    dominated = (at_least & better & (sets[None] == sets[:, None])).any(axis=1)
    best: Flags = ~dominated & ~np.isnan(asr) & ~np.isnan(compute)
    return best


def _spent(cells: pd.DataFrame | None) -> pd.DataFrame:
    """Compute per row of the board: the mean over its cells, weighted by their samples."""
    if cells is None or cells.empty:
        none: pd.DataFrame = pd.DataFrame(
            columns=[*COMPUTE, "family"], index=pd.MultiIndex.from_arrays([[]] * 3)
        )
        return none

    def one(group: pd.DataFrame) -> dict[str, Any]:
        weight = group["samples"].to_numpy(float)
        row: dict[str, Any] = {"family": str(group["family"].iloc[0] or "")}
        for name in COMPUTE:
            value = pd.to_numeric(group[name], errors="coerce").to_numpy(float)
            known = ~np.isnan(value) & (weight > 0)
            row[name] = np.average(value[known], weights=weight[known]) if known.any() else np.nan
        return row

    rows = {key: one(group) for key, group in cells.groupby(KEYS, observed=True)}
    spent: pd.DataFrame = pd.DataFrame(
        list(rows.values()), index=pd.MultiIndex.from_tuples(list(rows))
    )
    return spent


def _notes(board: pd.DataFrame, cells: pd.DataFrame | None, common: bool) -> list[str]:
    notes = []
    if not common and (board["targets"] > 0).any() and len(board) > 1:
        notes.append("no target is held out from every row: means are over each row's own targets")
    if board["n"][board["targets"] > 0].nunique() > 1:
        notes.append("rows differ in the number of images: the run is not complete")
    if (board["targets"] == 0).any():
        notes.append("rows without a held-out target have no mean")
    if cells is not None and not cells.empty:
        budgets = sorted({f"{n} {e}" for n, e in zip(cells["norm"], cells["eps"], strict=True)})
        if len(budgets) > 1:
            notes.append(f"budgets differ between rows: {', '.join(budgets)}")
        notes += silent_lines(cells)
    return notes


def _compute(rows: Rows) -> pd.DataFrame:
    return _leaderboard(rows.contributions, rows.samples, rows.cells, "target")


def _caption(board: pd.DataFrame) -> list[str]:
    held = held_out_names(board.attrs.get("targets"), "each row's own held-out targets")
    over_images = f"{over(board.attrs.get('denominator', ''))}, n = {sizes(board['n'])}"
    return [
        f"Mean attack success rate in % over {held}; {over_images} [95 % bootstrap interval].",
        "Rows sharing a letter cannot be told apart (paired sign-flip test over images, Holm, "
        "5 %). F/B: forward/backward passes per image.",
        "Pareto: no attack on the same surrogates is as strong for less compute (forwards + 2 backwards).",
        *(f"Note: {note}." for note in board.attrs.get("notes", [])),
    ]


declare(Board(
    "leaderboard", "attacks ranked by their transfer to models they never saw", COLUMNS, _compute,
    below="the samples and cells", about={"denominator": "", "targets": None, "notes": None},
    caption=_caption, keys=("rank", "group", "suite", "attack", "surrogates"),
    order=("mean_asr", "targets", "white_box_asr", "forwards_per_sample", "pareto", "seconds_per_image",
           "mean_linf"),
))  # fmt: skip
