"""Charts: functions from numbers to SVG. Colours and fonts are those of the page, by class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from advens.printable import printable
from advens.results.report.collect import Rate

_DIGITS = ((1,), (1, 3), (1, 2, 5), (1, 2, 3, 5, 7), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9))
"""First digits of the numbers on a logarithmic axis, the fewest that give four of them."""
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4", "10 4")
SHAPES = 6
"""Different marks and dashes of the series of a chart, so that colour is never alone."""


@dataclass(frozen=True)
class Point:
    """A mark with an interval.

    Args:
        label: in the chart, beside the mark.
        title: shown on hover, and read.
        filled: whether the mark is filled.
        series: which of the lines it belongs to; None for none.
    """

    x: float
    y: Rate
    label: str
    title: str
    filled: bool = True
    series: str | None = None


@dataclass(frozen=True)
class Track:
    """A line of a chart.

    Args:
        label: beside its end.
        xs, ys: its points.
        intervals: their intervals, where they are known.
    """

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    intervals: tuple[Rate, ...] = ()


def bar(rates: Sequence[Rate], width: int = 200) -> Markup:
    """Rates of a row with their intervals, one below the other, on a scale from 0 to 100 %.

    The first is drawn strong. A rate without an interval is left out, and a single one is in the middle.
    """
    known = [rate for rate in rates if rate.value is not None and rate.low is not None]
    places = {1: (15,), 2: (10, 21)}.get(len(known), ())

    def x(value: float | None) -> str:
        return _n(6 + (width - 12) * (value or 0.0))

    parts = [f'<path class="grid" d="M{x(k / 4)} 0V30"/>' for k in range(5)]
    for k, (rate, y) in enumerate(zip(known, places, strict=True)):
        weight, radius = ("weak", 2.5) if k else ("strong", 4)
        parts.append(f'<path class="whisker {weight}" d="M{x(rate.low)} {y}H{x(rate.high)}"/>')
        parts.append(f'<circle class="dot" cx="{x(rate.value)}" cy="{y}" r="{radius}"/>')
    return Markup(
        f'<svg class="bar" width="{width}" height="30" viewBox="0 0 {width} 30" aria-hidden="true">'
        f"{''.join(parts)}</svg>"
    )


def axis_header(width: int = 200) -> Markup:
    """The scale above a column of bars."""
    inner, left = width - 12, 6
    labels = "".join(
        f'<text x="{_n(left + inner * k / 4)}" y="11" text-anchor="{anchor}">{25 * k}</text>'
        for k, anchor in ((0, "start"), (1, "middle"), (2, "middle"), (3, "middle"), (4, "end"))
    )
    return Markup(
        f'<svg class="bar" width="{width}" height="14" viewBox="0 0 {width} 14" aria-hidden="true">'
        f"{labels}</svg>"
    )


def scatter(
    points: Sequence[Point], x_label: str, y_label: str, title: str, *, logarithmic: bool,
    width: int = 720, height: int = 400,
) -> Markup:  # fmt: skip
    """Marks with intervals; marks of one series are joined by steps.

    Args:
        logarithmic: whether the x axis is.
        title: what the chart shows, for those who do not see it.
    """
    highest = max(
        (end for p in points for end in (p.y.high, p.y.value) if end is not None), default=1.0
    )
    top = min(math.ceil(10 * highest + 0.2) / 10, 1.0)
    plot = _Plot(
        width,
        height,
        points_x=[p.x for p in points],
        logarithmic=logarithmic,
        y_span=(0.0, top),
        room=0.08,
    )
    parts = [plot.axes(x_label, y_label)]
    apart = beside([float(plot.x(p.x)) for p in points])
    for name in dict.fromkeys(p.series for p in points if p.series is not None):
        own = sorted((p for p in points if p.series == name), key=lambda p: p.x)
        if len(own) > 1:
            at = dict(zip(points, apart, strict=True))
            path = f"M{_n(at[own[0]])} {plot.y(own[0].y.value or 0)}" + "".join(
                f"H{_n(at[p])}V{plot.y(p.y.value or 0)}" for p in own[1:]
            )
            parts.append(f'<path class="front" d="{path}"/>')
    for point, x in zip(points, apart, strict=True):
        if point.y.low is not None and point.y.high is not None:
            low, high = plot.y(point.y.low), plot.y(point.y.high)
            parts.append(f'<path class="whisker faint" d="M{_n(x)} {low}V{high}"/>')
    marks = [
        (x, float(plot.y(point.y.value or 0))) for point, x in zip(points, apart, strict=True)
    ]
    taken: list[tuple[float, float]] = []
    for point, (x, y) in zip(points, marks, strict=True):
        mark = "mark" if point.filled else "mark open"
        parts.append(f"<g><title>{_t(point.title)}</title>")
        parts.append(f'<circle class="{mark}" cx="{_n(x)}" cy="{_n(y)}" r="5"/>')
        others = [*taken, *(each for each in marks if each != (x, y))]
        place = free_place(x, y, 3.4 * len(point.label), others, width, plot.left, plot.bottom)
        if place is not None:
            parts.append(f'<text x="{_n(place[0])}" y="{_n(place[1] + 4)}" text-anchor="middle">')
            parts.append(f"{_t(point.label)}</text>")
            taken.append(place)
        parts.append("</g>")
    return plot.svg("".join(parts), title)


def lines(
    tracks: Sequence[Track],
    x_label: str,
    y_label: str,
    title: str,
    *,
    shares: bool = False,
    width: int = 360,
    height: int = 240,
) -> Markup:
    """Lines over a common axis, told apart by dash and by the label at their end.

    Args:
        shares: whether the values are fractions, drawn from 0 to 100 %.
    """
    xs = [x for track in tracks for x in track.xs]
    ys = [y for track in tracks for y in track.ys]
    ends = [
        e for track in tracks for r in track.intervals for e in (r.low, r.high) if e is not None
    ]
    span = (0.0, 1.0) if shares else _span([*ys, *ends])
    labels = [track.label for track in tracks]
    plot = _Plot(
        width,
        height,
        points_x=xs,
        logarithmic=False,
        y_span=span,
        shares=shares,
        right=8 + min(max((6.2 * len(label) for label in labels), default=0) + 14, width * 0.36),
    )
    parts = [plot.axes(x_label, y_label)]
    for k, track in enumerate(tracks):
        for x, rate in zip(track.xs, track.intervals, strict=False):
            if rate.low is not None and rate.high is not None:
                parts.append(
                    f'<path class="whisker faint" d="M{plot.x(x)} {plot.y(rate.low)}V{plot.y(rate.high)}"/>'
                )
        path = "L".join(f"{plot.x(x)} {plot.y(y)}" for x, y in zip(track.xs, track.ys, strict=True))
        dash = f' stroke-dasharray="{DASHES[k % SHAPES]}"' if DASHES[k % SHAPES] else ""
        parts.append(
            f'<g><title>{_t(track.label)}</title><path class="line s{k % SHAPES}" d="M{path}"{dash}/>'
        )
        if len(track.xs) <= 8:
            parts += [
                f'<circle class="mark s{k % SHAPES}" cx="{plot.x(x)}" cy="{plot.y(y)}" r="3"/>'
                for x, y in zip(track.xs, track.ys, strict=True)
            ]
        parts.append("</g>")
    places = _spread([float(plot.y(track.ys[-1])) + 4 for track in tracks], 13, plot.bottom)
    room = int((plot.width - plot.edge - 8) / 6.2)
    for track, y in zip(tracks, places, strict=True):
        if track.label:
            end = float(plot.x(track.xs[-1]))
            start = float(plot.y(track.ys[-1]))
            parts.append(
                f'<path class="leader" d="M{_n(end + 2)} {_n(start)}L{_n(plot.edge + 8)} {_n(y - 4)}"/>'
            )
            parts.append(
                f'<text x="{_n(plot.edge + 10)}" y="{_n(y)}">{_t(_cut(track.label, room))}</text>'
            )
    return plot.svg("".join(parts), title)


def square(rates: Sequence[Sequence[float]], title: str) -> Markup:
    """A small table of rates as an image with numbers: from the member in the row to that in the column."""
    from advens.results.report.colour import level

    k, side, edge = len(rates), 46, 34
    size = edge + side * k
    parts = []
    for i, row in enumerate(rates):
        parts.append(
            f'<text x="{edge - 8}" y="{_n(edge + side * (i + 0.5) + 4)}" text-anchor="end">{i + 1}</text>'
        )
        parts.append(
            f'<text x="{_n(edge + side * (i + 0.5))}" y="{edge - 10}" text-anchor="middle">{i + 1}</text>'
        )
        for j, value in enumerate(row):
            x, y = edge + side * j, edge + side * i
            parts.append(
                f'<rect class="f{level(value)}" x="{x}" y="{y}" width="{side - 2}" height="{side - 2}"/>'
                f'<text class="t{level(value)}" x="{_n(x + side / 2 - 1)}" y="{_n(y + side / 2 + 3)}" '
                f'text-anchor="middle">{100 * value:.0f}</text>'
            )
    return Markup(
        f'<svg class="square" width="{size}" height="{size}" viewBox="0 0 {size} {size}" role="img" '
        f'aria-label="{_t(title)}">{"".join(parts)}</svg>'
    )


class _Plot:
    """Maps numbers to positions in a chart."""

    def __init__(
        self, width: int, height: int, *, points_x: Sequence[float], logarithmic: bool,
        y_span: tuple[float, float] = (0.0, 1.0), shares: bool = True, right: float = 26, room: float = 0.0,
    ) -> None:  # fmt: skip
        self.width, self.height, self.logarithmic, self.shares = width, height, logarithmic, shares
        self.left, self.top, self.bottom, self.edge = 46, 30, height - 42, width - right
        low, high = (min(points_x), max(points_x)) if points_x else (0.0, 1.0)
        if logarithmic:
            low, high = math.log10(low), math.log10(high)
            low, high = low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1)
        elif low == high:
            low, high = low - 1, high + 1
        elif room:
            low, high = low - room * (high - low), high + room * (high - low)
        self.x_low, self.x_high = low, high
        self.y_low, self.y_high = y_span

    def x(self, value: float) -> str:
        value = math.log10(value) if self.logarithmic else value
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return _n(self.left + share * (self.edge - self.left))

    def y(self, value: float) -> str:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return _n(self.bottom - share * (self.bottom - self.top))

    def axes(self, x_label: str, y_label: str) -> str:
        """Lines and numbers of both axes."""
        parts = []
        for tick in _ticks(self.y_low, self.y_high, 5):
            y = self.y(tick)
            shown = f"{100 * tick:.0f}" if self.shares else f"{tick:g}"
            parts.append(f'<path class="grid" d="M{self.left} {y}H{_n(self.edge)}"/>')
            parts.append(
                f'<text x="{self.left - 8}" y="{_n(float(y) + 4)}" text-anchor="end">{shown}</text>'
            )
        for tick in self._x_ticks():
            x = self.x(tick)
            parts.append(f'<path class="axis" d="M{x} {self.bottom}v4"/>')
            parts.append(
                f'<text x="{x}" y="{self.bottom + 17}" text-anchor="middle">{tick:g}</text>'
            )
        parts.append(f'<path class="axis" d="M{self.left} {self.bottom}H{_n(self.edge)}"/>')
        middle = _n((self.left + self.edge) / 2)
        place = f'x="{middle}" y="{self.height - 6}" text-anchor="middle"'
        parts.append(f'<text class="title" {place}>{_t(x_label)}</text>')
        parts.append(f'<text class="title" x="4" y="12">{_t(y_label)}</text>')
        return "".join(parts)

    def _x_ticks(self) -> list[float]:
        if not self.logarithmic:
            return _ticks(self.x_low, self.x_high, 5)
        low, high = math.floor(self.x_low), math.ceil(self.x_high)
        found: list[float] = []
        for digits in _DIGITS:
            ticks = [m * 10.0**k for k in range(low, high + 1) for m in digits]
            found = [tick for tick in ticks if self.x_low <= math.log10(tick) <= self.x_high]
            if len(found) >= 4:
                break
        return found

    def svg(self, inside: str, title: str) -> Markup:
        return Markup(
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="{_t(title)}">{inside}</svg>'
        )


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers between two ends."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step = next(step * m for m in (1, 2, 2.5, 5, 10) if (high - low) / (step * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that holds all values, zero too when it is near."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if low >= 0 and low < 0.6 * high:
        low = 0.0
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low - room if low else 0.0), high + room


def free_place(
    x: float, y: float, half: float, others: Sequence[tuple[float, float]], width: float, left: float = 0,
    bottom: float = math.inf,
) -> tuple[float, float] | None:
    """A place for a label beside a mark that covers no other label or mark; None where there is none.

    Args:
        half: half of the label's width.
        width: of the chart.
        left, bottom: where its axes are, beyond which there is no place.
    """
    for place in ((x + 9 + half, y), (x - 9 - half, y), (x, y - 12), (x, y + 13)):
        inside = left + half <= place[0] <= width - half and place[1] <= bottom
        if inside and all(
            abs(place[0] - a) > half + 8 or abs(place[1] - b) > 10 for a, b in others
        ):
            return place
    return None


def beside(xs: Sequence[float], room: float = 11) -> list[float]:
    """Places of marks, those at one place moved beside each other around it."""
    found = list(xs)
    for place in set(xs):
        same = [k for k, x in enumerate(xs) if x == place]
        for number, k in enumerate(same):
            found[k] = place + (number - (len(same) - 1) / 2) * min(room, 88 / len(same))
    return found


def _spread(places: Sequence[float], room: float, bottom: float) -> list[float]:
    """Places moved apart by at least ``room``, in their order, ending at the bottom at the latest."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    found = list(places)
    for before, k in zip([None, *order], order, strict=False):
        if before is not None:
            found[k] = max(found[k], found[before] + room)
    over = found[order[-1]] - bottom if order else 0.0
    if over > 0:
        for after, k in zip([None, *reversed(order)], list(reversed(order)), strict=False):
            found[k] = (
                min(found[k], bottom) if after is None else min(found[k], found[after] - room)
            )
    return found


def _cut(text: str, room: int) -> str:
    text = printable(text)
    return text if len(text) <= room else f"{text[: max(room - 1, 1)]}…"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _t(text: object) -> str:
    return escape(printable(text))
