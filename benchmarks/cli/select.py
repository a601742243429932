"""``advens select``: which models to take as surrogates."""

from __future__ import annotations

import click

from advens.benchmarks.cli.options import names_in
from advens.printable import say
from advens.trust import trust_option, typed


@click.command(name="select")
@click.option("--from", "candidates", required=True, help="Models to choose from, with wildcards: A,B.")
@click.option("-k", "--count", "count", type=click.IntRange(1), default=4, show_default=True)
@click.option("--data", required=True, help="Calibration images with labels; not those you will attack.")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True,
              help="Calibration images, unless --data has a limit of its own.")
@click.option("--redundancy", type=click.FloatRange(0), default=1.0, show_default=True,
              help="Weight of what surrogates have in common.")
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto picks.")
@trust_option
def select(
    candidates: str, count: int, data: str, limit: int, redundancy: float, device: str
) -> None:
    """Pick surrogates greedily by a submodular score: agreement with the labels, low redundancy.

    It takes one forward and one backward pass of every candidate an image, and no target.
    """
    from advens.attacks.surrogates.selection import examine
    from advens.benchmarks.executors.base import resolve_device
    from advens.datasets import find_data
    from advens.datasets.classes import check_classes
    from advens.errors import InputError
    from advens.models import expand, find_model

    typed(data)
    where = resolve_device(device)
    names = list(dict.fromkeys(n for p in names_in(candidates, "--from") for n in expand(p)))
    if count > len(names):
        raise InputError(f"-k {count}: only {len(names)} models to choose from")
    first = "&" if "?" in data else "?"
    opened = find_data(data if "limit=" in data else f"{data}{first}limit={limit}&seed=0")
    models = [find_model(name).to(where) for name in names]
    for name, model in zip(names, models, strict=True):
        try:
            check_classes(opened, model.num_classes)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    batch = next(opened.batches([slice(0, len(opened))]))
    found = examine(models, batch.pixels.to(where).float() / 255, batch.labels.to(where))
    say(f"{'surrogate':<28}{'adds':>8}{'agreement':>11}{'likeness to others':>20}")
    others = (found.similarity.sum(0) - 1) / max(1, len(names) - 1)
    for k, gain in found.greedy(count, redundancy):
        say(f"{names[k]:<28}{gain:>8.4f}{float(found.agreement[k]):>11.3f}{float(others[k]):>20.4f}")
