"""White-box attacks beside their bare passes and beside torchattacks, in one run.

    python -m advens.benchmarks.speed.whitebox [--images 200] [--out FILE]

PMA against the forward and backward passes it takes when no sample leaves; the AutoAttack sequence against
torchattacks' on the same model, images and eps, with the robust accuracy of both.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from advens import create_attack, load_data, load_model
from advens.attacks.whitebox.cascade import SEQUENCES
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.oracle import RowOracle
from advens.classifier import borrowed
from advens.models.pool import ModelPool

EPS = 0.2


def shard(images: int) -> tuple[Tensor, Tensor]:
    """The first digits of the test set."""
    data = load_data(f"digits:test?limit={images}&seed=0")
    batch = next(data.batches([slice(0, len(data))]))
    return batch.pixels.float() / 255, batch.labels


def bare(model: nn.Module, attack: Any, x: Tensor, y: Tensor) -> Callable[[], None]:
    """The attack's passes at the images it visits, and nothing else.

    Some kernels (max-pooling, GELU) take longer at the images an attack has reached.
    """
    points: list[tuple[Tensor, bool]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args: points.append((args[0].detach().clone(), torch.is_grad_enabled()))
    )
    spent = attack.run([model], x, y).passes
    hook.remove()
    assert (len(points), sum(graph for _, graph in points)) == spent

    def work() -> None:
        for point, graph in points:
            if graph:
                leaf = point.requires_grad_()
                torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
            else:
                with torch.no_grad():
                    model(point)

    return work


def loop(model: nn.Module, x: Tensor, y: Tensor, rounds: int, steps: int = 20) -> dict[str, Any]:
    """PMA beside the passes of its formula, by turns."""
    attack = create_attack("pma", eps=EPS, steps=steps)
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    with borrowed([model]):
        contestants: dict[str, Callable[[], object]] = {
            "bare": bare(model, attack, x, y),
            "ours": lambda: attack.run([model], x, y),
        }
        for _ in range(rounds + 1):
            for name, work in contestants.items():
                started = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(seconds["ours"][1:], seconds["bare"][1:], strict=True)]
    return {
        "case": "pma", "images": len(x), "passes": list(attack.passes(1)),
        "bare_seconds": min(seconds["bare"][1:]), "ours_seconds": min(seconds["ours"][1:]),
        "ours_over_bare": statistics.median(ratios),
    }  # fmt: skip


def sequence(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> dict[str, Any]:
    """The AutoAttack sequence on 8-bit images, broken samples leaving at once."""
    attacks: list[Any] = [
        create_attack(name, eps=EPS, **options) for name, options in SEQUENCES["autoattack"].items()
    ]
    started = time.perf_counter()
    oracle = RowOracle([model], attacks[0].threat, x, y, eight_bit=True)
    with borrowed([model]):
        oracle.begin(torch.arange(len(x)))
        for attack in attacks:
            search(attack, oracle, torch.nonzero(oracle.correct > 0).flatten(), batch=batch)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds, "robust_accuracy": float(oracle.correct.mean()),
        "forwards": float(oracle.forwards.double().mean()),
        "backwards": float(oracle.backwards.double().mean()),
    }  # fmt: skip


def peer(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any] | None:
    """The same sequence of torchattacks' parts; None without the package.

    Its own AutoAttack takes 10 steps where the published one takes 100, so its parts are put together
    with the published numbers.
    """
    try:
        import torchattacks as peers
    except ImportError:
        return None
    started = time.perf_counter()
    common: dict[str, Any] = {"norm": "Linf", "eps": EPS, "n_restarts": 1, "seed": 0}
    targeted = {"n_classes": 10, "steps": 100}
    attack: Any = peers.MultiAttack([
        peers.APGD(model, loss="ce", steps=100, **common),
        peers.APGDT(model, **targeted, **common),
        peers.FAB(model, multi_targeted=True, **targeted, **common),
        peers.Square(model, n_queries=5000, resc_schedule=False, **common),
    ])  # fmt: skip
    images = attack(x, y)
    seconds = time.perf_counter() - started
    with torch.no_grad():
        right = model(images).argmax(1) == y
    return {"seconds": seconds, "robust_accuracy": float(right.float().mean())}


@click.command()
@click.option("--images", default=200, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--model", "source", default="digits:resnet-at", show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(images: int, rounds: int, source: str, out: Path | None) -> None:
    """Time white-box attacks."""
    (model,) = ModelPool(torch.device("cpu")).get([source])  # as every command has it
    x, y = shard(images)
    line = loop(model, x, y, rounds)
    click.echo(f"pma: {line['ours_seconds']:.2f} s, bare passes {line['bare_seconds']:.2f} s, "
               f"ratio {line['ours_over_bare']:.3f}")  # fmt: skip
    ours, theirs = sequence(model, x, y, batch=len(x)), peer(load_model(source), x, y)
    for name, found in (("ours", ours), ("torchattacks", theirs)):
        if found is not None:
            click.echo(f"autoattack, {name}: {found['seconds']:.1f} s, robust {found['robust_accuracy']:.3f}")
    if theirs is not None:
        click.echo(f"torchattacks / ours: {theirs['seconds'] / ours['seconds']:.2f}")
    if out is not None:
        where = f"{torch.get_num_threads()} threads"
        about = {"model": source, "eps": EPS, "images": images, "where": where, "torch": torch.__version__,
                 "pma": line, "autoattack": {"ours": ours, "torchattacks": theirs}}  # fmt: skip
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
