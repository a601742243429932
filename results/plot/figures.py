"""Figures: functions from the numbers of a report to figures of matplotlib, which know their caption.

No state of matplotlib that others see is changed, and no setting of theirs changes a figure.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.textpath import TextPath
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from advens.printable import printable
from advens.results.boards.outcomes import sizes
from advens.results.formats import fold, percent
from advens.results.report import charts, colour
from advens.results.report.collect import Cell, Curve, Growing, Rate, Robustness, Row, Transfer

Question = Literal["models", "targets"]

QUESTIONS: dict[Question, str] = {
    "models": "new models and new images (two-way variance)",
    "targets": "these targets and new images (bootstrap over images)",
}
"""What the intervals of a mean are for."""
_SHORT: dict[Question, str] = {"models": "new models", "targets": "these targets"}
INK, SOFT, GRID = "#1a1a1a", "#6b6b6b", "#dddddd"
STRONG, WEAK = colour.LIGHT.at(1.0), colour.LIGHT.at(0.55)
SERIES = (STRONG, "#b3500e", "#6b6b6b", "#2f7d5b", "#8a3f86", "#1a1a1a")
MARKS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    "--",
)
MOST_SERIES = len(MARKS)
"""Lines in one chart; more are drawn in several."""
SMALLEST = 4.5
"""Points of the smallest number that is written into a cell."""
LONGEST = 48
"""Characters of a name above a column."""
_METADATA: dict[str, dict[str, Any]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}
_STYLE: dict[str, Any] = {
    "pdf.fonttype": 42,
    "ps.fonttype": 42,
    "svg.hashsalt": "advens",
    "text.usetex": False,
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "axes.formatter.use_mathtext": False,
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.5,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.titlesize": "medium",
    "axes.labelsize": "medium",
    "xtick.labelsize": "medium",
    "ytick.labelsize": "medium",
    "legend.fontsize": "medium",
    "legend.handlelength": 2.4,
    "savefig.dpi": 300,
    "savefig.bbox": None,
}


@dataclass(frozen=True)
class Size:
    """How large a figure is.

    Args:
        width: in inches.
        font: in points.
    """

    width: float = 3.25
    font: float = 8.0


class Drawing(Figure):
    """A figure that is saved with embedded fonts and the same bytes every time, and that notebooks show.

    Attributes:
        caption: what a paper may write below it: n, the intervals, and the question that they answer.
    """

    caption: str = ""

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """As matplotlib's; to a file whose ending or ``format`` says of what kind it is."""
        form = str(kwargs.get("format") or str(fname).rpartition(".")[2])
        about = _METADATA.get(form, {}) | (kwargs.pop("metadata", None) or {})
        with _styled(Size()):
            super().savefig(fname, metadata=about, **kwargs)

    def encoded(self, form: str) -> bytes:
        """The figure as a file of that kind: ``pdf``, ``svg`` or ``png``."""
        file = io.BytesIO()
        self.savefig(file, format=form)
        return file.getvalue()

    def _repr_png_(self) -> bytes:
        return self.encoded("png")


# --- the figures ----------------------------------------------------------------------------------


def matrix(transfer: Transfer, size: Size) -> Drawing:
    """The transferability matrix: a cell for every attack and target, targets grouped by family.

    Numbers are left out of cells that are too narrow for them; a scale then says what the colours are.
    """
    with _styled(size):
        return _Matrix(transfer, size).drawing()


