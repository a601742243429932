"""What attacks of many copies cost beside their bare passes, one copy at a time and several at once.

    python -m advens.benchmarks.speed.catalogue [--only ssa] [--images 8] [--at-once 20] [--out FILE.json]

A line is one attack on one surrogate. In turn and several times over it times the passes of its formula and
nothing else, at the very images that the surrogate is shown and as many at once as the batch has; the attack
with one copy at a time; and the attack with ``copies_at_once``. Ratios are of the minima. Memory is the peak
of the bytes of live tensors that a run made; what kernels use inside is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from advens.attacks import attack_info, create_attack
from advens.attacks.attack import ComposedAttack
from advens.attacks.registry import RECIPES
from advens.benchmarks.environment import commit, versions
from advens.benchmarks.speed.bare import Bare
from advens.benchmarks.speed.live import peak
from advens.benchmarks.speed.loop import clock, void
from advens.models import load_model

EPS, STEPS = 16 / 255, 2


def names() -> list[str]:
    """Attacks of this catalogue: gradients and inputs."""
    return [name for name in RECIPES if attack_info(name).family in ("gradient", "input")]


@dataclass(frozen=True)
class Setting:
    """One surrogate at some images."""

    model: nn.Module
    x: Tensor
    y: Tensor
    at_once: int

    def attack(self, name: str) -> ComposedAttack:
        """An attack of two steps, or of one where its paper has one, without its warm start."""
        made = create_attack(name, eps=EPS)
        assert isinstance(made, ComposedAttack)
        changed = create_attack(name, eps=EPS, steps=min(made.steps, STEPS), warm_up=0)
        assert isinstance(changed, ComposedAttack)
        return changed

    def run(self, attack: ComposedAttack, at_once: int) -> Callable[[], None]:
        return lambda: void(attack.run(self.model, self.x, self.y, copies_at_once=at_once))

    def bare(self, attack: ComposedAttack) -> Callable[[], None]:
        """As many passes as the attack takes, at the images that it shows the surrogate."""
        seen: list[Tensor] = []
        hook = self.model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        attack.run(self.model, self.x, self.y)
        hook.remove()
        passes = Bare([self.model], [seen], self.y)

        def work() -> None:
            for _ in range(attack.passes(1).backward):
                passes.pair(0)

        return work

    def line(self, name: str, rounds: int) -> dict[str, Any]:
        """Times, ratios and memory. Who goes first changes from round to round; the first is a warm-up."""
        attack = self.attack(name)
        contestants = {"bare": self.bare(attack), "one": self.run(attack, 1)}
        if self.at_once > 1:
            contestants["at_once"] = self.run(attack, self.at_once)
        seconds: dict[str, list[float]] = {who: [] for who in contestants}
        order = list(contestants)
        for turn in range(rounds + 1):
            for who in order[turn % len(order) :] + order[: turn % len(order)]:
                taken = clock(contestants[who], str(self.x.device))
                if turn:
                    seconds[who].append(taken)
        best = {who: min(times) for who, times in seconds.items()}
        line: dict[str, Any] = {"attack": name, "passes": list(attack.passes(1))}
        line |= {f"{who}_seconds_per_image": taken / len(self.x) for who, taken in best.items()}
        line |= {f"{who}_peak_bytes": peak(contestants[who]) for who in contestants if who != "bare"}
        line["one_over_bare"] = best["one"] / best["bare"]
        if "at_once" in best:
            line["at_once_over_bare"] = best["at_once"] / best["bare"]
            line["speedup"] = best["one"] / best["at_once"]
        return line


@click.command()
@click.option("--model", default="digits:resnet", show_default=True)
@click.option("--size", default=32, show_default=True, help="Pixels along each side of the images.")
@click.option("--images", default=8, show_default=True, help="Images in a batch.")
@click.option("--at-once", default=20, show_default=True, help="Copies at once.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--only", multiple=True, help="One attack; else all of the gradient and input families.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    model: str, size: int, images: int, at_once: int, rounds: int, device: str, only: tuple[str, ...],
    out: Path | None,
) -> None:  # fmt: skip
    """Time attacks of many copies."""
    loaded = load_model(model).to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((images, 3, size, size), generator=generator).to(device)
    y = torch.randint(loaded.num_classes, (images,), generator=generator).to(device)
    here, lines = Setting(loaded, x, y, at_once), []
    header = ("passes", "one s/img", "one/bare", "once/bare", "one/once", "MiB", "once MiB")
    click.echo(f"{model}, {images} images, {at_once} copies at once, {torch.get_num_threads()} threads")
    click.echo(f"{'attack':<12}" + "".join(f"{word:>11}" for word in header))
    for name in only or names():
        line = here.line(name, rounds)
        lines.append(line)
        ratios = [line.get(key, float("nan")) for key in ("one_over_bare", "at_once_over_bare", "speedup")]
        memory = [line.get(f"{who}_peak_bytes", float("nan")) / 2**20 for who in ("one", "at_once")]
        click.echo(
            f"{name:<12}{line['passes'][1]:>11}{line['one_seconds_per_image']:>11.4f}"
            + "".join(f"{value:>11.3f}" for value in ratios) + "".join(f"{value:>11.1f}" for value in memory)
        )  # fmt: skip
    if out is not None:
        about = {
            "model": model, "size": size, "images": images, "at_once": at_once, "device": device,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "commit": commit(),
            "packages": versions(), "lines": lines,
        }  # fmt: skip
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
