"""The matrix and the board as people read them: on a terminal, in a paper, in another program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import RenderableType
from rich.text import Text

from advens.errors import unknown
from advens.printable import printable
from advens.results.boards.matrix import held_out_means
from advens.results.display import text
from advens.results.display.blocks import Column, fits, split, table, text_of

OVER = {
    "target": "images the target gets right (all images for targeted attacks)",
    "all": "all images, misclassified before or not",
    "common": "images that every target gets right",
}
_LABEL = 18  # characters of an attack's or a set's name before it is folded
_HEADER = 12
_NARROW = 8  # of a column's header where there is little room


def render_matrix(frame: pd.DataFrame, format: str = "table", width: int | None = None) -> str:
    """The matrix as text.

    Args:
        frame: what ``transfer_matrix`` gives.
        format: ``table`` (at most ``width`` characters, 80 by default), ``csv``, ``json``,
            ``markdown``.

    Raises:
        InputError: for another format.
    """
    return _written(frame, format, width, matrix_parts, _matrix)


def render_leaderboard(frame: pd.DataFrame, format: str = "table", width: int | None = None) -> str:
    """The board as text; arguments as ``render_matrix``."""
    return _written(frame, format, width, leaderboard_parts, _board)


def robustness_parts(frame: pd.DataFrame, width: int) -> list[RenderableType]:
    """What ``robustness`` gives for a terminal of that width, as rich renderables."""
    keys, columns, lines = _robustness(frame, _LABEL)
    return [*_spaced(split(keys, columns, width)), *_caption(lines)]


def render_robustness(frame: pd.DataFrame, format: str = "table", width: int | None = None) -> str:
    """What ``robustness`` gives as text; arguments as ``render_matrix``."""
    return _written(frame, format, width, robustness_parts, _robustness)


def _written(frame: pd.DataFrame, format: str, width: int | None, parts: Any, laid_out: Any) -> str:
    if format == "table":
        return text_of(parts(frame, width or 80), width or 80)
    if format == "csv":
        return text.as_csv(frame)
    if format == "json":
        return text.as_json(frame)
    if format == "markdown":
        keys, columns, lines = laid_out(frame, fold=10_000)
        return _markdown(keys + columns, lines)
    raise unknown("format", format, text.FORMATS)


def render_comparison(
    found: dict[str, Any], format: str = "table", width: int | None = None
) -> str:
    """What ``compare`` gives as text; arguments as ``render_matrix``."""
    rows = found["each"] if len(found["each"]) == 1 else [*found["each"], found]
    if format == "json":
        return text.dump(found)
    if format == "csv":
        kept = ("surrogates", "difference", "low", "high", "p", "n", "targets")
        frame = pd.DataFrame([{k: row[k] for k in kept} for row in rows])
        frame.insert(0, "b", found["b"])
        frame.insert(0, "a", found["a"])
        for name in ("surrogates", "targets"):
            frame[name] = frame[name].map(" ".join)
        return text.as_csv(frame)
    if format not in text.FORMATS:
        raise unknown("format", format, text.FORMATS)
    sets = [*(", ".join(row["surrogates"]) for row in found["each"]), "all of these"][: len(rows)]
    keys = [Column("surrogates", tuple(text.fold(name, 40) for name in sets), right=False)]
    columns = [
        Column("difference, points", tuple(
            f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
            for row in rows
        )),
        Column("p", tuple(f"{row['p']:.2g}" for row in rows)),
        Column("targets", tuple(str(len(row["targets"])) for row in rows)),
        Column("n", tuple(str(row["n"]) for row in rows)),
    ]
    verdict = "differ" if found["p"] < 0.05 else "cannot be told apart"
    lines = [
        f"{found['a']} minus {found['b']}: they {verdict} (paired sign-flip test over images, "
        f"p = {found['p']:.2g}; [95 % bootstrap interval]).",
        f"Success over {OVER[found['denominator']]}, on targets held out from both: "
        f"{', '.join(text.shorten(found['targets']))}.",
    ]
    if format == "markdown":
        return _markdown(keys + columns, lines)
    return text_of([*split(keys, columns, width or 80), *_caption(lines)], width or 80)


def matrix_parts(frame: pd.DataFrame, width: int) -> list[RenderableType]:
    """The matrix and its caption for a terminal of that width, as rich renderables.

    The first of these that fits: one table; the same turned round (targets as rows); both again with
    shorter intervals; blocks of targets.
    """
    for short in (False, True):
        keys, columns, lines = _matrix(frame, _HEADER, short)
        for layout in ((keys, columns), _turned(keys, columns, _NARROW if short else _LABEL)):
            if fits(*layout, width):
                return [table(*layout), *_caption(lines)]
    keys, columns, lines = _matrix(frame, _HEADER)
    return [*_spaced(split(keys, columns, width)), *_caption(lines)]


def leaderboard_parts(frame: pd.DataFrame, width: int) -> list[RenderableType]:
    """The board and its caption for a terminal of that width, as rich renderables."""
    keys, columns, lines = _board(frame, _LABEL)
    return [*_spaced(split(keys, columns, width)), *_caption(lines)]


def _matrix(
    frame: pd.DataFrame, fold: int, short: bool = False
) -> tuple[list[Column], list[Column], list[str]]:
    """Keys, one column per target and the mean, caption; rows by set, then strength.

    Args:
        short: whether an interval is written as its longer half.
    """
    written = text.plus_minus if short else text.interval
    means, common = held_out_means(frame)
    order = means.reset_index().sort_values(
        ["suite", "surrogates", "mean_asr", "attack"], ascending=[True, True, False, True]
    )
    rows = list(order[["suite", "attack", "surrogates"]].itertuples(index=False, name=None))
    targets = sorted(frame["target"].unique())
    digits = text.digits_for(frame["asr_low"], frame["asr_high"])
    found = {
        (r.suite, r.attack, r.surrogates, r.target): r for r in frame.itertuples(index=False)
    }
    columns = []
    for target, name in zip(targets, text.shorten(targets), strict=True):
        cells, styles = [], []
        for row in rows:
            r: Any = found.get((*row, target))
            mark = "*" if r is not None and r.white_box else ""
            cells.append(
                "" if r is None else written(r.asr, r.asr_low, r.asr_high, digits, mark)
            )
            styles.append("dim" if mark else "")
        columns.append(Column(text.fold(name, fold), tuple(cells), styles=tuple(styles)))
    mean = tuple(text.percent(means.loc[row], 1) for row in rows)
    columns.append(Column("mean\nheld-out", mean, styles=("bold",) * len(rows)))
    sizes = sorted(set(frame["n"]))
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    over = OVER.get(str(frame.attrs.get("denominator", "")), "the denominator's images")
    held = _held_out(common, "the row's own held-out targets")
    white = " * white-box, not in the mean." if frame["white_box"].any() else ""
    seeds = f", mean over {max(frame['seeds'])} seeds" if max(frame["seeds"]) > 1 else ""
    lines = [
        f"Attack success rate in % over {over}, n = {n}{seeds} "
        f"{'± the longer half of the 95 % Wilson interval' if short else '[95 % Wilson interval]'}.",
        f"Mean over {held}.{white}",
    ]
    if drawn := frame.attrs.get("randomized"):
        lines.append(
            f"Randomized, expected over the members: {', '.join(text.shorten(drawn))}. Transfer is no "
            "adaptive attack on these: 'advens robustness' with arc is."
        )
    return _keys(rows, fold), columns, lines


def _board(frame: pd.DataFrame, fold: int) -> tuple[list[Column], list[Column], list[str]]:
    rows = list(frame[["suite", "attack", "surrogates"]].itertuples(index=False, name=None))
    digits = text.digits_for(frame["asr_low"], frame["asr_high"])

    def column(header: str, name: str, style: Any) -> Column:
        return Column(header, tuple(style(value) for value in frame[name]))

    means = zip(frame["mean_asr"], frame["asr_low"], frame["asr_high"], strict=True)
    keys = [
        column("#", "rank", str),
        Column("group", tuple(text.fold(g, 8) for g in frame["group"]), right=False),
        *_keys(rows, fold),
    ]
    columns = [
        Column("mean ASR", tuple(text.interval(*m, max(digits, 1)) for m in means)),
        column("white-box", "white_box_asr", lambda v: text.percent(v, 1)),
        Column("F/B passes", tuple(
            f"{text.number(f)}/{text.number(b)}" for f, b in zip(
                frame["forwards_per_sample"], frame["backwards_per_sample"], strict=True)
        )),
        column("Pareto", "pareto", lambda v: "yes" if v else ""),
        column("ms/image", "seconds_per_image", lambda v: text.number(1000 * v)),
        column("l_inf", "mean_linf", text.number),
    ]
    if frame["targets"].nunique() > 1:  # else the caption says how many
        columns.insert(1, column("targets", "targets", str))
    sizes = sorted(set(frame["n"]))
    n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    over = OVER.get(str(frame.attrs.get("denominator", "")), "the denominator's images")
    held = _held_out(frame.attrs.get("targets"), "each row's own held-out targets")
    lines = [
        f"Mean attack success rate in % over {held}; {over}, n = {n} [95 % bootstrap interval].",
        "Rows sharing a letter cannot be told apart (paired sign-flip test over images, Holm, "
        "5 %). F/B: forward/backward passes per image.",
        "Pareto: no attack on the same surrogates is as strong for less compute (forwards + 2 backwards).",
        *(f"Note: {note}." for note in frame.attrs.get("notes", [])),
    ]
    return keys, columns, lines


def _robustness(frame: pd.DataFrame, fold: int) -> tuple[list[Column], list[Column], list[str]]:
    def column(header: str, name: str, style: Any, right: bool = True) -> Column:
        return Column(header, tuple(style(value) for value in frame[name]), right=right)

    def passes(f: str, b: str) -> tuple[str, ...]:
        return tuple(
            f"{text.number(x)}/{text.number(y)}" for x, y in zip(frame[f], frame[b], strict=True)
        )

    keys = [
        Column("model", tuple(text.shorten(list(frame["model"]))), right=False),
        column("attack", "attack", lambda name: text.fold(name, fold), right=False),
    ]
    left = zip(frame["robust_accuracy"], frame["low"], frame["high"], strict=True)
    columns = [
        Column("robust accuracy", tuple(text.interval(*row, 1) for row in left)),
        column("group", "group", lambda g: text.fold(g, 8), right=False),
        Column("F/B passes", passes("forwards_per_sample", "backwards_per_sample")),
        Column("with stages\nbefore", passes("total_forwards", "total_backwards")),
        column("ms/image", "total_seconds", lambda v: text.number(1000 * v)),
    ]
    clean = frame.drop_duplicates("model")[["model", "clean_accuracy"]]
    said = ", ".join(
        f"{model} {text.percent(accuracy, 1)}"
        for model, accuracy in zip(text.shorten(list(clean["model"])), clean["clean_accuracy"], strict=True)
    )
    lines = [
        f"Accuracy left in %, over all images, n = {frame['n'].max()} [95 % Wilson interval]. Clean: {said}.",
        "Attacks on one model that share a letter cannot be told apart (paired sign-flip test over "
        "images, Holm, 5 %). Passes and time are means over all images; broken samples leave at once.",
        *(f"Note: {note}." for note in frame.attrs.get("notes", [])),
    ]
    return keys, columns, lines


def _keys(rows: Sequence[tuple[str, ...]], fold: int) -> list[Column]:
    """The columns that name a row; the suite only when there are several."""
    label = max(fold, _LABEL)
    suites, attacks, sets = zip(*rows, strict=True) if rows else ((), (), ())
    keys = [
        Column("attack", tuple(text.fold(name, label) for name in attacks), right=False),
        Column("surrogates", tuple(text.fold(n, label) for n in text.shorten(sets)), right=False),
    ]
    if len(set(suites)) > 1:
        keys.insert(0, Column("suite", tuple(text.fold(n, label) for n in suites), right=False))
    return keys


def _held_out(common: list[str] | None, otherwise: str) -> str:
    if common is None:
        return otherwise
    names = ", ".join(text.shorten(common))
    return f"the {len(common)} target{'s' * (len(common) > 1)} held out from every row ({names})"


def _turned(keys: list[Column], columns: list[Column], fold: int) -> tuple[list[Column], list[Column]]:
    """Targets as rows, attacks on their surrogates as columns, whose names are folded."""
    names = [column.header.replace("\n", "") for column in columns]
    names[-1] = columns[-1].header.replace("\n", " ")
    left = [Column("target", tuple(names), right=False)]
    right = [
        Column(
            "\n".join(text.fold(key.cells[k].replace("\n", ""), fold) for key in keys),
            tuple(column.cells[k] for column in columns),
            styles=tuple(column.styles[k] for column in columns),
        )
        for k in range(len(keys[0].cells))
    ]
    return left, right


def _markdown(columns: list[Column], lines: list[str]) -> str:
    header = [column.header for column in columns]
    return text.as_markdown(header, list(zip(*(c.cells for c in columns), strict=True)), lines)


def _spaced(tables: Sequence[RenderableType]) -> list[RenderableType]:
    spaced: list[RenderableType] = []
    for k, part in enumerate(tables):
        spaced += [Text(""), part] if k else [part]
    return spaced


def _caption(lines: Sequence[str]) -> list[RenderableType]:
    return [Text(""), *(Text(printable(line), style="italic") for line in lines)]