def board(transfer: Transfer, size: Size, questions: Sequence[Question]) -> Drawing:
    """The leaderboard: of every row the mean with an interval for each question, and its letters."""
    with _styled(size):
        rows = transfer.rows
        labels = [_folded(f"{row.rank}. {_called(row, transfer)}", size, 0.35) for row in rows]
        letters = {
            question: found
            for question in questions
            if any(found := [_glyphs(_letters(row, question)) for row in rows])
        }
        line = size.font * 1.25 / 72
        lines = max(label.count("\n") + 1 for label in labels)
        step = max(line * lines, line * (0.6 + 0.6 * len(questions))) + 0.05
        left = max(_wide(label, size.font) for label in labels) + 0.12
        columns = [
            max(_wide(text, size.font) for text in (*_SHORT[question].split(), *found)) + 0.1
            for question, found in letters.items()
        ]
        top = line * 2.4 + (line * 1.2 if len(questions) > 1 else 0)
        height, bottom = top + step * len(rows) + line * 2.8, line * 2.8
        drawing = Drawing(figsize=(size.width, height))
        width = size.width - left - sum(columns) - 0.08
        axes = drawing.add_axes(
            (left / size.width, bottom / height, width / size.width, step * len(rows) / height)
        )
        ends = [e for row in rows for q in questions for e in _all(_rate(row, q))]
        axes.set(xlim=_span(ends), ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), labels)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("mean attack success rate, %")
        for k, question in enumerate(questions):
            offset = (k - (len(questions) - 1) / 2) * 0.3
            _bars(axes, [_rate(row, question) for row in rows], offset, question, strong=k == 0)
        if len(questions) > 1:
            drawing.legend(
                *axes.get_legend_handles_labels(),
                loc="upper left",
                ncols=2,
                borderaxespad=0.2,
                columnspacing=1.2,
                handlelength=1.6,
            )
        edge = left + width
        for (question, found), wide in zip(letters.items(), columns, strict=True):
            place = (edge + wide / 2) / size.width
            drawing.text(
                place,
                (bottom + step * len(rows) + 0.03) / height,
                "\n".join(_SHORT[question].split()),
                ha="center",
                va="bottom",
                color=SOFT,
                linespacing=1.0,
            )
            for k, text in enumerate(found):
                y = (bottom + step * (len(rows) - 0.5 - k)) / height
                drawing.text(place, y, text, ha="center", va="center", gid=f"letters-{question}-{k}")
            edge += wide
        drawing.caption = " ".join(
            [
                f"Mean attack success rate in % over {_over(transfer)}, {_n(rows)}.",
                *map(_intervals, questions),
                *["Rows that share a letter cannot be told apart (Holm, 5 %)."] * bool(letters),
            ]
        )
        return _inert(drawing)


