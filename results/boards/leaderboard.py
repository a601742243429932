"""The board: attacks ranked by transfer to models they never saw, with intervals and groups."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from advens.results.boards.board import Board, declare
from advens.results.boards.likeness import likeness_notes
from advens.results.boards.means import Means
from advens.results.boards.outcomes import (
    KEYS,
    Flags,
    contributions,
    held_out_names,
    over,
    sizes,
)
from advens.results.boards.rows import Rows
from advens.results.boards.silence import silent_lines
from advens.results.columns import BOOL, INT, REAL, TEXT, Column
from advens.results.formats import (
    LABEL,
    Between,
    Count,
    Ends,
    Flag,
    Number,
    Numbers,
    Percent,
    Plain,
    PValue,
    percent,
)
from advens.results.statistics import (
    LEAST_TARGETS,
    Array,
    content_seed,
    holm,
    letters,
    nanmean,
    paired_tests,
    rank_intervals,
    two_way_tests,
)

COLUMNS = (
    Column("suite", TEXT, "suite the row belongs to", header="suite", format=Plain(LABEL), when="several"),
    Column("attack", TEXT, "attack", header="attack", format=Plain(LABEL)),
    Column("surrogates", TEXT, "name of the surrogate set", header="surrogates",
           format=Plain(LABEL, short=True)),
    Column("rank", INT, "by mean_asr, 1 is the strongest", header="#", format=Count()),
    Column("rank_low", INT, "first rank of the 95 % interval for new models and new images (images and "
           "targets resampled)", nullable=True, header="ranks", format=Between("rank_high"), when="known"),
    Column("rank_high", INT, "last rank of that interval", nullable=True),
    Column("models_group", TEXT, "for new models and new images: rows sharing a letter cannot be told apart "
           "(two-way test over images and targets, Holm, 5 %); empty below five held-out targets and above "
           "40 rows", header="letters,\nnew\nmodels", format=Plain(8), when="known"),
    Column("group", TEXT, "for these targets and new images: rows sharing a letter cannot be told apart "
           "(paired test over images, Holm, 5 %); empty above 40 rows",
           header="letters,\nthese\ntargets", format=Plain(8), when="known"),
    Column("p_first", REAL, "p-value of the difference to the row ranked first, for new models and new "
           "images (two-way test, Holm over all pairs)", nullable=True, header="p, to\nfirst",
           format=PValue(), when="known", unless="models_group"),
    Column("mean_asr", REAL, "mean attack success rate over held-out targets", unit="fraction", nullable=True,
           header="mean\nASR", format=Percent()),
    Column("models_low", REAL, "lower end of the 95 % interval of mean_asr for new models and new images",
           unit="fraction", nullable=True, header="new\nmodels", format=Ends("models_high"), when="known"),
    Column("models_high", REAL, "upper end of the 95 % interval of mean_asr for new models and new images",
           unit="fraction", nullable=True),
    Column("asr_low", REAL, "lower end of the 95 % interval of mean_asr for these targets and new images "
           "(bootstrap over images)", unit="fraction", nullable=True, header="these\ntargets",
           format=Ends("asr_high")),
    Column("asr_high", REAL, "upper end of the 95 % interval of mean_asr for these targets and new images "
           "(bootstrap over images)", unit="fraction", nullable=True),
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
    Column("asr *", REAL, "mean attack success rate over the held-out targets of one family", unit="fraction",
           nullable=True, header="*", format=Percent()),
)  # fmt: skip
LEVEL = 0.05
MOST_LETTERS = 40
"""Rows up to which groups are shown by letters."""
COMPUTE = ["forwards_per_sample", "backwards_per_sample", "seconds_per_image"]
_PAIRS = 2000  # tests whose differences are held in memory at a time


def leaderboard(
    samples: pd.DataFrame, cells: pd.DataFrame | None = None, denominator: str = "target"
) -> pd.DataFrame:
    """One row per attack and surrogate set, strongest first.

    ``mean_asr`` is over the targets held out from every row; when there is no such target, over
    each row's own. White-box targets never enter it. Intervals and tests answer two questions. For
    new models and new images, images and targets are both samples: ``models_low``, ``models_high``,
    ``models_group``, ``rank_low``, ``rank_high`` and ``p_first``, which are missing below five held-out
    targets. For these targets and new images: ``asr_low``, ``asr_high`` and ``group``.

    Two rows are compared when their means are over the same targets, and by their values on these
    targets and the images both have. Rows that are not compared share no letter.

    Args:
        samples: columns of the ``samples`` schema.
        cells: ``RunStore.read_cells``, for the compute spent; None leaves it nan.
        denominator: ``target``, ``all`` or ``common``; see ``contributions``.

    Returns:
        The columns of the board, and ``asr FAMILY`` for every family of targets. ``attrs``:
        ``denominator``; ``targets``, the names the mean is over, or None when each row has its own;
        ``notes``, lines a reader must see; ``data``, the sources of the images.
    """
    return _leaderboard(Means(contributions(samples, denominator)), samples, cells, denominator)


def _leaderboard(
    means: Means, samples: pd.DataFrame, cells: pd.DataFrame | None, denominator: str
) -> pd.DataFrame:
    parts = means.parts
    board = pd.concat([parts.rows, means.table], axis=1)
    white = parts.white_box & parts.evaluated
    board["white_box_asr"] = nanmean(np.where(white, nanmean(parts.value, axis=2), np.nan), axis=1)
    board["targets"] = means.used.sum(axis=1)
    board["n"] = [int((~np.isnan(block)).any(axis=1).sum()) for block in means.blocks]
    norms = samples.groupby(KEYS, observed=True)[["linf", "l2"]].mean()
    spent = _spent(cells)
    keys = pd.MultiIndex.from_frame(board[KEYS])
    board["mean_linf"] = norms["linf"].reindex(keys).to_numpy()
    board["mean_l2"] = norms["l2"].reindex(keys).to_numpy()
    for name in COMPUTE:
        board[name] = spent[name].reindex(keys).to_numpy(float)
    board["family"] = spent["family"].reindex(keys).fillna("").to_numpy()
    families = means.by_family.add_prefix("asr ")
    board = pd.concat([board, families], axis=1)
    board["row"] = np.arange(len(board))
    board = board.sort_values(
        ["mean_asr", "attack", "surrogates", "suite"], ascending=[False, True, True, True],
        na_position="last", kind="stable",
    ).reset_index(drop=True)
    board["rank"] = np.arange(1, len(board) + 1)
    compared = _Compared(means, board["row"].to_list())
    board["models_group"] = compared.letters(compared.new, LEAST_TARGETS)
    board["group"] = compared.letters(compared.these, 1)
    board["p_first"] = compared.to_first()
    board = pd.concat([board, compared.ranks()], axis=1)
    board["pareto"] = pareto(board)
    fixed = [column.name for column in COLUMNS if not column.pattern]
    ranked: pd.DataFrame = board[[*fixed, *families]]
    ranked.attrs = {
        "denominator": denominator, "targets": means.names,
        "notes": [*_notes(ranked, cells, compared), *likeness_notes(samples)],
        "data": sorted(set(cells["data"].astype(str))) if cells is not None and "data" in cells else None,
    }
    return ranked


def groups(means: Means) -> pd.DataFrame:
    """``models_group`` and ``group`` of a leaderboard, a line for every row of the contributions."""
    order = [int(row) for row in (-means.table["mean_asr"]).argsort(kind="stable")]
    compared = _Compared(means, order)
    found: pd.DataFrame = pd.DataFrame(
        {"models_group": compared.letters(compared.new, LEAST_TARGETS),
         "group": compared.letters(compared.these, 1)}, index=order,
    )  # fmt: skip
    return found.sort_index()


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


class _Compared:
    """What tests say of the rows of a board: pairs with the p-values of both questions, and ranks.

    Above `MOST_LETTERS` rows only those with the first are tested, for new models alone.

    Args:
        means: of the rows, in the order of the contributions.
        order: the rows as they are ranked.
    """

    def __init__(self, means: Means, order: list[int]) -> None:
        self.means, self.order = means, order
        self.ranked = [row for row in order if means.used[row].any()]
        self.lettered = len(self.ranked) <= MOST_LETTERS
        firsts = self.ranked if self.lettered else self.ranked[:1]
        pairs = [(a, b) for k, a in enumerate(firsts) for b in self.ranked[k + 1 :]]
        self.pairs = [pair for pair in pairs if means.comparable(*pair)]
        every = len(self.ranked) * (len(self.ranked) - 1) // 2
        p = two_way_tests(means.blocks, self.pairs)
        self.new = _adjusted(p, untested=0 if self.lettered else every - len(pairs))
        self.these = _adjusted(self._over_images())

    @property
    def parted(self) -> bool:
        """Whether there are rows with a mean that are not compared."""
        ranked = len(self.ranked)
        return len(self.pairs) < (ranked * (ranked - 1) // 2 if self.lettered else max(ranked - 1, 0))

    def letters(self, p: Array, least: int) -> list[str]:
        """Letters of the rows, in rank order; none above `MOST_LETTERS` rows.

        Args:
            p: adjusted p-values of the pairs.
            least: held-out targets below which a row has none.
        """
        if not self.lettered:
            return [""] * len(self.order)
        rows = [row for row in self.ranked if self.means.used[row].sum() >= least]
        alike = {pair for pair, q in zip(self.pairs, p, strict=True) if q >= LEVEL}
        different = [(str(a), str(b)) for a, b in combinations(rows, 2) if (a, b) not in alike]
        found = letters([str(row) for row in rows], different)
        return [found.get(str(row), "") for row in self.order]

    def to_first(self) -> list[float]:
        """Adjusted p-values of the pairs with the first row, for new models; nan when not compared."""
        found = dict(zip(self.pairs, self.new.tolist(), strict=True))
        return [found.get((self.order[0], row), np.nan) for row in self.order]

    def ranks(self) -> pd.DataFrame:
        """``rank_low`` and ``rank_high`` for new models; missing unless all means are over five targets."""
        table: pd.DataFrame = pd.DataFrame(
            pd.NA, index=range(len(self.order)), columns=["rank_low", "rank_high"], dtype="Int64"
        )
        if self.means.common and self.means.used.any(axis=0).sum() >= LEAST_TARGETS:
            blocks = [self.means.blocks[row] for row in self.ranked]
            seed = content_seed("ranks", self.means.parts.samples)
            table.iloc[: len(blocks)] = rank_intervals(blocks, seed)  # rows without a mean come last
        return table

    def _over_images(self) -> Array:
        """P-values of the pairs for these targets; nan above `MOST_LETTERS` rows."""
        if not self.lettered:
            return np.full(len(self.pairs), np.nan)
        value, used = self.means.parts.value, self.means.used
        seed = content_seed("paired", self.means.parts.samples)
        p: list[float] = []
        for start in range(0, len(self.pairs), _PAIRS):
            differences = [
                paired_difference(value[a][used[a]], value[b][used[a]])[1]
                for a, b in self.pairs[start : start + _PAIRS]
            ]
            p += paired_tests(np.stack(differences, axis=1), seed).tolist()
        return np.array(p)


def _adjusted(p: Array, untested: int = 0) -> Array:
    """P-values after Holm's correction; nan stays nan.

    Args:
        untested: pairs of the family whose p-values are not known; they count as 1.
    """
    known = ~np.isnan(p)
    found = np.full(len(p), np.nan)
    found[known] = holm(np.concatenate([p[known], np.ones(untested)]))[: int(known.sum())]
    return found


def pareto(board: pd.DataFrame) -> Flags:
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


def _notes(board: pd.DataFrame, cells: pd.DataFrame | None, compared: _Compared) -> list[str]:
    notes = []
    if not compared.means.common and (board["targets"] > 0).any() and len(board) > 1:
        notes.append("no target is held out from every row: means are over each row's own targets")
    if compared.parted:
        notes.append(
            "rows without common data are not compared: their ranks and letters do not say which is "
            f"stronger{_within(board, compared)}"
        )
    if board["n"][board["targets"] > 0].nunique() > 1:
        notes.append("rows differ in the number of images: the run is not complete")
    if (board["targets"] == 0).any():
        notes.append("rows without a held-out target have no mean")
    notes += _by_family(board, compared.means)
    if cells is not None and not cells.empty:
        budgets = sorted({f"{n} {e}" for n, e in zip(cells["norm"], cells["eps"], strict=True)})
        if len(budgets) > 1:
            notes.append(f"budgets differ between rows: {', '.join(budgets)}")
        notes += silent_lines(cells)
    return notes


def _within(board: pd.DataFrame, compared: _Compared) -> str:
    """Which letters are about rows with the same targets, when there are several such parts."""
    used, parts = compared.means.used, dict[bytes, set[str]]()
    for row, group in zip(compared.order, board["group"], strict=True):
        parts.setdefault(used[row].tobytes(), set()).update(group)
    named = ["".join(sorted(part)) for part in parts.values() if part]
    return f"; letters compare only {' and '.join(f'within {each}' for each in named)}" * (len(named) > 1)


def _by_family(board: pd.DataFrame, means: Means) -> list[str]:
    """A line when another row would be first if every family of targets counted the same."""
    equal = board.filter(regex="^asr ").mean(axis=1)
    if not means.common or equal.isna().all() or equal[0] > equal.max() - 1e-9:
        return []
    one, other = board.iloc[int(equal.argmax())], board.iloc[0]
    return [
        f"if every family of targets counted the same, {one['attack']} on {one['surrogates']} would be first "
        f"({percent(equal.max(), 1)} %; {other['attack']} on {other['surrogates']} {percent(equal[0], 1)} %)"
    ]


def _compute(rows: Rows) -> pd.DataFrame:
    return _leaderboard(rows.means, rows.samples, rows.cells, "target")


def _caption(board: pd.DataFrame) -> list[str]:
    held = held_out_names(board.attrs.get("targets"), "each row's own held-out targets")
    over_images = f"{over(board.attrs.get('denominator', ''))}, n = {sizes(board['n'])}"
    lettered = "rows that share a letter cannot be told apart"
    lines = [f"Mean attack success rate in % over {held}; {over_images}."]
    if board["models_low"].notna().any():
        ranks = ", 95 % interval of the rank" if board["rank_low"].notna().any() else ""
        first = (
            f"{lettered} (two-way test, Holm, 5 %)" if board["models_group"].any()
            else "p, to first: of the difference to the first row (two-way test, Holm over all pairs)"
        )  # fmt: skip
        lines.append(
            "New models and new images: targets and images both count as samples [95 % two-way "
            f"interval{ranks}]; {first}."
        )
    elif (board["targets"] > 0).any():
        lines.append(
            f"Fewer than {LEAST_TARGETS} held-out targets: new models are out of reach, and everything here "
            "is about these targets."
        )
    these = f"; {lettered} (paired sign-flip test, Holm, 5 %)" if board["group"].any() else ""
    lines.append(
        f"These targets, new images: images alone count as samples [95 % bootstrap interval]{these}."
    )
    if len(board) > MOST_LETTERS and not board["group"].any():
        lines.append(f"There are no letters above {MOST_LETTERS} rows.")
    if families := [name.removeprefix("asr ") for name in board if str(name).startswith("asr ")]:
        lines.append(f"{', '.join(families)}: means over the held-out targets of one family.")
    return [
        *lines,
        "F/B: forward/backward passes per image. Pareto: no attack on the same surrogates is as strong for "
        "less compute (forwards + 2 backwards).",
        *(f"Data: {data}" for data in board.attrs.get("data") or []),
        *(f"Note: {note}." for note in board.attrs.get("notes", [])),
    ]


declare(Board(
    "leaderboard", "attacks ranked by their transfer to models they never saw", COLUMNS, _compute,
    below="the samples and cells", about={"denominator": "", "targets": None, "notes": None, "data": None},
    caption=_caption,
    keys=("rank", "rank_low", "models_group", "group", "p_first", "suite", "attack", "surrogates"),
    once=("rank_low", "models_group", "group", "p_first"),
    order=("mean_asr", "models_low", "asr_low", "asr *", "targets", "white_box_asr", "forwards_per_sample",
           "pareto", "seconds_per_image", "mean_linf"),
))  # fmt: skip
