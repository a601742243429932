"""``advens sample``: the best probabilities of an ensemble's members, after its training."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import executor_of, progress, worker_options
from advens.errors import InputError
from advens.printable import say
from advens.trust import trust_option, typed


@click.command()
@click.argument("ensemble", metavar="FOLDER")
@click.option("--data", required=True, help="Images with labels that no member was trained on.")
@click.option("--eps", type=click.FloatRange(0, min_open=True), default=8 / 255,
              help="Radius of the l_inf ball.  [default: 8/255]")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Steps of ARC.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True,
              help="Steps of the search, at most.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True,
              help="The first step of the search.")
@click.option("--limit", type=click.IntRange(2), help="Only the first images.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder to be made.")
@worker_options
@trust_option
def sample(ensemble: str, data: str, eps: float, steps: int, rounds: int, lr: float, limit: int | None,
           out: Path, device: str, executor: str, workers: int) -> None:  # fmt: skip
    """Find the probabilities with which to draw the members of an ensemble (OSP).

    FOLDER is an ensemble that was saved by 'advens train', or any model with members. Its members are saved
    in --out as a randomized ensemble with the probabilities that minimise the adversarial risk under ARC.
    They are found on every other image of --data; the risks before and after are measured on the images
    between.
    """
    from advens.benchmarks.runner import Runner
    from advens.benchmarks.tasks import Sample

    name = ensemble if ":" in ensemble else f"defense:{ensemble}"
    typed(name, data)
    task = Sample(name, data, limit, eps, steps, rounds, lr, str(out))
    if out.exists():
        raise InputError(f"{out} is there already; give another --out")
    run = Runner(executor_of(executor, device, workers), progress())
    found = run.first("sampling", [task])[0]
    shares = ", ".join(f"{p:.3f}" for p in found["probabilities"])
    say(f"defense:{out}: drawn with probabilities {shares}")
    start = ", ".join(f"{p:.3f}" for p in found["start"])
    say(
        f"adversarial risk on {found['images']} images that the search did not see: "
        f"{found['before']:.3f} with probabilities {start}, {found['after']:.3f} with these"
    )