def pareto(transfer: Transfer, size: Size, question: Question) -> Drawing:
    """Mean rates with intervals against passes; the front of each set of surrogates is joined."""
    with _styled(size):
        rows = [row for row in transfer.rows if row.compute and row.new.value is not None]
        names = [_glyphs(f"{row.rank}  {_called(row, transfer)}") for row in rows]
        line = size.font * 1.25 / 72
        columns = max(int(size.width / (max(_wide(name, size.font) for name in names) + 0.15)), 1)
        places = math.ceil(len(names) / columns)
        left, right, top = size.font * 0.055, 0.1, 0.1
        below, tall = line * (places + 3.2), max(min(size.width * 0.68, 3.6), 1.6)
        height = top + tall + below
        drawing = Drawing(figsize=(size.width, height))
        wide = size.width - left - right
        axes = drawing.add_axes((left / size.width, below / height, wide / size.width, tall / height))
        spent = [row.compute or 0.0 for row in rows]
        logarithmic = max(spent) / min(spent) >= 3
        _x_axis(axes, spent, logarithmic)
        low, high = _span([e for row in rows for e in _all(_rate(row, question))])
        axes.set_ylim(low, high)
        axes.set_xlabel("forward + 2 × backward passes per image")
        axes.set_ylabel("mean attack success rate, %")

        def scaled(value: float) -> float:
            return math.log10(value) if logarithmic else value

        begin, end = map(scaled, axes.get_xlim())
        xs = [72 * wide * (scaled(x) - begin) / (end - begin) for x in spent]
        ys = [72 * tall * (1 - (100 * (row.new.value or 0.0) - low) / (high - low)) for row in rows]
        for key in dict.fromkeys((row.suite, row.surrogates) for row in rows if row.pareto):
            front = sorted(
                (
                    (x, row)
                    for x, row in zip(spent, rows, strict=True)
                    if row.pareto and (row.suite, row.surrogates) == key
                ),
                key=lambda each: each[0],
            )
            axes.step(
                [x for x, _ in front],
                [_percent(row.new.value) for _, row in front],
                where="post",
                color=WEAK,
                linewidth=0.8,
                zorder=1.5,
            )
        beside = charts.beside(xs, 6)
        taken: list[tuple[float, float]] = []
        marks = list(zip(beside, ys, strict=True))
        for row, x, place, (at, y) in zip(rows, spent, xs, marks, strict=True):
            moved = ScaledTranslation((at - place) / 72, 0, drawing.dpi_scale_trans)
            rate = _rate(row, question)
            if rate.low is not None and rate.high is not None:
                axes.vlines(
                    [x],
                    [_percent(rate.low)],
                    [_percent(rate.high)],
                    color=WEAK,
                    linewidth=0.8,
                    transform=axes.transData + moved,
                )
            axes.plot(
                [x],
                [_percent(rate.value)],
                "o",
                color=STRONG,
                markerfacecolor=STRONG if row.pareto else "white",
                transform=axes.transData + moved,
                gid=f"row-{row.rank}",
            )
            half = 36 * _wide(str(row.rank), size.font)
            others = [*taken, *(mark for mark in marks if mark != (at, y))]
            free = charts.free_place(at, y, half, others, 72 * wide) or (at + 6 + half, y - 6)
            axes.annotate(
                str(row.rank),
                (x, _percent(rate.value)),
                (free[0] - place, y - free[1]),
                textcoords="offset points",
                ha="center",
                va="center",
            )
            taken.append(free)
        for k, name in enumerate(names):
            column, place = divmod(k, places)
            drawing.text(
                (0.06 + column * (size.width - 0.06) / columns) / size.width,
                (line * (places - place) - 0.02) / height,
                name,
                va="top",
                gid=f"key-{k}",
            )
        drawing.caption = (
            f"Mean attack success rate in % over {_over(transfer)}, {_n(rows)}, against passes "
            f"through surrogates. {_intervals(question)} Filled: no attack on the same "
            "surrogates is as strong for less compute; these are joined."
        )
        return _inert(drawing)


def curves(swept: Sequence[Curve], size: Size, question: Question) -> Drawing:
    """Mean rates with intervals over what a suite sweeps: a chart for every setting."""
    with _styled(size):
        charts_of: list[tuple[str, list[_Line]]] = []
        for key in dict.fromkeys(curve.key for curve in swept):
            own = [curve for curve in swept if curve.key == key]
            lines = [
                _Line(
                    curve.label,
                    [x for x, _ in curve.points],
                    [_rate(row, question) for _, row in curve.points],
                )
                for curve in own
            ]
            charts_of += [(key, part) for part in _parts(lines)]
        drawing = _side_by_side(charts_of, size, "mean attack success rate, %")
        rows = [row for curve in swept for _, row in curve.points]
        keys = ", ".join(dict.fromkeys(key for key, _ in charts_of))
        targets = sorted({row.targets for row in rows})
        count = f"{targets[0]}" if len(targets) == 1 else f"{targets[0]} to {targets[-1]}"
        drawing.caption = (
            f"Mean attack success rate in % over {count} held-out targets, {_n(rows)}, over {keys}. "
            f"{_intervals(question)}"
        )
        return _inert(drawing)


