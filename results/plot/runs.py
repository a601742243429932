"""The figures of a run: its numbers, the size that was asked for, and files."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advens.errors import InputError
from advens.files import inside, write_bytes
from advens.results.boards.defenses import TRIAL
from advens.results.report.collect import Part, Transfer, collect

if TYPE_CHECKING:
    from advens.results.plot.figures import Drawing, Question, Size

FIGURES = ("matrix", "board", "pareto", "curves", "robustness")
ENDINGS = ("pdf", "svg", "png")
WIDTHS = {"column": 3.25, "full": 6.75}
"""Inches of a column and of a page of two, as most conferences have them."""
_LIMITS, _FONTS = (1.5, 40.0), (4.0, 40.0)
_UNITS = {"": 1.0, "in": 1.0, "mm": 1 / 25.4, "cm": 1 / 2.54}


@dataclass(frozen=True)
class Plots:
    """The figures of the run in a directory, each a `matplotlib.figure.Figure` with a ``caption``.

    Every figure takes ``width`` (``column``, ``full``, inches, or text as ``85mm``) and ``font_size`` in
    points. ``question`` says which intervals a mean has: for new models (``models``) or for these targets
    (``targets``); by default the first where there is one, and on the board both.

    Args:
        directory: of the run, or of a folder of defenses.

    Raises:
        InputError: matplotlib is missing, the run has no such numbers, or a size that cannot be used.
        RunError: a damaged file.
    """

    directory: Path

    def matrix(self, width: str | float = "column", font_size: float = 8.0) -> Drawing:
        """The transferability matrix."""
        draw = _figures()
        return draw.matrix(self._transfer("matrix"), _size(width, font_size))  # type: ignore[no-any-return]

    def board(
        self, width: str | float = "column", font_size: float = 8.0, question: Question | None = None
    ) -> Drawing:
        """The leaderboard, with the intervals and letters of both questions or of one."""
        draw, transfer = _figures(), self._transfer("board")
        first = _question(transfer, question)
        both = [first] if question is not None or first == "targets" else ["models", "targets"]
        return draw.board(transfer, _size(width, font_size), both)  # type: ignore[no-any-return]

    def pareto(
        self, width: str | float = "column", font_size: float = 8.0, question: Question | None = None
    ) -> Drawing:
        """Transfer against passes."""
        draw, transfer = _figures(), self._transfer("pareto")
        if not any(row.compute and row.new.value is not None for row in transfer.rows):
            raise InputError(f"{self.directory} has no passes to draw 'pareto' from")
        return draw.pareto(transfer, _size(width, font_size), _question(transfer, question))  # type: ignore[no-any-return]

    def curves(
        self, width: str | float = "column", font_size: float = 8.0, question: Question | None = None
    ) -> Drawing:
        """Transfer over the settings that the suite sweeps."""
        draw = _figures()
        part = self._part(
            "curves",
            "no setting with three values that differ in nothing else",
            lambda part: bool(part.curves),
        )
        assert part.transfer is not None
        asked = _question(part.transfer, question)
        return draw.curves(part.curves, _size(width, font_size), asked)  # type: ignore[no-any-return]

    def robustness(self, width: str | float = "column", font_size: float = 8.0) -> Drawing:
        """Accuracy that white-box attacks leave."""
        draw = _figures()
        part = self._part("robustness", "no white-box attacks", lambda part: part.robustness is not None)
        return draw.robustness(part.robustness, _size(width, font_size))  # type: ignore[no-any-return]

    def write(self, figure: str, out: Path | str, **options: Any) -> Drawing:
        """Draw a figure and write it; the ending of the file says as what.

        Args:
            figure: one of `FIGURES`.
            options: of that figure.

        Raises:
            InputError: another ending, or the file cannot be written.
        """
        form = Path(out).suffix[1:].lower()
        if form not in ENDINGS:
            raise InputError(f"'{out}': the ending of the file must be one of .{', .'.join(ENDINGS)}")
        drawing: Drawing = getattr(self, figure)(**options)
        write_bytes(Path(out), drawing.encoded(form))
        return drawing

    def _transfer(self, figure: str) -> Transfer:
        part = self._part(
            figure, "no transfer to targets", lambda part: bool(part.transfer and part.transfer.rows)
        )
        assert part.transfer is not None
        return part.transfer

    def _part(self, figure: str, lacks: str, holds: Callable[[Part], bool]) -> Part:
        """The run that a figure is drawn from: the directory, or one of those in a folder of defenses."""
        directory, folder = self.directory, ""
        if not inside(directory, TRIAL).is_file() and (directory.parent / TRIAL).is_file():
            directory, folder = directory.parent, directory.name  # it knows what models are called
        report = collect(directory)
        found = [part for part in report.parts if holds(part) and folder in ("", part.folder)]
        if not found:
            raise InputError(f"{self.directory} holds {lacks}, which '{figure}' shows")
        if len(found) > 1:
            named = ", ".join(str(directory / part.folder) for part in found)
            raise InputError(f"{directory} holds several runs that '{figure}' could show; name one: {named}")
        return found[0]


def _figures() -> Any:
    try:
        from advens.results.plot import figures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InputError("figures need matplotlib; install it with: pip install 'advens[plot]'") from None
    return figures


def _question(transfer: Transfer, asked: Question | None) -> Question:
    known = any(row.new.low is not None for row in transfer.rows)
    if asked == "models" and not known:
        raise InputError("fewer than five held-out targets say nothing about new models; ask for 'targets'")
    if asked not in (None, "models", "targets"):
        raise InputError(f"question must be 'models' or 'targets', not '{asked}'")
    return asked or ("models" if known else "targets")


def _size(width: str | float, font: float) -> Size:
    from advens.results.plot.figures import Size

    inches = WIDTHS.get(str(width))
    if inches is None:
        match = re.fullmatch(r"(\d+\.?\d*|\.\d+) *(in|mm|cm|)", str(width))
        if match is None:
            raise InputError(f"width must be column, full, or a number as 3.5, 3.5in or 85mm, not '{width}'")
        inches = float(match[1]) * _UNITS[match[2]]
    for name, value, (least, most) in (("width", inches, _LIMITS), ("font size", font, _FONTS)):
        if not least <= value <= most:
            unit = "inches" if name == "width" else "points"
            raise InputError(f"{name} must be {least:g} to {most:g} {unit}, not {value:g}")
    return Size(inches, font)
