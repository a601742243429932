"""Figures say what their numbers are, whatever names and settings of matplotlib there are."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from advens.results.formats import percent
from advens.results.report import colour
from advens.results.report.collect import (
    Attacked,
    Cell,
    Curve,
    Growing,
    Left,
    Rate,
    Robustness,
    Target,
    Transfer,
)
from tests.results.report.conftest import row, transfer

matplotlib = pytest.importorskip("matplotlib")

from advens.results.plot import figures  # noqa: E402
from advens.results.plot.figures import Drawing, Size  # noqa: E402

EVIL = "$a_b$ %\\frac{x}{0}^~&#\x1b[31m\u202e\u4e2d\u05d0$"
SEEN = r"$a_b$ %\frac{x}{0}^~&#\x1b[31m\u202e\u4e2d" + "\u05d0$"


def made(name: str = "strong") -> Transfer:
    """Two attacks on six targets of two families, one of them white-box for one attack."""
    rows = (
        row(1, 0.5, attack=name, new=Rate(0.5, 0.2, 0.8), these=Rate(0.5, 0.45, 0.55), new_letters="a"),
        row(2, 0.25, attack="weak", forwards=40.0, new=Rate(0.25, 0.1, 0.4), these=Rate(0.25, 0.2, 0.3),
            new_letters="ab", these_letters="c", pareto=False),
    )  # fmt: skip
    found = transfer(rows, [[0.9, 0.5, 0.4, 0.3, 0.2, 0.1], [0.0, 1.0, 0.7, 0.6, 0.5, 0.4]])
    first = found.cells[0]
    cell = first[0]
    assert isinstance(cell, Cell)
    families = ("cnn",) * 4 + ("vit",) * 2
    targets = tuple(
        Target(f"m:{name}{k}", f"{name}{k}", family) for k, family in enumerate(families)
    )
    cells = ((replace(cell, white_box=True, counted=False), *first[1:]), found.cells[1])
    return replace(found, targets=targets, cells=cells, held_out=tuple(t.name for t in targets[1:]))


def left(attack: str, value: float) -> Left:
    return Left(attack, Rate(value, value - 0.1, value + 0.1), "a", 60, 1, 1, 1, 1, 1, None, None, None)


def attacked(name: str = "one") -> Robustness:
    models = (
        Attacked(f"m:{name}", name, 60, 0.95, (left("pgd", 0.6), left("pgd+fab", 0.4)), Rate(0.35, 0.3, 0.4)),
        Attacked("m:other", "other", 60, 0.9, (left("pgd", 0.5),), None),
    )
    growing = (
        Growing("other", "eps", (0.0, 0.1, 1.0), (0.9, 0.5, 0.0), 60),
        Growing(name, "eps", (0.0, 0.1, 1.0), (0.95, 0.6, 0.1), 60),
        Growing(name, "steps", (1.0, 10.0), (0.7, 0.6), 60),
    )
    return Robustness(models, (), (), growing)


def swept(name: str = "strong") -> list[Curve]:
    points = tuple(
        (float(steps), row(k + 1, rate, new=Rate(rate, rate - 0.1, rate + 0.1), these=Rate(rate, rate, rate)))
        for k, (steps, rate) in enumerate(((5, 0.3), (10, 0.4), (20, 0.45)))
    )
    return [Curve("steps", name, points), Curve("eps", "other", points)]


DRAWN: dict[str, Callable[[str], Drawing]] = {
    "matrix": lambda name: figures.matrix(made(name), Size(6.75)),
    "board": lambda name: figures.board(made(name), Size(), ["models", "targets"]),
    "pareto": lambda name: figures.pareto(made(name), Size(), "models"),
    "curves": lambda name: figures.curves(swept(name), Size(), "models"),
    "robustness": lambda name: figures.robustness(attacked(name), Size()),
}


def texts(drawing: Drawing) -> list[Any]:
    return list(drawing.findobj(matplotlib.text.Text))


def of(drawing: Drawing, gid: str) -> Any:
    """The only text, line or box of a name."""
    found = [artist for artist in drawing.findobj() if artist.get_gid() == gid]
    return found[-1]


def test_matrix() -> None:
    transfer = made()
    drawing = figures.matrix(transfer, Size(6.75))
    for k, line in enumerate(transfer.cells):
        for j, cell in enumerate(line):
            assert cell is not None
            assert cell.rate.value is not None
            text = of(drawing, f"cell-{k}-{j}")
            box = next(
                b for b in drawing.findobj(matplotlib.patches.Rectangle) if b.get_gid() == f"cell-{k}-{j}"
            )
            assert text.get_text() == percent(cell.rate.value) + "*" * cell.white_box
            face = matplotlib.colors.to_hex(box.get_facecolor())
            assert face == colour.LIGHT.at(colour.level(cell.rate.value) / (colour.LEVELS - 1))
            assert colour.contrast(face, text.get_color()) >= 4.5
        assert of(drawing, f"mean-{k}").get_text() == percent(transfer.rows[k].new.value or 0)
    hatched = [b for b in drawing.findobj(matplotlib.patches.Rectangle) if b.get_hatch()]
    assert len(hatched) == 2  # the cell and the key
    shown = [text.get_text() for text in texts(drawing)]
    assert shown.count("cnn") == shown.count("vit") == 1
    assert "n = 100 images" in drawing.caption
    assert "white-box" in drawing.caption


def test_narrow_matrix_has_a_scale_in_place_of_numbers() -> None:
    rows = [row(1, 0.5), row(2, 0.4)]
    drawing = figures.matrix(transfer(rows, [[0.5] * 40, [0.4] * 40]), Size(3.25))
    shown = [text.get_text() for text in texts(drawing)]
    assert "100 %" in shown
    assert not [artist for artist in texts(drawing) if str(artist.get_gid()).startswith("cell")]
    assert shown.count("50") == 1  # the mean


def test_board() -> None:
    drawing = figures.board(made(), Size(), ["models", "targets"])
    assert list(of(drawing, "means-models").get_xdata()) == [50, 25]
    bars = {
        question: [segment[:, 0].tolist() for segment in of(drawing, f"bars-{question}").get_segments()]
        for question in ("models", "targets")
    }
    assert bars["models"] == [[20, 80], [10, 40]]
    assert bars["targets"] == [pytest.approx([45, 55]), [20, 30]]
    wanted = ("models-1", "targets-0", "targets-1")
    letters = {gid: of(drawing, f"letters-{gid}").get_text() for gid in wanted}
    assert letters == {"models-1": "ab", "targets-0": "a", "targets-1": "c"}
    assert "new models and new images" in drawing.caption
    assert "these targets and new images" in drawing.caption
    one = figures.board(made(), Size(), ["targets"])
    assert "new models" not in one.caption


def test_pareto() -> None:
    drawing = figures.pareto(made(), Size(), "targets")
    for number, (x, y) in enumerate(((30, 50), (60, 25)), start=1):
        mark = of(drawing, f"row-{number}")
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == (x, y)
    segments = [c.get_segments()[0][:, 1].tolist() for c in drawing.axes[0].collections]
    assert segments == [pytest.approx([45, 55]), [20, 30]]
    assert of(drawing, "row-2").get_markerfacecolor() == "white"
    assert of(drawing, "key-1").get_text() == "2  weak"


@pytest.mark.parametrize("question", ["models", "targets"])
def test_curves(question: Any) -> None:
    drawing = figures.curves(swept(), Size(), question)
    assert [axes.get_xlabel() for axes in drawing.axes] == ["steps", "eps"]
    line = drawing.axes[0].lines[0]
    assert line.get_xydata().tolist() == [[5, 30], [10, 40], [20, 45]]
    ends = [segment[:, 1].tolist() for segment in drawing.axes[0].collections[0].get_segments()]
    assert ends[0] == pytest.approx([20, 40] if question == "models" else [30, 30])
    assert figures.QUESTIONS[question] in drawing.caption


def test_robustness() -> None:
    drawing = figures.robustness(attacked(), Size(6.75))
    attacks, eps = drawing.axes
    ticks = [text.get_text() for text in attacks.get_xticklabels()]
    assert ticks == ["clean", "pgd", "+ fab", "worst of all"]
    one, other = attacks.lines
    assert one.get_ydata().tolist() == [95, 60, 40, 35]
    assert other.get_ydata().tolist() == [90, 50]
    assert attacks.collections[0].get_segments()[0][:, 1].tolist() == pytest.approx([50, 70])
    assert eps.get_xlabel() == "eps"
    assert [line.get_label() for line in eps.lines] == ["one", "other"]  # the colours of the first chart
    assert eps.lines[0].get_ydata().tolist() == [95, 60, 10]


@pytest.mark.parametrize("name", DRAWN)
def test_names_are_text(name: str) -> None:
    drawing = DRAWN[name](EVIL)
    said = "".join(text.get_text().replace("\n", "") for text in texts(drawing)).replace(" ", "")
    assert SEEN.replace(" ", "")[:14] in said
    with matplotlib.rc_context({"text.parse_math": True}):
        assert drawing.encoded("png").startswith(b"\x89PNG")
        drawing.canvas.print_figure(io.BytesIO(), format="pdf")  # as a notebook does
    assert not any(text.get_parse_math() for text in texts(drawing) if EVIL[0] in text.get_text())


@pytest.mark.parametrize("name", DRAWN)
def test_same_bytes(name: str) -> None:
    before = dict(matplotlib.rcParams)
    first = {form: DRAWN[name]("a").encoded(form) for form in ("pdf", "svg", "png")}
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "pdf.fonttype": 3}):
        second = {form: DRAWN[name]("a").encoded(form) for form in first}
    assert first == second
    assert b"CIDFontType2" in first["pdf"]  # embedded TrueType, no Type 3
    assert b"Type3" not in first["pdf"]
    assert b"CreationDate" not in first["pdf"]
    assert b"dc:date" not in first["svg"]


def test_pyplot_is_left_alone() -> None:
    import subprocess
    import sys

    code = "import sys, advens.results.plot.figures; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_notebooks_show_a_figure() -> None:
    assert DRAWN["pareto"]("a")._repr_png_().startswith(b"\x89PNG")