def robustness(found: Robustness, size: Size) -> Drawing:
    """Accuracy that every attack leaves to every model, and accuracy over eps from the sanity report."""
    with _styled(size):
        attacks = list(dict.fromkeys(left.attack for model in found.models for left in model.attacks))
        worst = [_WORST] * any(model.worst is not None for model in found.models)
        ticks = [_CLEAN, *attacks, *worst]
        lines = []
        for model in found.models:
            rates = {_CLEAN: Rate(model.clean)} | {left.attack: left.rate for left in model.attacks}
            if model.worst is not None:
                rates[_WORST] = model.worst
            at = [k for k, tick in enumerate(ticks) if tick in rates and rates[tick].value is not None]
            lines.append(_Line(model.short, [float(k) for k in at], [rates[ticks[k]] for k in at]))
        panels: list[tuple[str, list[_Line]]] = [("", part) for part in _parts(lines)]
        named = len(panels)
        order = {model.short: k for k, model in enumerate(found.models)}
        growing = sorted(
            (g for g in found.growing if g.key == "eps"), key=lambda g: order.get(g.model, len(order))
        )
        panels += [("eps", part) for part in _parts([_grown(each) for each in growing])]
        drawing = _side_by_side(panels, size, "accuracy, %", ticks=(named, _steps(ticks)))
        n = sizes(pd.Series([model.n for model in found.models]))
        drawing.caption = (
            f"Accuracy in % before and after every attack, over all images, n = {n}. Bars: 95 % Wilson "
            "intervals for these models and new images; nothing is said about new models."
        )
        if growing:
            n = sizes(pd.Series([each.n for each in growing]))
            drawing.caption += f" Over eps: what one gradient attack leaves, n = {n}, without intervals."
        return _inert(drawing)


# --- the matrix -----------------------------------------------------------------------------------


