"""``advens train``: an ensemble defense."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from advens.benchmarks.cli.options import executor_of, progress, set_option, worker_options
from advens.printable import say
from advens.trust import trust_option, typed


@click.command()
@click.argument("name", metavar="DEFENSE")
@click.option("--arch", help="Architecture of the members: a timm name, or any model source.")
@click.option("--data", required=True, help="Training images with labels.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder to be made.")
@click.option("--members", type=click.IntRange(1), help="How many.")
@click.option("--epochs", type=click.IntRange(1), help="Of every phase.")
@click.option("--seed", type=click.IntRange(0), default=0)
@worker_options
@trust_option
@set_option
def train(name: str, arch: str | None, data: str, out: Path, members: int | None, epochs: int | None,
          seed: int, device: str, executor: str, workers: int | None,
          settings: tuple[str, ...]) -> None:  # fmt: skip
    """Train a defense; interrupted, the same command goes on and gives the same weights."""
    from advens.benchmarks.runner import Runner
    from advens.benchmarks.suites import parse_settings
    from advens.benchmarks.tasks import Train
    from advens.defenses.members import architecture
    from advens.models import find_model

    given: dict[str, Any] = {"members": members, "epochs": epochs}
    options = {key: value for key, value in given.items() if value is not None} | parse_settings(
        settings
    )
    typed(data, *([arch] if arch else []))
    task = Train(
        name, tuple(sorted(options.items())), architecture(arch, data), data, seed, str(out)
    )
    _ = task.defense  # mistakes first
    run = Runner(executor_of(executor, device, workers), progress())
    saved = run.first("training", [task])[0]
    ensemble: Any = find_model(saved)
    say(f"{saved}: {len(ensemble.members)} members, {ensemble.kind}")
