"""What the attack loop costs beside the bare passes it needs, and beside torchattacks' MI-FGSM.

    python -m advens.benchmarks.speed.loop [--device cuda] [--out FILE.json]

One run times, in turn and several times over, the same number of forward and backward passes:
bare (frozen models, gradient to the input alone), ours, and the peer where it is installed. A line
gives the median of the per-round ratios, the minimum of each time, and how many images were in the batch.
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
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.models import load_model

EPS, STEPS = 8 / 255, 10
DIGITS = ("digits:resnet", "digits:convnext", "digits:byobnet", "digits:vit")

CASES: dict[str, tuple[tuple[str, ...], int, int]] = {
    "digits resnet": (DIGITS[:1], 32, 250),
    "digits vit": (DIGITS[3:], 32, 250),
    "digits, four fused": (DIGITS, 32, 125),
    "timm resnet18": (("timm:resnet18?pretrained=false",), 224, 8),
    "timm vit_tiny_patch16_224": (("timm:vit_tiny_patch16_224?pretrained=false",), 224, 8),
}
"""Models, image size and batch of every line; a GPU gets 16 times the batch."""


def bare(models: list[nn.Module], x: Tensor, y: Tensor) -> Callable[[], None]:
    """The passes alone: K forward and one joint backward a step, nothing else."""

    def passes() -> None:
        for _ in range(STEPS):
            leaf = x.detach().requires_grad_()
            logits = torch.stack([model(leaf) for model in models]).mean(0)
            torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), leaf)

    return passes


def ours(models: list[nn.Module], x: Tensor, y: Tensor) -> Callable[[], None]:
    """`mifgsm` as a user calls it."""
    attack = create_attack("mifgsm", eps=EPS, steps=STEPS)
    return lambda: void(attack(models, x, y))


def peer(models: list[nn.Module], x: Tensor, y: Tensor) -> Callable[[], None] | None:
    """torchattacks' MIFGSM on one model, with its parameters frozen as ours are."""
    try:
        import torchattacks
    except ImportError:
        return None
    if len(models) > 1:
        return None
    attack = torchattacks.MIFGSM(models[0], eps=EPS, alpha=EPS / STEPS, steps=STEPS, decay=1.0)
    return lambda: void(attack(x, y))


def void(value: object) -> None:
    """Drop a result."""


def clock(work: Callable[[], None], device: str) -> float:
    """Seconds of one call."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(name: str, device: str, rounds: int) -> dict[str, Any]:
    """One line: the contestants take turns, so that a busy machine hits them alike."""
    sources, size, batch = CASES[name]
    loaded = [load_model(source).to(device) for source in sources]
    models: list[nn.Module] = [*loaded]
    batch *= 16 if device.startswith("cuda") else 1
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, 3, size, size), generator=generator).to(device)
    y = torch.randint(loaded[0].num_classes, (batch,), generator=generator).to(device)
    contestants = {"bare": bare(models, x, y), "ours": ours(models, x, y), "torchattacks": peer(models, x, y)}
    seconds: dict[str, list[float]] = {who: [] for who, work in contestants.items() if work}
    for work in contestants.values():
        if work is not None:
            work()  # warm-up
    for _ in range(rounds * (3 if size < 100 else 1)):
        for who, times in seconds.items():
            work = contestants[who]
            assert work is not None
            times.append(clock(work, device))
    line: dict[str, Any] = {"case": name, "images": batch, "size": size, "steps": STEPS}
    for who, times in seconds.items():
        line[f"{who}_seconds"] = min(times)
        if who != "bare":
            ratios = [a / b for a, b in zip(times, seconds["bare"], strict=True)]
            line[f"{who}_over_bare"] = statistics.median(ratios)
    return line


@click.command()
@click.option("--device", default="cpu")
@click.option("--rounds", default=9, show_default=True)
@click.option("--only", help="One case.")
@click.option("--out", type=click.Path(path_type=Path))
def main(device: str, rounds: int, only: str | None, out: Path | None) -> None:
    """Time the loop."""
    where = f"{torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name()
    header = ("images", "bare", "ours", "peer", "ours/bare", "peer/bare")
    click.echo(f"{'case':<28}" + "".join(f"{word:>{11 if '/' in word else 9}}" for word in header))
    lines = []
    for name in [only] if only else CASES:
        line = measure(name, device, rounds)
        lines.append(line)
        peer_time = line.get("torchattacks_seconds")
        click.echo(
            f"{name:<28}{line['images']:>9}{line['bare_seconds']:>8.3f}s{line['ours_seconds']:>8.3f}s"
            + (f"{peer_time:>8.3f}s" if peer_time else f"{'-':>9}")
            + f"{line['ours_over_bare']:>11.3f}"
            + (f"{line['torchattacks_over_bare']:>11.3f}" if peer_time else f"{'-':>11}")
        )
    if out is not None:
        about = {"device": device, "where": where, "torch": torch.__version__, "lines": lines}
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