class _Matrix:
    """The layout of a matrix: one pair of axes, in inches from the top left."""

    def __init__(self, transfer: Transfer, size: Size) -> None:
        self.transfer, self.size = transfer, size
        self.line = size.font * 1.25 / 72
        self.names = [_folded(_called(row, transfer), size, 0.3) for row in transfer.rows]
        self.left = max(_wide(name, size.font) for name in self.names) + 0.1
        targets, families = len(transfer.targets), transfer.families
        gap = self.line * 0.35
        room = size.width - self.left - 0.06 - gap * len(families)
        self.cell = room / (targets + 1)
        self.edges, x = [], self.left
        for family in (count for _, count in families):
            self.edges += [x + self.cell * k for k in range(family)]
            x += family * self.cell + gap
        self.edges.append(x)  # the mean
        self.font = min(size.font, 72 * self.cell * 0.92 / (72 * _wide("100", 1.0)))
        self.heads = [_cut(_glyphs(target.short)) for target in transfer.targets] + ["mean"]
        longest = max(_wide(name, size.font) for name in self.heads)
        self.sideways = longest > self.cell
        self.head = min(size.font, 72 * self.cell / 1.1) if self.sideways else size.font
        self.tall = longest * self.head / size.font if self.sideways else self.line
        spans = [(name or "other", count) for name, count in families]
        self.families = [(_glyphs(name), count) for name, count in spans]
        self.upright = any(_wide(name, size.font) > self.cell * count for name, count in self.families)
        over = (
            max((_wide(name, size.font) for name, _ in self.families), default=0.0)
            if self.upright
            else self.line
        )
        self.top = self.tall + over + 0.2
        self.row = self.line * max(name.count("\n") + 1 for name in self.names) + 0.03

    def drawing(self) -> Drawing:
        transfer, size = self.transfer, self.size
        bottom = self.top + self.row * len(self.names)
        foot = [self._white_box, self._scale][: 1 + (self.font < SMALLEST)]
        foot = foot if any(c and c.white_box for line in transfer.cells for c in line) else foot[1:]
        height = bottom + 0.06 + self.line * 1.5 * len(foot)
        drawing = Drawing(figsize=(size.width, height))
        self.axes = drawing.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, size.width), ylim=(height, 0))
        self.axes.axis("off")
        self._header()
        for k, (name, row, cells) in enumerate(zip(self.names, transfer.rows, transfer.cells, strict=True)):
            y = self.top + self.row * k
            self.axes.text(self.left - 0.05, y + self.row / 2, name, ha="right", va="center", linespacing=1.1)
            for j, cell in enumerate(cells):
                self._cell(self.edges[j], y, cell, f"cell-{k}-{j}")
            self._number(self.edges[-1], y, row.new.value, "", f"mean-{k}", INK)
        for k, draw in enumerate(foot):
            draw(bottom + 0.06 + self.line * 1.5 * k)
        drawing.caption = " ".join(
            [
                "Attack success rate in % of every attack (rows) on every target (columns), over images that "
                f"the target gets right (all images for targeted attacks), {_n(transfer.rows)}.",
                f"Mean: over {_over(transfer)}.",
                *["Hatched and starred: white-box, not in the mean."] * (self._white_box in foot),
                "Intervals are in the table of the run.",
            ]
        )
        return _inert(drawing)

    def _header(self) -> None:
        base = self.top - 0.05
        for x, name in zip(self.edges, self.heads, strict=True):
            self.axes.text(
                x + self.cell / 2,
                base,
                name,
                ha="center",
                va="bottom",
                fontsize=self.head,
                rotation=90 if self.sideways else 0,
            )
        above, start = base - self.tall - 0.06, 0
        for name, count in self.families:
            first, last = self.edges[start], self.edges[start + count - 1] + self.cell
            self.axes.plot([first, last], [above, above], color=SOFT, linewidth=0.6, solid_capstyle="butt")
            self.axes.text(
                (first + last) / 2,
                above - 0.03,
                name,
                ha="center",
                va="bottom",
                color=SOFT,
                rotation=90 if self.upright else 0,
            )
            start += count

    def _cell(self, x: float, y: float, cell: Cell | None, gid: str) -> None:
        if cell is None or cell.rate.value is None:
            return
        level = colour.level(cell.rate.value)
        face = colour.LIGHT.at(level / (colour.LEVELS - 1))
        ink = colour.ink(face)
        self._box(x, y, face, cell.white_box, gid)
        self._number(x, y, cell.rate.value, "*" * cell.white_box, gid, ink)

    def _box(self, x: float, y: float, face: str, hatched: bool, gid: str) -> None:
        self.axes.add_patch(Rectangle((x, y), self.cell, self.row, facecolor=face, linewidth=0.0, gid=gid))
        if hatched:  # strokes between the cell's colour and that of its number, so that both are seen
            stroke = colour.LIGHT.at(0.45 if colour.ink(face) == "#000000" else 0.7)
            self.axes.add_patch(
                Rectangle(
                    (x, y),
                    self.cell,
                    self.row,
                    facecolor="none",
                    edgecolor=stroke,
                    hatch="/////",
                    linewidth=0.0,
                )
            )
        self.axes.add_patch(
            Rectangle((x, y), self.cell, self.row, facecolor="none", edgecolor="white", linewidth=0.6)
        )

    def _number(self, x: float, y: float, value: float | None, mark: str, gid: str, ink: str) -> None:
        if self.font < SMALLEST and not gid.startswith("mean"):
            return
        text = percent(float("nan") if value is None else value) + mark
        font = max(self.font, SMALLEST) * min(1.0, 0.92 * self.cell / _wide(text, max(self.font, SMALLEST)))
        self.axes.text(
            x + self.cell / 2,
            y + self.row / 2,
            text,
            ha="center",
            va="center",
            fontsize=font,
            color=ink,
            gid=gid,
        )

    def _white_box(self, y: float) -> None:
        x, side = self.left, self.line
        self.axes.add_patch(
            Rectangle(
                (x, y),
                side,
                side,
                facecolor=colour.LIGHT.at(0.2),
                edgecolor=colour.LIGHT.at(0.6),
                hatch="/////",
                linewidth=0.0,
            )
        )
        self.axes.text(x + side + 0.06, y + side / 2, "* white-box, not in the mean", va="center")

    def _scale(self, y: float) -> None:
        width = min(1.2, self.size.width - self.left - 0.6)
        for k in range(colour.LEVELS):
            face = colour.LIGHT.at(k / (colour.LEVELS - 1))
            self.axes.add_patch(
                Rectangle(
                    (self.left + 0.1 + width * k / colour.LEVELS, y),
                    width / colour.LEVELS + 0.002,
                    self.line,
                    facecolor=face,
                    linewidth=0.0,
                )
            )
        self.axes.text(self.left + 0.06, y + self.line / 2, "0", ha="right", va="center")
        self.axes.text(self.left + 0.14 + width, y + self.line / 2, "100 %", va="center")


