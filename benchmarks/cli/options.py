"""What several commands share: options, names in lists, and how a run's end is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from advens.errors import InputError, RunError
from advens.printable import say
from advens.trust import trusted, typed

if TYPE_CHECKING:
    from advens.benchmarks.executors import Executor
    from advens.benchmarks.parts import Part
    from advens.benchmarks.progress import Progress
    from advens.benchmarks.runner import Report

C = TypeVar("C", bound=Callable[..., Any])

batch_option = click.option(
    "--batch-size", type=click.IntRange(1), help="Images at once.  [default: by image size]"
)
store_option = click.option(
    "--store", type=click.Choice(["differences", "images"]), default=None,
    help="How adversarial images are kept: as differences from the clean ones, which are then needed to read "
    "them, or whole.  [default: differences]",
)  # fmt: skip
precision_option = click.option(
    "--precision", type=click.Choice(["float32", "tf32", "bf16"]), default="float32", show_default=True,
    help="What targets compute in. How it agrees with float32 is measured.",
)  # fmt: skip
craft_precision_option = click.option(
    "--craft-precision", type=click.Choice(["float32", "tf32", "bf16"]), default="float32", show_default=True,
    help="What surrogates compute in.",
)  # fmt: skip
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="An option by its name: threat.eps=0.1."
)  # fmt: skip
time_limit_option = click.option(
    "--time-limit", type=click.FloatRange(0, min_open=True), default=60.0, metavar="MINUTES",
    help="For the process that verifies an entry.",
)  # fmt: skip
sanity_option = click.option(
    "--no-sanity", "sanity", flag_value=False, type=bool, default=True,
    help="Do not check that gradients of the models can be trusted.",
)
format_option = click.option(
    "--format", "form", default="table", show_default=True,
    type=click.Choice(["table", "csv", "json", "markdown", "latex"]), help="How to write it.",
)  # fmt: skip


def worker_options(command: C) -> C:
    """--device, --executor and --workers, for every command that does work."""
    for option in (
        click.option(
            "--workers", type=click.IntRange(1), help="Worker processes, Ray workers, or jobs at once."
        ),
        click.option(
            "--executor", default="local", help="local, ray, submitit, or a plug-in's; NAME?OPTION=VALUE."
        ),
        click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto picks."),
    ):
        command = option(command)
    return command


def executor_of(executor: str, device: str, workers: int | None) -> Executor:
    """The executor that a command's options ask for. Raises InputError when it is not to be had."""
    from advens.benchmarks.executors import create_executor

    return create_executor(executor, device=device, workers=workers)


def names_in(text: str, option: str) -> list[str]:
    """``A,B`` as a list of names, which are trusted because the user typed them."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InputError(f"{option} names nothing; write {option} A,B")
    typed(*names)
    return names


def trusted_options() -> list[str]:
    """What the running command trusts, as options of a command in another process."""
    return [part for name in sorted(trusted()) for part in ("--trust", name)]


def given_options(context: click.Context, *but: str) -> list[str]:
    """The options that the user gave to the running command, what it trusts included, for another process.

    Args:
        but: the names of those to leave out.
    """
    given = trusted_options()
    for option in context.command.params:
        name = str(option.name)
        typed_by_user = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if isinstance(option, click.Option) and option.expose_value and typed_by_user and name not in but:
            given += [option.opts[0], str(context.params[name])]
    return given


def progress() -> Progress:
    """A bar on a terminal, lines in a log."""
    from rich.console import Console

    from advens.benchmarks.progress import Progress

    return Progress(Console(stderr=True))


def conclude(report: Report, board: str, form: str = "table") -> None:
    """Print a board of a run and what was done. Raises RunError when something failed."""
    from advens.results.boards import read_board
    from advens.results.boards.sanity import sanity_of
    from advens.results.commands import show_board

    for warning in report.warnings:
        say(f"warning: {warning}", err=True)
    for _, why in report.failures:
        say(f"failed: {why}", err=True)
    quiet = form != "table"
    if not report.failures:
        show_board(board, read_board(report.directory, board), form)
    for line in sanity_of(report.directory):
        say(line, err=quiet)
    if report.crafted or report.evaluated:
        say(f"{report.crafted} cells crafted, {report.evaluated} evaluations", err=quiet)
    else:
        say(f"nothing to do: all {report.cells} cells are there", err=quiet)
    for line in report.unsound:
        say(line, err=True)
    if report.failures:
        raise RunError(
            f"{len(report.failures)} cells failed; see 'advens status {report.directory}'"
        )
    files = sorted(path.name for path in report.directory.glob("*.parquet"))
    say(
        f"files in {report.directory}: {', '.join(files)}, and the runs' samples/ and examples/",
        err=quiet,
    )
    if report.unsound:
        raise RunError(
            f"{len(report.unsound)} checks of the sanity report failed: what attacks leave of these models "
            "overstates their robustness"
        )


def conclude_part(report: Report, part: Part) -> None:
    """Print what a part of a run did and what others have to do. Raises RunError when something failed."""
    from advens.benchmarks.status import progress
    from advens.results.store import RunStore

    for warning in report.warnings:
        say(f"warning: {warning}", err=True)
    for _, why in report.failures:
        say(f"failed: {why}", err=True)
    now = progress(RunStore(report.directory))
    say(f"part {part}: {report.crafted} cells crafted, {report.evaluated} evaluations")
    if report.failures:
        raise RunError(f"{len(report.failures)} cells failed; see 'advens status {report.directory}'")
    if now.left:
        say(f"{now.left} cells and evaluations are left to other parts, or failed there")
    say("the same command without --part does what is missing and computes the boards")
