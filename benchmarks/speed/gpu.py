"""Images per second of ensemble attacks on a GPU, and their share of what the same passes allow.

    python -m advens.benchmarks.speed.gpu --device cuda [--out FILE.json]
    python -m advens.benchmarks.speed.gpu --device cpu --tiny      # small networks: does it run

Four networks of ImageNet's size are attacked together. A line is one attack: ours, the passes it took and
nothing else (``bare``: the same networks at the same images in the same order), these compiled and in bf16,
ours in bf16, and, where they have the attack, the version that one writes down from the paper (``peer``) and
torchattacks. In turn and several times over; times are minima. Memory is the peak of one run.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.benchmarks.environment import commit, device_name, versions
from advens.benchmarks.speed.live import peak
from advens.benchmarks.speed.loop import clock
from advens.benchmarks.speed.straightforward import DIRECTIONS, unfrozen
from advens.benchmarks.speed.straightforward import attack as straightforward
from advens.classifier import Classifier, tensor_float
from advens.models import load_model

EPS = 8 / 255
ATTACKS = ("ens-logits", "svre", "adaea", "cwa", "ssa", "pgn")
TIMM = ("resnet50", "vit_base_patch16_224", "inception_v3", "swin_tiny_patch4_window7_224")
LARGE = tuple(f"timm:{name}?pretrained=false" for name in TIMM)
TINY = ("digits:resnet", "digits:vit-b", "digits:convnext", "digits:mambaout")


@dataclass(frozen=True)
class Pass:
    """One forward pass of a run.

    Args:
        model: which surrogate.
        x: what it was shown.
        graph: whether a backward pass may follow.
    """

    model: int
    x: Tensor
    graph: bool


@contextmanager
def recorded(models: Sequence[nn.Module]) -> Iterator[list[Pass]]:
    """The forward passes that are taken inside."""
    found: list[Pass] = []
    hooks = [
        model.register_forward_pre_hook(
            lambda _, given, k=k: found.append(Pass(k, given[0].detach(), torch.is_grad_enabled()))
        )
        for k, model in enumerate(models)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def replay(models: Sequence[nn.Module], passes: Sequence[Pass], backwards: int) -> None:
    """The same passes and nothing else; graphs serve as many backward passes as there were."""
    graphs = sum(each.graph for each in passes)
    times, more = divmod(backwards, max(1, graphs))
    seen = 0
    for each in passes:
        leaf = each.x.requires_grad_(each.graph)
        with torch.set_grad_enabled(each.graph):
            out = models[each.model](leaf)
        if each.graph:
            count, seen = times + (seen < more), seen + 1
            for turn in range(count):
                torch.autograd.grad(out.sum(), leaf, retain_graph=turn < count - 1)


class Mean(nn.Module):
    """The mean logits of several models, as one model for those who attack one."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([model(x) for model in self.models]).mean(0)


