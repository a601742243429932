"""What an epoch of DVERGE costs, its members in a loop and stacked, beside the bare passes it needs.

    python -m advens.benchmarks.speed.defenses [--device cuda] [--out FILE.json]

An epoch of the second phase: every update distils images from each of K members and shows each member
those of the others. Bare are the same passes and nothing else, one member after the other: K (K + steps)
forward, of which K steps go back to the images and K (K - 1) to the weights. The layer is the logits, so
that every pass is a whole one. The three take turns; a line gives the minimum of each time and its ratios.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import click
import torch
from torch import Tensor
from torch.nn import functional as F

from advens.benchmarks.environment import commit, versions
from advens.benchmarks.speed.loop import clock
from advens.classifier import Classifier, borrowed
from advens.datasets import load_data
from advens.defenses import create_defense
from advens.defenses.layers import LOGITS
from advens.defenses.members import fresh
from advens.defenses.phases import Batch, Team
from advens.seeding import Draws

SIZE = (32, 32)
WHO = ("bare", "looped", "stacked")
Batches = list[tuple[Tensor, Tensor]]
Work = Callable[[Batches], None]
RATIOS = (("looped", "bare"), ("stacked", "bare"), ("stacked", "looped"))


@dataclass
class Epoch:
    """All that an epoch needs.

    Args:
        arch: of the members.
        k: how many.
        x: images in [0, 1], (N, C, H, W).
        y: labels (N,).
        batch_size: images of an update.
    """

    arch: str
    k: int
    x: Tensor
    y: Tensor
    batch_size: int

    def __post_init__(self) -> None:
        batches = zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
        self.batches = [(x, y) for x, y in batches if len(x) > 1]  # as in training
        self.steps: int = create_defense("dverge").steps

    def members(self) -> list[Classifier]:
        """Fresh ones, in train mode."""
        return [fresh(self.arch, 10, SIZE, 0, k).to(self.x.device) for k in range(self.k)]

    def passes(self) -> tuple[int, int]:
        """Forward and backward passes in an epoch, each of one member on one batch."""
        each = len(self.batches) * self.k
        return each * (self.steps + self.k), each * (self.steps + self.k - 1)

    def dverge(self, stacked: Literal["always", "never"]) -> Work:
        """Its updates."""
        team = Team(self.members(), torch.empty(0))
        known = team.layers(self.x)
        draws = next(
            d for d in (Draws(seed, self.batch_size) for seed in count())
            if known[d.integers(len(known), 1, "layer")[0]] == LOGITS
        )  # fmt: skip
        optimizer = torch.optim.SGD([p for f in team.members for p in f.parameters()], 1e-3)
        defense = create_defense("dverge", members=self.k, stacked=stacked)

        def updates(batches: Batches) -> None:
            for x, y in batches:
                other = (x.flip(0), y.flip(0))
                loss = defense.loss(team, Batch(x, y, lambda other=other: other, draws, draws))  # type: ignore[misc]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        return updates

    def bare(self) -> Work:
        """The passes alone."""
        members = self.members()

        def passes(batches: Batches) -> None:
            for x, y in batches:
                for f in members:
                    with borrowed([f], train_mode=True):
                        with torch.no_grad():
                            f(x)
                        for _ in range(self.steps):
                            leaf = x.detach().requires_grad_()
                            torch.autograd.grad(f(leaf).square().sum(), leaf)
                    torch.stack([F.cross_entropy(f(x), y) for _ in range(self.k - 1)]).sum().backward()

        return passes

    def line(self, device: str, rounds: int) -> dict[str, Any]:
        """Times and ratios, after one update of each as a warm-up."""
        works = (self.bare(), self.dverge("never"), self.dverge("always"))
        contestants = dict(zip(WHO, works, strict=True))
        seconds: dict[str, list[float]] = {who: [] for who in contestants}
        for work in works:
            work(self.batches[:1])
        for _ in range(rounds):
            for who, work in contestants.items():
                seconds[who].append(clock(partial(work, self.batches), device))
        best = {who: min(times) for who, times in seconds.items()}
        forward, backward = self.passes()
        line: dict[str, Any] = {"members": self.k, "forward": forward, "backward": backward}
        line |= {f"{who}_seconds": time for who, time in best.items()}
        for a, b in RATIOS:
            line[f"{a}_over_{b}"] = best[a] / best[b]
        return line


@click.command()
@click.option("--device", default="cpu", show_default=True)
@click.option("--arch", default="digits:resnet", show_default=True)
@click.option("--images", type=click.IntRange(2), help="Only so many of digits:train; else all.")
@click.option("--batch-size", type=click.IntRange(2), default=128, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--members", type=click.IntRange(2), multiple=True, default=(3, 8), show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(
    device: str, arch: str, images: int | None, batch_size: int, rounds: int, members: tuple[int, ...],
    out: Path | None,
) -> None:  # fmt: skip
    """Time DVERGE."""
    where = f"{torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        where = torch.cuda.get_device_name()
    data = load_data(f"digits:train?limit={images}&seed=0" if images else "digits:train")
    batch = next(data.batches([slice(0, len(data))]))
    x, y = (batch.pixels.float() / 255).to(device), batch.labels.to(device)
    click.echo(f"{arch}, {len(x)} images in batches of {batch_size}, {device} ({where})")
    header = ("forward", "backward", *WHO, *(f"{a}/{b}" for a, b in RATIOS))
    click.echo(f"{'members':<8}" + "".join(f"{word:>{max(10, len(word) + 2)}}" for word in header))
    lines = []
    for k in members:
        line = Epoch(arch, k, x, y, batch_size).line(device, rounds)
        lines.append(line)
        click.echo(
            f"{k:<8}{line['forward']:>10}{line['backward']:>10}"
            + "".join(f"{line[f'{who}_seconds']:>9.3f}s" for who in WHO)
            + "".join(f"{line[f'{a}_over_{b}']:>{len(a + b) + 3}.3f}" for a, b in RATIOS)
        )
    if out is not None:
        about = {
            "device": device, "where": where, "torch": torch.__version__, "commit": commit(),
            "packages": versions(), "arch": arch, "images": len(x), "batch_size": batch_size, "lines": lines,
        }  # fmt: skip
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
