"""``advens matrix``, ``leaderboard``, ``report`` and ``plot``: boards of runs, page and figures of one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advens.errors import InputError, RunError
from advens.printable import say
from advens.trust import trust_option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from rich.console import RenderableType

_FORMAT = click.option(
    "--format", "form", default="table", show_default=True,
    type=click.Choice(["table", "csv", "json", "markdown", "latex"]), help="How to write it.",
)
_DENOMINATOR = click.option(
    "--denominator", default="target", show_default=True,
    type=click.Choice(["target", "all", "common"]),
    help="Rates over the images right on this target, all images, or those right on all targets.",
)
_SUBSET = (
    click.option("--attacks", metavar="A,B", help="Only these attacks, with wildcards."),
    click.option("--surrogates", metavar="A,B", help="Only these surrogate sets, with wildcards."),
    click.option("--targets", metavar="A,B", help="Only these targets, with wildcards: '*vit*'."),
    click.option("--where", metavar="CONDITION", help="Only rows with this: target_family == 'vit'."),
)


def _subset(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose a part of a run."""
    for option in reversed(_SUBSET):
        command = option(command)
    return command


@click.command()
@click.argument("directory", metavar="DIR")
@_FORMAT
@_DENOMINATOR
@_subset
def matrix(directory: str, form: str, denominator: str, **chosen: str | None) -> None:
    """The transferability matrix of the run in DIR, with intervals."""
    show_matrix(directory, form, denominator, **chosen)


@click.command()
@click.argument("directories", metavar="DIR...", nargs=-1, required=True)
@click.option(
    "--compare", "pair", nargs=2, metavar="A B",
    help="Only the difference of two attacks, paired over images and targets; ATTACK or ATTACK@SURROGATES.",
)
@click.option("--family", help="Rank only this family of attacks (fusion, surrogate, loss, ...).")
@_FORMAT
@_DENOMINATOR
@_subset
def leaderboard(
    directories: tuple[str, ...], pair: tuple[str, str] | None, family: str | None,
    form: str, denominator: str, **chosen: str | None,
) -> None:
    """Attacks ranked over the runs in DIR...: intervals, significance groups, compute.

    Of a part of a run, means, intervals and letters are over that part alone.
    """
    from advens.results.boards import read_board
    from advens.results.boards.subset import subset
    from advens.results.boards.summary import boards, load
    from advens.results.display.comparison import render_comparison
    from advens.results.display.render import board_parts, render_board

    alone, default = directories[0], not (pair or family or any(chosen.values()))
    if len(directories) == 1 and (Path(alone) / "study.parquet").is_file():
        if not default:
            raise InputError(f"{alone} ranks defenses; only --format changes what is shown")
        show_board("study", read_board(alone, "study"), form)
        return
    if pair is not None:
        from advens.results.boards.compare import compare

        found = compare(subset(*load(directories), **chosen)[0], *pair, denominator)
        click.echo(render_comparison(found, form, _width()), nl=False)
        return
    stored = None
    if len(directories) == 1 and default and denominator == "target":
        stored = _stored(alone, "leaderboard")
    if stored is not None and stored["suite"].nunique() == 1:  # several are ranked by data and budget
        found_boards = [stored]
    else:
        found_boards = boards(directories, denominator, family, **chosen)
    if form == "table":
        for k, board in enumerate(found_boards):
            click.echo(nl=bool(k))
            _show(partial(board_parts, "leaderboard", board))
    elif form in ("markdown", "latex"):
        click.echo("\n".join(render_board("leaderboard", b, form) for b in found_boards), nl=False)
    else:
        click.echo(render_board("leaderboard", _joined(found_boards), form), nl=False)


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Default: DIR/report.html.")
@click.option("--no-images", is_flag=True, help="Leave the gallery out: a tenth of the size.")
@trust_option
def report(directory: Path, out: Path | None, no_images: bool) -> None:
    """The run in DIR, or a folder of defenses, as one HTML file that loads nothing and can be sent.

    The same run gives the same bytes. The gallery needs the data set at hand and is left out where it is not.
    """
    from advens.results.report.page import write_report

    say(f"report: {write_report(directory, out, images=not no_images)}")