# --- lines ----------------------------------------------------------------------------------------

_CLEAN, _WORST = "clean", "worst of all"


@dataclass(frozen=True)
class _Line:
    label: str
    xs: Sequence[float]
    rates: Sequence[Rate]


def _grown(each: Growing) -> _Line:
    return _Line(each.model, each.at, [Rate(value) for value in each.accuracy])


def _parts(lines: Sequence[_Line]) -> list[list[_Line]]:
    return [list(lines[k : k + MOST_SERIES]) for k in range(0, len(lines), MOST_SERIES)]


def _steps(names: Sequence[str]) -> list[str]:
    """Names of attacks; one that goes on from that before is called by what it adds."""
    return [
        f"+ {name[len(before) + 1 :]}" if before and name.startswith(f"{before}+") else name
        for before, name in zip(["", *names], names, strict=False)
    ]


def _side_by_side(
    panels: Sequence[tuple[str, list[_Line]]],
    size: Size,
    y_label: str,
    ticks: tuple[int, Sequence[str]] = (0, ()),
) -> Drawing:
    """A chart for every key and its lines, as many in a row as the width has room for.

    Args:
        ticks: how many of the charts, from the first, have names on their x axis, and these names.
    """
    columns = min(len(panels), max(int(size.width / (size.font * 0.3)), 1))
    lines = math.ceil(len(panels) / columns)
    tall = (
        max(len(part) for _, part in panels) * size.font * 1.3 / 72 * any(len(part) > 1 for _, part in panels)
    )
    wide = max([0.0, *(_wide(_cut(_glyphs(name), 24), size.font) for name in ticks[1])])
    height = lines * (min(size.width / columns * 0.62, 2.4) + 0.3 + tall) + 0.7 * wide
    longest = max(int(size.width / columns * 72 / (0.6 * size.font)) - 12, 10)  # characters in a key
    drawing = Drawing(figsize=(size.width, height), layout="constrained")
    for k, (key, part) in enumerate(panels):
        axes = drawing.add_subplot(lines, columns, k + 1)
        for s, line in enumerate(part):
            _line(axes, line, s, s - (len(part) - 1) / 2 if k < ticks[0] else 0.0, longest)
        if k < ticks[0]:
            names = [_cut(_glyphs(name), 24) for name in ticks[1]]
            axes.set_xlim(-0.4, len(names) - 0.6)
            axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
            axes.grid(visible=False, axis="x")
        else:
            _x_axis(
                axes, xs := [x for line in part for x in line.xs], min(xs) > 0 and max(xs) / min(xs) >= 10
            )
            axes.set_xlabel(_glyphs(key))
        axes.set_ylim(-2, 102)
        if k % columns == 0:
            axes.set_ylabel(y_label)
        if len(part) > 1:
            if k and [line.label for line in part] == [line.label for line in panels[k - 1][1]]:
                continue
            axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.2, labelspacing=0.2)
        else:
            axes.set_title(_folded(part[0].label, size, 0.9 / columns), loc="left")
    return drawing


def _line(axes: Axes, line: _Line, s: int, shift: float, longest: int) -> None:
    known = [(x, rate) for x, rate in zip(line.xs, line.rates, strict=True) if rate.value is not None]
    figure: Any = axes.figure
    moved = axes.transData + ScaledTranslation(2.2 * shift / 72, 0, figure.dpi_scale_trans)
    ends = [
        (x, _percent(r.low), _percent(r.high)) for x, r in known if r.low is not None and r.high is not None
    ]
    if ends:
        axes.vlines(*zip(*ends, strict=True), color=SERIES[s], linewidth=0.8, alpha=0.7, transform=moved)
    axes.plot(
        [x for x, _ in known],
        [_percent(rate.value) for _, rate in known],
        marker=MARKS[s],
        linestyle=DASHES[s],
        color=SERIES[s],
        label=_cut(_glyphs(line.label), longest),
        transform=moved,
    )