@dataclass
class Setting:
    """Networks and images on a device.

    Args:
        exact, reduced: the networks in float32 and in bf16.
        x, y: images (N, 3, H, W) in [0, 1] and labels.
        steps: of every attack.
        compiled: whether the passes are also timed under ``torch.compile``.
    """

    exact: list[Classifier]
    reduced: list[Classifier]
    x: Tensor
    y: Tensor
    steps: int
    compiled: bool

    def line(self, name: str, rounds: int) -> dict[str, Any]:
        """Images per second of all contestants, and what follows from them."""
        attack = create_attack(name, eps=EPS, steps=self.steps)
        with recorded(self.exact) as passes:
            attack(self.exact, self.x, self.y)
        backwards = attack.passes(len(self.exact)).backward
        contestants = self.contestants(name, passes, backwards)
        seconds: dict[str, list[float]] = {who: [] for who in contestants}
        for turn in range(rounds + 1):  # the first is a warm-up
            for who, work in contestants.items():
                taken = clock(work, self.x.device.type)
                if turn:
                    seconds[who].append(taken)
        speed = {who: len(self.x) / min(times) for who, times in seconds.items()}
        return {
            "attack": name, "passes": list(attack.passes(len(self.exact))), "images_per_second": speed,
            "share_of_bare": speed["ours"] / speed["bare"],
            "share_of_bare_bf16": speed["ours bf16"] / speed["bare bf16"],
            "peak_bytes": {who: self.memory(contestants[who]) for who in ("ours", "ours bf16")},
        }  # fmt: skip

    def contestants(
        self, name: str, passes: Sequence[Pass], backwards: int
    ) -> dict[str, Callable[[], None]]:
        """Whole runs, by who does them."""
        attack = create_attack(name, eps=EPS, steps=self.steps)

        def passed(models: Sequence[nn.Module]) -> Callable[[], None]:
            return lambda: replay(models, passes, backwards)

        def attacked(models: Sequence[nn.Module]) -> Callable[[], None]:
            return lambda: _drop(attack(models, self.x, self.y))

        found = {
            "ours": attacked(self.exact), "bare": passed(self.exact),
            "ours bf16": attacked(self.reduced), "bare bf16": passed(self.reduced),
        }  # fmt: skip
        if self.compiled:
            found["bare compiled"] = passed([_compiled(model) for model in self.exact])
            found["bare bf16 compiled"] = passed([_compiled(model) for model in self.reduced])
        if name in DIRECTIONS:
            loose = unfrozen(self.exact)
            found["peer"] = lambda: _drop(straightforward(name, loose, self.x, self.y, EPS, self.steps))
        theirs = self.torchattacks() if name == "ens-logits" else None
        return found if theirs is None else found | {"torchattacks": theirs}

    def torchattacks(self) -> Callable[[], None] | None:
        """Its MI-FGSM on the mean logits, where it is installed."""
        try:
            import torchattacks
        except ImportError:
            return None
        attack = torchattacks.MIFGSM(
            Mean(self.exact).eval(), eps=EPS, alpha=EPS / self.steps, steps=self.steps, decay=1.0
        )
        return lambda: _drop(attack(self.x, self.y))

    def memory(self, work: Callable[[], None]) -> int:
        """Bytes at the peak of a run, the networks and images aside."""
        if self.x.device.type != "cuda":
            return peak(work)
        torch.cuda.reset_peak_memory_stats(self.x.device)
        before = torch.cuda.memory_allocated(self.x.device)
        work()
        return int(torch.cuda.max_memory_allocated(self.x.device)) - before


def _compiled(model: nn.Module) -> nn.Module:
    alone = copy.deepcopy(model)
    alone.compile()
    return alone


def _drop(value: object) -> None:
    """Forget a result."""


def setting(device: str, tiny: bool, batch: int, steps: int, compiled: bool) -> Setting:
    """The networks, with weights drawn at random where they are large, and noise for images."""
    names, size = (TINY, 32) if tiny else (LARGE, 224)
    loaded = [load_model(name).to(device).to(memory_format=torch.channels_last) for name in names]
    reduced = [copy.deepcopy(model) for model in loaded]
    for model in reduced:
        model.precision = "bf16"
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, 3, size, size), generator=generator).to(device)
    y = torch.randint(loaded[0].num_classes, (batch,), generator=generator).to(device)
    return Setting(loaded, reduced, x, y, steps, compiled)


@click.command()
@click.option("--device", default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="Small networks, two images, one step and round.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=2, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--compile/--no-compile", "compiled", default=True, show_default=True)
@click.option("--only", type=click.Choice(ATTACKS), multiple=True, help="One attack; else all.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    device: str, tiny: bool, batch: int, steps: int, rounds: int, compiled: bool, only: tuple[str, ...],
    out: Path | None,
) -> None:  # fmt: skip
    """Time ensemble attacks."""
    if tiny:
        batch, steps, rounds, compiled = 2, 1, 1, False
    here, lines = setting(device, tiny, batch, steps, compiled), []
    click.echo(f"{device_name(device)}, {batch} images, {steps} steps, images per second")
    with tensor_float(False):
        for name in only or ATTACKS:
            line = here.line(name, rounds)
            lines.append(line)
            speeds = ", ".join(f"{who} {value:.3g}" for who, value in line["images_per_second"].items())
            memory = line["peak_bytes"]["ours"] / 2**20
            click.echo(f"{name:<12}{line['share_of_bare']:>6.1%} of bare; {speeds}; {memory:.0f} MiB")
    if out is not None:
        about = {
            "device": device_name(device), "torch": torch.__version__, "commit": commit(),
            "packages": versions(), "models": TINY if tiny else LARGE, "images": batch, "steps": steps,
            "lines": lines,
        }  # fmt: skip
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