@click.command()
@click.argument(
    "figure", metavar="matrix|board|pareto|curves|robustness",
    type=click.Choice(["matrix", "board", "pareto", "curves", "robustness"]),
)
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The file: .pdf, .svg or .png."
)
@click.option(
    "--width", default="column", show_default=True,
    help="column (3.25 inches), full (6.75), or a number as 3.5, 3.5in or 85mm.",
)
@click.option("--font-size", default=8.0, show_default=True, help="In points.")
@click.option(
    "--question", type=click.Choice(["models", "targets"]),
    help="Intervals of means for new models, or for these targets. Default: new models where there are any, "
    "and on the board both.",
)
def plot(
    figure: str, directory: Path, out: Path, width: str, font_size: float, question: str | None
) -> None:
    """A figure for a paper of the run in DIR, and what its caption may say.

    \b
    matrix      attack success rates, a cell for every attack and target
    board       means of attacks with intervals and letters
    pareto      means against passes, with the front
    curves      means over what the suite sweeps: eps, steps, budget, surrogates
    robustness  accuracy that white-box attacks leave

    Needs matplotlib: pip install 'advens[plot]'. The same run gives the same bytes.
    """
    from advens.results.plot.runs import Plots

    options: dict[str, Any] = {"width": width, "font_size": font_size}
    if question is not None:
        if figure in ("matrix", "robustness"):
            raise InputError(f"'{figure}' has no means of two questions; leave --question out")
        options["question"] = question
    drawing = Plots(directory).write(figure, out, **options)
    say(f"plot: {out}", f"caption: {drawing.caption}")


def show_matrix(
    directory: Path | str, form: str = "table", denominator: str = "target", **chosen: str | None
) -> None:
    """Prints the matrix of a run, or of a part of it (see `subset`), as wide as the terminal."""
    from advens.results.boards.matrix import transfer_matrix
    from advens.results.boards.subset import subset
    from advens.results.boards.summary import load

    frame = None
    if denominator == "target" and not any(chosen.values()):
        frame = _stored(directory, "matrix")
    if frame is None or frame.attrs["means"] is None:  # older files hold no intervals of the means
        frame = transfer_matrix(subset(*load([directory]), **chosen)[0], denominator)
    show_board("matrix", frame, form)


def show_robustness(directory: Path | str, form: str = "table") -> None:
    """Prints the accuracy that attacks leave to the models of a robustness run."""
    from advens.results.boards.robustness import robustness
    from advens.results.boards.sanity import sanity_of
    from advens.results.boards.summary import load

    frame = _stored(directory, "robustness")
    show_board("robustness", robustness(*load([directory])) if frame is None else frame, form)
    if form == "table":
        click.echo("".join(f"{line}\n" for line in sanity_of(Path(directory))), nl=False)


def show_board(name: str, frame: pd.DataFrame, form: str = "table") -> None:
    """Prints a board, as wide as the terminal.

    Args:
        name: of the board.
        frame: what it holds, as `read_board` gives it.
        form: ``table``, ``markdown``, ``latex``, ``csv`` or ``json``.
    """
    from advens.results.display.render import board_parts, render_board

    if form == "table":
        _show(partial(board_parts, name, frame))
    else:
        click.echo(render_board(name, frame, form), nl=False)


def _stored(directory: Path | str, name: str) -> pd.DataFrame | None:
    """A board as its file holds it; None when there is no sound file, or rows were written after it."""
    from advens.results.boards import read_board
    from advens.results.store import RunStore

    try:
        board = read_board(directory, name)
        return board if RunStore(directory).current(Path(directory) / f"{name}.parquet") else None
    except (InputError, RunError):
        return None


def _joined(boards: list[pd.DataFrame]) -> pd.DataFrame:
    """Boards one below the other; each keeps its own ranks, and its notes in ``attrs``."""
    import pandas as pd

    if len(boards) == 1:
        return boards[0]
    about: list[dict[str, Any]] = [
        {"suites": sorted(set(board["suite"])), **{str(k): v for k, v in board.attrs.items()}}
        for board in boards
    ]
    for board in boards:
        board.attrs = {}
    joined = pd.concat(boards, ignore_index=True)
    joined.attrs = {"boards": about}
    return joined


def _show(parts: Callable[[int], Sequence[RenderableType]]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=False)
    for part in parts(console.width):
        console.print(part)


def _width() -> int:
    from rich.console import Console

    return Console().width
