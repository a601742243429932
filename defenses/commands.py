"""``advens train`` and ``advens defenses``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from advens.trust import trust_option, typed


@click.command()
@click.argument("name", metavar="DEFENSE")
@click.option("--arch", help="Architecture of the members: a timm name, or any model source.")
@click.option("--data", required=True, help="Training images with labels.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A new folder for the ensemble.")
@click.option("--members", type=click.IntRange(1), help="Number of members.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of every phase.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all that is random.")
@click.option("--device", default="cpu", show_default=True)
@trust_option
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Override an option of the defense or of its training, as eps=0.1 or lr=0.05.")
def train(name: str, arch: str | None, data: str, out: Path, members: int | None, epochs: int | None,
          seed: int, device: str, settings: tuple[str, ...]) -> None:  # fmt: skip
    """Train a defense. After an interruption the same command resumes and gives the same weights."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from advens.datasets import find_data
    from advens.defenses import create_defense
    from advens.defenses.members import architecture
    from advens.defenses.training import train as run
    from advens.spec import literal

    options: dict[str, Any] = {"members": members, "epochs": epochs}
    options = {key: value for key, value in options.items() if value is not None}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            from advens.errors import InputError

            raise InputError(f"--set '{setting}': write KEY=VALUE, as eps=0.1")
        options[key.strip()] = literal(value.strip())
    defense = create_defense(name, **options)
    typed(data, *([arch] if arch else []))
    built = architecture(arch, data)
    phases = defense.phases()
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"), console=Console(stderr=True),
    )  # fmt: skip
    with bar:
        task = bar.add_task(name, total=len(phases) * defense.training.epochs, loss=float("nan"))
        order = {phase.name: i for i, phase in enumerate(phases)}

        def say(row: dict[str, Any]) -> None:
            done = order[row["phase"]] * defense.training.epochs + row["epoch"]
            bar.update(task, completed=done, description=f"{name}, {row['phase']}", loss=row["loss"])

        ensemble = run(defense, built, find_data(data), out, seed=seed, device=device, on_epoch=say)
    click.echo(f"defense:{out}: {len(ensemble.members)} members, {ensemble.kind}")


@click.command()
@click.argument("name", required=False)
def defenses(name: str | None) -> None:
    """List defenses (NAME may be a wildcard), or show one with its parameters, defaults and paper."""
    from advens.defenses.registry import DEFENSES, create_defense, describe, list_defenses
    from advens.errors import unknown
    from advens.listing import show

    if name is not None and not any(c in name for c in "*?["):
        info = DEFENSES.info(name)
        click.echo(f"{name}: {info.summary}\nfamily    {info.family}\npaper     {info.paper}\nparameters")
        described = describe(create_defense(name))
        described.pop("defense")
        for key, value in (described | described.pop("training")).items():
            click.echo(f"  {key:<22} {value}")
        return
    found = list_defenses(name or "*")
    if not found:
        raise unknown("defense", str(name), DEFENSES)
    infos = ((each, DEFENSES.info(each)) for each in found)
    show(
        ("defense", "family", "year", "what it is"),
        ((each, info.family, info.year or "", info.summary) for each, info in infos),
        "'advens defenses NAME' shows one.",
    )
