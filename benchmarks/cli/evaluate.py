"""``advens evaluate``: new targets on stored images."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import (
    batch_option,
    conclude,
    executor_of,
    names_in,
    progress,
    worker_options,
)
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--targets", required=True, help="Models, with wildcards: M,N.")
@worker_options
@trust_option
@batch_option
def evaluate(directory: Path, targets: str, device: str, executor: str, workers: int | None,
             batch_size: int | None) -> None:  # fmt: skip
    """Evaluate new targets on the stored examples of a run; nothing is crafted again.

    A page that the run has is written again, with these targets.
    """
    from advens.benchmarks.evaluate import evaluate_targets
    from advens.benchmarks.runner import Runner

    names = names_in(targets, "--targets")
    how = Runner(executor_of(executor, device, workers), progress())
    report, shown = evaluate_targets(directory, names, how, batch_size)
    conclude(report, shown)
    if (directory / "report.html").is_file():
        from advens.results.report.page import write_report

        say(f"report: {write_report(directory)}")
