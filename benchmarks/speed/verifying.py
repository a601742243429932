"""What `advens verify` costs beside the crafting and the evaluation of a run.

    python -m advens.benchmarks.speed.verifying [SUITE] [--recraft 0.05] [--out FILE.json]

The suite is run, verified, and verified with a share of its cells crafted again, in this process and in
seconds of CPU, so that a busy machine changes little. Loading models and data is part of every figure.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from advens.benchmarks.checks import Work
from advens.benchmarks.environment import commit, versions
from advens.benchmarks.executors import Outcomes
from advens.benchmarks.executors.base import T, attempt
from advens.benchmarks.recraft import Sample
from advens.benchmarks.runner import run_suite
from advens.benchmarks.suites import load_suite
from advens.benchmarks.verify import verify_directory


@dataclass
class Timed:
    """This process; keeps how many seconds of CPU each kind of task took."""

    device: str = "cpu"
    workers: int = 1
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def execute(self, tasks: Sequence[T]) -> Outcomes[T]:
        """Do the tasks one after the other."""
        for task in tasks:
            started = time.process_time()
            outcome = attempt(task, self.device)
            self.seconds[type(task).__name__] += time.process_time() - started
            yield task, outcome


def figures(suite: str, share: float) -> Iterator[tuple[str, float]]:
    """Seconds of CPU, by what they were spent on."""
    timed = Timed()
    with tempfile.TemporaryDirectory() as folder:
        run_suite(load_suite(suite), Path(folder), executor=timed)
        yield "crafting", timed.seconds["Craft"]
        yield "evaluation", timed.seconds["Evaluate"]
        for name, sample in (
            ("verify", None), (f"verify --recraft {share}", Sample(share, "speed")),
        ):  # fmt: skip
            started = time.process_time()
            found = [audit for _, audit in verify_directory(Path(folder), Work(), recraft=sample)]
            if wrong := [line for audit in found for line in audit.mismatches]:
                raise click.ClickException(wrong[0])
            yield name, time.process_time() - started
            for audit in found:
                if audit.recrafted is not None:
                    click.echo(audit.recrafted.line())


@click.command()
@click.argument("suite", default="quickstart")
@click.option("--recraft", "share", default=0.05, show_default=True, help="Share of the cells crafted again.")
@click.option("--out", type=click.Path(path_type=Path))
def main(suite: str, share: float, out: Path | None) -> None:
    """Measure what verifying a run of SUITE costs."""
    found: dict[str, Any] = {}
    for name, seconds in figures(suite, share):
        found[name] = seconds
        click.echo(f"{name:<24}{seconds:>8.1f} s of CPU")
    click.echo(f"verify: {found['verify'] / found['evaluation']:.2f} of the evaluation")
    more = found[f"verify --recraft {share}"] - found["verify"]
    click.echo(f"--recraft {share}: {more / found['crafting']:.3f} of the crafting more")
    if out is not None:
        about = {"suite": suite, "commit": commit(), "packages": versions(), "seconds": found}
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
