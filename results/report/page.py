"""The page of a report: one HTML file that asks for nothing, the same bytes for the same run."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from advens.files import inside, write_bytes
from advens.printable import printable
from advens.results.formats import number, percent
from advens.results.report import charts, colour
from advens.results.report.collect import (
    Attacked,
    Built,
    Curve,
    Defenses,
    Noted,
    Part,
    Report,
    Row,
    Run,
    Traced,
    Transfer,
    collect,
    in_percent,
)
from advens.results.report.findings import findings, line_name, terms
from advens.results.report.gallery import Gallery, gallery

HERE = Path(__file__).parent
MOST_TRACED = 8
"""Attacks whose traces are drawn, and models of a built set whose history is."""
WORDS = {
    "loss": "loss", "cosine": "mean cosine between the surrogates' gradients", "weights": "weight",
    "flatness": "rise of the loss around the result (0 is flat)",
    "filtered": "share of the gradient's entries that is filtered",
    "closeness": "distance to the surrogate's own optimum, l_2",
    "broken": "attacked images that are broken, %",
    "margin": "largest logit margin so far (from 0 on: broken)",
    "best": "largest loss of the restart at hand", "step_size": "step size, in eps",
    "distance": "nearest misclassified point, in eps",
}  # fmt: skip
"""What an observation of a trace is called."""
_NOTED = {
    "clean_accuracy": "clean accuracy of the copies, %", "accuracy": "accuracy of the soup, %",
    "loss": "training loss", "lr": "learning rate",
}  # fmt: skip
"""What builders note, and what it is called."""
_ORDER = {"broken": -2, "loss": 1, "cosine": 2}
"""Observations that every attack has stand after its own, and what it is about before them."""
MEASURES = {
    "clean": "clean",
    "missed": "missed",
    "shared": "shared",
    "open worst": "worst white-box",
}


def write_report(
    directory: Path | str, out: Path | str | None = None, *, images: bool = True
) -> Path:
    """Write the page of a run. Returns where it is.

    Args:
        directory: of the run, or of a folder of runs as suites of defenses leave them.
        out: the file; ``report.html`` in the directory by default.
        images: whether adversarial images are shown.

    Raises:
        InputError: there is no run, nothing is finished, or the file cannot be written.
        RunError: a damaged file.
    """
    path = Path(out) if out is not None else Path(directory) / "report.html"
    report = collect(directory)
    write_bytes(
        path, render(report, pictures(Path(directory), report) if images else None).encode()
    )
    return path


def pictures(directory: Path, report: Report) -> Gallery | None:
    """The pictures of a report: of a suite of defenses those of transfer at the largest budget."""
    if report.defenses is None:
        return gallery(Run(directory), report.parts[0])
    parts = [part for part in report.parts if part.transfer is not None]
    return gallery(Run(inside(directory, parts[-1].folder)), parts[-1]) if parts else None


def render(
    report: Report,
    shown: Gallery | None = None,
    *,
    home: str = "",
    label: str = "",
    entry: Sequence[tuple[str, str]] = (),
) -> str:
    """The page as text.

    Args:
        shown: its pictures; none without.
        home: the address of the index of a site that the page is part of.
        label: of an entry.
        entry: what its authors say of it.
    """
    return written(
        "report.html", title=f"{report.name} · advens report", skip=("findings", "findings"),
        data=[matrix_data(part.transfer) for part in report.parts],
        report=report, findings=findings(report), terms=terms(report.parts[0]),
        views=[view(part) for part in report.parts],
        defenses=None if report.defenses is None else _defenses(report.defenses),
        commands=_commands(report), gallery=shown, home=home, label=label, entry=entry,
    )  # fmt: skip


def written(
    template: str, *, title: str, skip: tuple[str, str], data: Any = None, **given: Any
) -> str:
    """A page from a template that extends ``base.html``.

    Args:
        skip: the section that its first link skips to, and what that is called.
        data: what the script reads; a page without it has no script and no coloured cells.
        given: what the template shows.
    """
    plain = data is None
    style = _trimmed(_static("report.css") + ("" if plain else "\n" + colour.stylesheet()))
    script = "" if plain else _trimmed(_static("report.js"))
    about = {"refresh": 0, "several": False} | given
    text = _environment().get_template(template).render(
        title=title, skip=skip, style=Markup(style), script=Markup(script), policy=policy(style, script),
        version=version("advens"), data=_json(data), **about,
    )  # fmt: skip
    return _trimmed(text) + "\n"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_shown,
    )  # fmt: skip
    environment.filters |= {
        "pct": in_percent, "num": _number, "level": colour.level, "code": _code,
        "line_name": line_name, "prose": _prose, "word": lambda what: WORDS.get(what, what),
    }  # fmt: skip
    return environment


def policy(style: str, script: str) -> str:
    """The content security policy of a page with this style sheet and script: nothing else runs or loads."""
    allowed = {"style-src": style, "script-src": script}
    hashed = [
        f"{kind} 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, text in allowed.items()
        if text
    ]
    return "; ".join(
        ["default-src 'none'", *hashed, "img-src data:", "base-uri 'none'", "form-action 'none'"]
    )


# --- the parts of the page ------------------------------------------------------------------------


def view(part: Part) -> dict[str, Any]:
    """What a template shows of a part beside its numbers: charts."""
    transfer = part.transfer
    rows = transfer.rows if transfer is not None else ()
    order = {(row.attack, row.set): row.rank for row in rows}
    for model in part.robustness.models if part.robustness is not None else ():  # the strongest first
        order |= {(left.attack, model.short): k for k, left in enumerate(reversed(model.attacks))}
    traced = sorted(part.traces, key=lambda each: order.get((each.attack, each.set), 0))
    return {
        "bars": [charts.bar((row.new, row.these)) for row in rows],
        "axis": charts.axis_header(),
        "recipes": _recipes(rows),
        "cost": _cost(rows),
        "histories": [
            [(noted, _history(built, noted)) for noted in built.noted[:MOST_TRACED]] for built in part.built
        ],
        "curves": [_curve(curve) for curve in part.curves],
        "growing": _growing(part),
        "warnings": _warnings(part),
        "traces": [(each, _traced(each, part)) for each in traced[:MOST_TRACED]],
        "untraced": max(len(traced) - MOST_TRACED, 0),
        "robustness": [
            ([charts.bar((left.rate,)) for left in model.attacks],
             charts.bar((model.worst,)) if model.worst is not None else None, _left_by_cost(model))
            for model in (part.robustness.models if part.robustness is not None else ())
        ],
    }  # fmt: skip


def _recipes(rows: Sequence[Row]) -> list[int]:
    """The place of the row whose recipe each row shows: rows with one recipe share it."""
    first: dict[object, int] = {}
    return [first.setdefault(row.recipe, k) for k, row in enumerate(rows)]


def _cost(rows: Sequence[Row]) -> Markup | None:
    points = [
        charts.Point(
            row.compute, row.new if row.new.low is not None else row.these, str(row.rank),
            f"{row.rank}. {row.name}: {row.new.percent} %, {number(row.compute)} passes",
            row.pareto, f"{row.suite}/{row.surrogates}" if row.pareto else None,
        )
        for row in rows if row.compute and row.new.value is not None
    ]  # fmt: skip
    if len(points) < 2:
        return None
    spread = max(p.x for p in points) / min(p.x for p in points)
    return charts.scatter(
        points, "compute per image: forward passes + 2 × backward passes", "mean success rate, %",
        "Mean success rate over held-out targets against passes through surrogates; all numbers are in the "
        "leaderboard", logarithmic=spread >= 3,
    )  # fmt: skip


def _curve(curve: Curve) -> Markup:
    rates = tuple(row.new if row.new.low is not None else row.these for _, row in curve.points)
    track = charts.Track(
        "", tuple(x for x, _ in curve.points), tuple(r.value or 0.0 for r in rates), rates
    )
    said = ", ".join(f"{x:g}: {r.percent} %" for (x, _), r in zip(curve.points, rates, strict=True))
    return charts.lines(
        [track], curve.key, f"{curve.label}, %", f"{curve.label}: mean success rate over {curve.key}; {said}",
        shares=True,
    )  # fmt: skip


def _warnings(part: Part) -> list[str]:
    """The notes of a robustness run; those that say the same of several models are one."""
    found: dict[str, list[str]] = {}
    for note in part.robustness.notes if part.robustness is not None else ():
        subject, colon, text = note.partition(": ")
        found.setdefault(text if colon else note, []).append(subject if colon else "")
    return [
        f"{'; '.join(subjects)}: {text}" if subjects[0] else text
        for text, subjects in found.items()
    ]


def _growing(part: Part) -> list[Markup]:
    """A chart for every setting that the sanity report lets grow, with a line for every model."""
    growing = part.robustness.growing if part.robustness is not None else ()
    found = []
    for key in dict.fromkeys(each.key for each in growing):
        tracks = [
            charts.Track(each.model, each.at, each.accuracy) for each in growing if each.key == key
        ]
        for start in range(0, len(tracks), charts.SHAPES):
            found.append(charts.lines(
                tracks[start : start + charts.SHAPES], key, "accuracy left, %",
                f"Accuracy that a gradient attack leaves while {key} grows", shares=True,
            ))  # fmt: skip
    return found


def _traced(traced: Traced, part: Part) -> list[Markup]:
    found, step = [], "step" if part.robustness is None else "iteration"
    for what, series in sorted(
        traced.curves.items(), key=lambda each: (_ORDER.get(each[0], -1), each[0])
    ):
        tracks = [
            charts.Track(one.label, tuple(step + 1.0 for step in one.steps), one.values)
            for one in series
        ]
        if what == "cosine" and traced.surrogates < 2:
            continue  # one surrogate agrees with itself
        word = WORDS.get(what, what)
        found.append(charts.lines(
            tracks, step, word, f"{traced.attack} on {traced.set}: {word} over the {step}s, mean over images",
            shares=what == "broken",
        ))  # fmt: skip
    return found


def _history(built: Built, noted: Noted) -> list[Markup]:
    """Charts of how surrogates were built from a model."""
    values = noted.values
    counts = values.get("update", tuple(k + 1.0 for k in range(noted.calls)))
    step = "update" if "update" in values else "trial"

    def chart(word: str, tracks: Sequence[charts.Track], shares: bool = False) -> Markup:
        title = f"{built.name}: {word} over the {step}s" + (f", {noted.model}" if noted.model else "")
        return charts.lines(tracks, step, word, title, shares=shares)

    found = []
    if "objective" in values:
        allowed = values.get("allowed", (1.0,) * noted.calls)
        best = accumulate(
            (value if ok else -math.inf for value, ok in zip(values["objective"], allowed, strict=True)), max
        )  # fmt: skip
        known = [(x, y) for x, y in zip(counts, best, strict=True) if math.isfinite(y)]
        tracks = [charts.Track("tried", counts, values["objective"])]
        if known:
            tracks.append(charts.Track("best so far", *zip(*known, strict=True)))
        found.append(chart("loss of the other surrogates", tracks))
    if noted.strengths:
        found.append(chart("strength", [charts.Track(w, counts, values[w]) for w in noted.strengths]))
    for what, word in _NOTED.items():
        if what in values and (what != "lr" or len(set(values[what])) > 1):
            shares = what in ("clean_accuracy", "accuracy")
            found.append(chart(word, [charts.Track("", counts, values[what])], shares))
    return found


def _left_by_cost(model: Attacked) -> Markup | None:
    points = [
        charts.Point(
            left.compute, left.rate, left.attack,
            f"{left.attack}: {left.rate}, {number(left.compute)} passes",
        )
        for left in model.attacks if left.compute and left.rate.value is not None
    ]  # fmt: skip
    if len(points) < 2:
        return None
    return charts.scatter(
        points, "passes per image with the stages before: forward + 2 × backward", "accuracy left, %",
        f"{model.short}: accuracy that every attack leaves, against its passes; all numbers are in the table",
        logarithmic=True,
    )  # fmt: skip


def _defenses(defenses: Defenses) -> dict[str, Any]:
    tables = []
    for title, lines in defenses.tables.items():
        measures = list(dict.fromkeys(name for line in lines for name in line.measures))
        numbers = [
            name
            for name in dict.fromkeys(name for line in lines for name in line.numbers)
            if any(line.numbers.get(name) is not None for line in lines)
        ]
        tables.append({
            "title": title, "lines": lines, "measures": [(name, _measure(name)) for name in measures],
            "numbers": [(name, _measure(name)) for name in numbers],
            "curve": _budgets(lines, defenses.budgets),
            "costs": [
                _against(lines, _inference, "cost of one inference, MFLOP"),
                _against(lines, _training, "passes of the training, for each training image"),
            ],
        })  # fmt: skip
    members = [
        (each.model, charts.square(
            each.rates, f"{each.model}: rate in % at which images crafted on the member in the row break "
            "that in the column"
        )) for each in defenses.members
    ]  # fmt: skip
    return {
        "tables": tables,
        "members": members,
        "notes": defenses.notes,
        "pooled": defenses.pooled,
    }


def _budgets(lines: Sequence[Any], budgets: Sequence[str]) -> Markup | None:
    tracks = []
    for line in lines:
        found = [(0.0, line.measures.get("clean"))]
        found += [
            (radius, line.measures.get(f"transfer {eps}"))
            for eps in budgets if (radius := _radius(eps)) is not None
        ]  # fmt: skip
        known = [(x, rate) for x, rate in found if rate is not None and rate.value is not None]
        if len(known) > 1:
            tracks.append(charts.Track(
                line_name(line), tuple(x for x, _ in known), tuple(rate.value or 0.0 for _, rate in known),
                tuple(rate for _, rate in known),
            ))  # fmt: skip
    if not tracks:
        return None
    return charts.lines(
        tracks, "eps (0: no attack)", "accuracy on transferred images, %",
        "Accuracy on transferred images over the budget; all numbers are in the table",
        shares=True, width=480, height=280,
    )  # fmt: skip


def _radius(eps: str) -> float | None:
    """A budget as a number; None for text that is none."""
    try:
        return float(Fraction(eps.replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _against(lines: Sequence[Any], cost: Callable[[Any], float | None], x_label: str) -> Markup | None:
    """Accuracy under the worst white-box attack against a cost of each line."""
    points = [
        charts.Point(x, rate, line_name(line), f"{line_name(line)}: {rate}")
        for line in lines
        if (x := cost(line)) and (rate := line.measures.get("open worst")) is not None
    ]
    if len(points) < 2:
        return None
    return charts.scatter(
        points, x_label, "accuracy under the worst white-box attack, %",
        f"Accuracy under the worst white-box attack against: {x_label}; see the table",
        logarithmic=max(p.x for p in points) > 4 * min(p.x for p in points), width=480, height=280,
    )  # fmt: skip


def _inference(line: Any) -> float | None:
    found: float | None = line.numbers.get("mflops")
    return found


def _training(line: Any) -> float | None:
    both = [line.numbers.get(name) for name in ("train_forwards", "train_backwards")]
    return None if None in both else sum(both)


def _measure(name: str) -> str:
    """The header of a measure of defenses."""
    if name.startswith("transfer "):
        return f"transfer, eps {name.removeprefix('transfer ')}"
    names = {
        "mflops": "MFLOP", "train_seconds": "training, s", "train_forwards": "training, forward passes",
        "train_backwards": "training, backward passes",
    }  # fmt: skip
    return MEASURES.get(name, names.get(name, name.removeprefix("open ").replace("_", " ")))


def _commands(report: Report) -> list[tuple[str, str]]:
    name = report.name
    return [
        ("Make the run again from the suite below", f"advens run suite.toml --out runs/{name}"),
        ("Check that everything follows from the stored bytes", f"advens verify runs/{name}"),
        (
            "Craft a random tenth of the images again as well",
            f"advens verify runs/{name} --recraft 0.1",
        ),
        ("Make this page", f"advens report runs/{name}"),
    ]


# --- data for the script --------------------------------------------------------------------------


def matrix_data(transfer: Transfer | None) -> dict[str, Any] | None:
    """The matrix for the script: rates in tenths of a percent, rounded as they are shown."""
    if transfer is None:
        return None
    return {
        "targets": [[printable(t.short), printable(t.name)] for t in transfer.targets],
        "rows": [
            {"attack": printable(row.attack), "set": printable(row.set), "family": printable(row.family),
             "mean": _tenths(row.new.value)}
            for row in transfer.rows
        ],
        "cells": [
            [
                0 if cell is None else [
                    _tenths(cell.rate.value), _tenths(cell.rate.low), _tenths(cell.rate.high), cell.n,
                    _tenths(cell.clean), _tenths(cell.robust), _tenths(cell.error), int(cell.white_box),
                    int(cell.counted),
                ]
                for cell in cells
            ]
            for cells in transfer.cells
        ],
    }  # fmt: skip


def _tenths(value: float | None) -> int | None:
    return None if value is None else round(float(percent(value, 1)) * 10)


def _json(value: Any) -> Markup:
    """JSON inside a script element: no ``<`` can end it."""
    text = json.dumps(value, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)


# --- how values are written -----------------------------------------------------------------------


def _shown(value: Any) -> Any:
    """Text from a run is one line without control characters; the template then escapes it."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float | None, scale: float = 1) -> str:
    return "–" if value is None else number(scale * value)


def _prose(text: str) -> Markup:
    """A sentence in which no line ends before a percent sign."""
    return Markup(str(Markup.escape(printable(text))).replace(" %", "&nbsp;%"))


def _code(text: str) -> Markup:
    """Text of several lines, each printable and with its blanks."""
    lines = (printable(line).replace(" ", "\u00a0") for line in text.splitlines())
    return Markup("<br>").join(map(Markup.escape, lines))


def _trimmed(text: str) -> str:
    """Lines without the blanks around them, and no empty ones."""
    return "\n".join(line for line in (line.strip() for line in text.split("\n")) if line)


def _static(name: str) -> str:
    return (HERE / "static" / name).read_text(encoding="utf-8")
