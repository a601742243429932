"""``advens matrix`` and ``advens leaderboard``: what the samples of runs say."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advens.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    from rich.console import RenderableType

STUDY = "study.parquet"
"""The pooled table of a suite of defenses."""
_FORMAT = click.option(
    "--format", "form", default="table", show_default=True,
    type=click.Choice(["table", "csv", "json", "markdown"]), help="How to write it.",
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
    help="Only the difference of two attacks, paired over images; ATTACK or ATTACK@SURROGATES.",
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
    from advens.results.display import render

    if len(directories) == 1 and (Path(directories[0]) / STUDY).is_file():
        if pair or family or any(chosen.values()):
            raise InputError(f"{directories[0]} ranks defenses; only --format changes what is shown")
        show_study(directories[0], form)
        return
    if pair is not None:
        from advens.results.boards.compare import compare
        from advens.results.boards.subset import subset
        from advens.results.boards.summary import load

        found = compare(subset(*load(directories), **chosen)[0], *pair, denominator)
        click.echo(render.render_comparison(found, form, _width()), nl=False)
        return
    from advens.results.boards.summary import boards

    found_boards = boards(directories, denominator, family, **chosen)
    if form == "table":
        for k, board in enumerate(found_boards):
            click.echo(nl=bool(k))
            _show(partial(render.leaderboard_parts, board))
    elif form == "markdown":
        click.echo("\n".join(render.render_leaderboard(b, form) for b in found_boards), nl=False)
    else:
        click.echo(render.render_leaderboard(_joined(found_boards), form), nl=False)


def show_matrix(
    directory: Path | str, form: str = "table", denominator: str = "target", **chosen: str | None
) -> None:
    """Prints the matrix of a run, or of a part of it (see `subset`), as wide as the terminal."""
    from advens.results.boards.matrix import transfer_matrix
    from advens.results.boards.subset import subset
    from advens.results.boards.summary import load
    from advens.results.display import render

    frame = transfer_matrix(subset(*load([directory]), **chosen)[0], denominator)
    if form == "table":
        _show(partial(render.matrix_parts, frame))
    else:
        click.echo(render.render_matrix(frame, form), nl=False)


def show_study(directory: Path | str, form: str = "table") -> None:
    """Prints the tables of a suite of defenses, as wide as the terminal."""
    import pandas as pd

    from advens.results.boards import defenses as study
    from advens.results.display import text

    table = pd.read_parquet(Path(directory) / STUDY)
    if form == "table":
        _show(partial(study.study_parts, table))
    elif form == "markdown":
        click.echo(study.study_markdown(table), nl=False)
    else:
        click.echo(text.as_csv(table) if form == "csv" else text.as_json(table), nl=False)


def show_robustness(directory: Path | str, form: str = "table") -> None:
    """Prints what is left of the models of a robustness run, as wide as the terminal."""
    from advens.results.boards.robustness import robustness
    from advens.results.boards.summary import load
    from advens.results.display import render

    frame = robustness(*load([directory]))
    if form == "table":
        _show(partial(render.robustness_parts, frame))
    else:
        click.echo(render.render_robustness(frame, form), nl=False)


def summarise(directory: Path | str, suite_digest: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Computes matrix and board of a run and writes both; see ``advens.results.boards.summary``."""
    from advens.results.boards.summary import summarise as compute

    return compute(directory, suite_digest)


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