def _x_axis(axes: Axes, xs: Sequence[float], logarithmic: bool) -> None:
    low, high = min(xs), max(xs)
    if logarithmic:
        axes.set_xscale("log")
        room = (high / low) ** 0.08
        axes.set_xlim(low / room, high * room)
        subs = (1.0, 2.0, 5.0) if high / low < 150 else (1.0,)
        axes.xaxis.set_major_locator(
            LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high / low < 8 else subs)
        )
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.08 * (high - low) or 1.0
        axes.set_xlim(low - room, high + room)
        places = sorted(set(xs))
        if all(after - before > 0.12 * (high - low) for before, after in pairwise(places)):
            axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def _bars(axes: Axes, rates: Sequence[Rate], offset: float, question: Question, strong: bool) -> None:
    known = [(k + offset, rate) for k, rate in enumerate(rates) if rate.value is not None]
    ends = [
        (y, _percent(r.low), _percent(r.high)) for y, r in known if r.low is not None and r.high is not None
    ]
    tint = STRONG if strong else SERIES[1]
    if ends:
        axes.hlines(
            *zip(*ends, strict=True), color=tint, linewidth=1.6 if strong else 0.9, gid=f"bars-{question}"
        )
    axes.plot(
        [_percent(rate.value) for _, rate in known],
        [y for y, _ in known],
        "o" if strong else "s",
        color=tint,
        markersize=4 if strong else 2.8,
        label=_SHORT[question],
        gid=f"means-{question}",
    )


# --- words ----------------------------------------------------------------------------------------


def _called(row: Row, transfer: Transfer) -> str:
    """A row by its attack, and by its surrogates where there are several sets."""
    return row.name if len(transfer.sets) > 1 else row.attack


def _rate(row: Row, question: Question) -> Rate:
    return row.new if question == "models" else row.these


def _letters(row: Row, question: Question) -> str:
    return row.new_letters if question == "models" else row.these_letters


def _all(rate: Rate) -> list[float]:
    return [each for each in (rate.value, rate.low, rate.high) if each is not None]


def _n(rows: Iterable[Row]) -> str:
    return f"n = {sizes(pd.Series([row.n for row in rows]))} images"


def _over(transfer: Transfer) -> str:
    if transfer.held_out is None:
        return "the row's own held-out targets"
    return f"{len(transfer.held_out)} held-out targets ({', '.join(transfer.called(transfer.held_out))})"


def _intervals(question: Question) -> str:
    return f"95 % intervals for {QUESTIONS[question]}."


def _percent(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis in percent that holds all rates, with some room."""
    low, high = 100 * min(values, default=0.0), 100 * max(values, default=1.0)
    return max(5 * math.floor(low / 5 - 0.2), -2), min(5 * math.ceil(high / 5 + 0.2), 102)


def _folded(text: str, size: Size, share: float) -> str:
    """Text on lines that take about this share of the width."""
    return fold(_glyphs(text), max(int(share * size.width * 72 / (0.56 * size.font)), 8))


def _cut(text: str, longest: int = LONGEST) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"


def _glyphs(text: str) -> str:
    """Text on one line; characters that the font lacks are escaped, as ``\\u4e2d``."""
    return "".join(c if ord(c) in _known() else c.encode("unicode_escape").decode() for c in printable(text))


@cache
def _known() -> frozenset[int]:
    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _wide(text: str, font: float) -> float:
    """Inches that text takes, of several lines the widest."""
    return (
        max(float(TextPath((0, 0), line or " ", size=font).get_extents().width) for line in text.split("\n"))
        / 72
    )


def _styled(size: Size) -> AbstractContextManager[None]:
    """The settings of all figures and no others, for the time of a ``with``."""
    settings: AbstractContextManager[None] = style.context(
        _STYLE | {"font.size": size.font}, after_reset=True
    )
    return settings


def _inert(drawing: Drawing) -> Drawing:
    """The drawing, whose texts stay text wherever it is drawn: ``$`` begins no formula."""
    texts: Any = drawing.findobj(Text)
    for text in texts:
        text.set_parse_math(False)
        text.set_usetex(False)
    return drawing
