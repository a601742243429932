"""What a fusion of four surrogates costs: beside its bare passes, and beside a straightforward version.

    python -m advens.benchmarks.speed.fusions [--case digits] [--quick] [--out FILE.json]

A line is one fusion under momentum. In turn and several times over it times the passes of its formula and
nothing else (`BARE`), ours, and `straightforward`. Ratios are given of the minima and as the median of
the rounds. Memory is the peak of the bytes of live tensors that a run made, the models and the images it
was given aside; what kernels use inside is not in it.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.parts import from_spec
from advens.attacks.updates import MI
from advens.benchmarks.environment import commit, versions
from advens.benchmarks.speed.bare import BARE, Bare
from advens.benchmarks.speed.live import peak
from advens.benchmarks.speed.loop import clock
from advens.benchmarks.speed.straightforward import attack as straightforward
from advens.benchmarks.speed.straightforward import unfrozen
from advens.models import load_model
from advens.seeding import Draws
from advens.threat import Threat

EPS = 16 / 255
TIMM = ("resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_100", "convnext_atto")

CASES: dict[str, tuple[tuple[str, ...], int, int]] = {
    "digits": (("digits:resnet", "digits:convnext", "digits:byobnet", "digits:vit-b"), 32, 125),
    "timm": (tuple(f"timm:{name}?pretrained=false" for name in TIMM), 224, 4),
}
"""Models, image size and batch."""


@dataclass
class Setting:
    """Four surrogates at some images.

    Args:
        models: the surrogates, frozen.
        x: images in [0, 1], (N, C, H, W).
        y: labels (N,).
        steps: outer steps.
    """

    models: Sequence[nn.Module]
    x: Tensor
    y: Tensor
    steps: int = 2

    def __post_init__(self) -> None:
        self.loose = unfrozen(self.models)

    def attack(self, fusion: str) -> ComposedAttack:
        """A fusion under momentum, its own parameters at their defaults."""
        made = from_spec("fusion", fusion)
        return ComposedAttack(threat=Threat("linf", EPS), steps=self.steps, update=MI(), fusion=made)

    def contestants(self, fusion: str) -> dict[str, Callable[[], object]]:
        """The bare passes, ours and the straightforward version; each a whole run."""
        attack = self.attack(fusion)
        bare = Bare(self.models, self.visited(attack), self.y)

        def passes() -> None:
            for step in range(self.steps):
                BARE[fusion](bare, Draws(0, len(self.x)).at(step))

        return {
            "bare": passes,
            "ours": lambda: attack.run(self.models, self.x, self.y),
            "straightforward": lambda: straightforward(
                fusion, self.loose, self.x, self.y, EPS, self.steps
            ),
        }

    def visited(self, attack: ComposedAttack) -> list[list[Tensor]]:
        """What each surrogate is shown in a run."""
        seen: list[list[Tensor]] = [[] for _ in self.models]
        hooks = [
            model.register_forward_pre_hook(lambda _, args, at=at: at.append(args[0].detach().clone()))
            for model, at in zip(self.models, seen, strict=True)
        ]
        attack.run(self.models, self.x, self.y)
        for hook in hooks:
            hook.remove()
        return seen

    def line(self, fusion: str, rounds: int) -> dict[str, Any]:
        """Times and ratios. Who goes first changes from round to round; the first round is a warm-up."""
        contestants = self.contestants(fusion)
        seconds: dict[str, list[float]] = {who: [] for who in contestants}
        for turn in range(rounds + 1):
            names = list(contestants)
            for who in names[turn % 3 :] + names[: turn % 3]:
                taken = clock(contestants[who], "cpu")  # type: ignore[arg-type]
                if turn:
                    seconds[who].append(taken)
        best = {who: min(times) for who, times in seconds.items()}
        line: dict[str, Any] = {
            "fusion": fusion,
            "passes": list(self.attack(fusion).passes(len(self.models))),
            "seconds_per_image": best["ours"] / len(self.x),
            **{f"{who}_seconds": time for who, time in best.items()},
        }
        for a, b in (("ours", "bare"), ("straightforward", "ours")):
            line[f"{a}_over_{b}"] = best[a] / best[b]
            ratios = [x / y for x, y in zip(seconds[a], seconds[b], strict=True)]
            line[f"{a}_over_{b}_median"] = statistics.median(ratios)
        for who in ("ours", "straightforward"):
            line[f"{who}_peak_bytes"] = peak(self.contestants(fusion)[who])
        return line

    def largest(self) -> int:
        """Peak bytes of the same loop on the one surrogate that takes most."""
        attack = self.attack("ens-logits")
        runs = [partial(attack.run, model, self.x, self.y) for model in self.models]
        return max(peak(run) for run in runs)


def setting(case: str, quick: bool) -> Setting:
    """A case of `CASES`; a quick one has two images and one step."""
    sources, size, batch = CASES[case]
    models = [load_model(source) for source in sources]
    batch = 2 if quick else batch
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, 3, size, size), generator=generator)
    y = torch.randint(models[0].num_classes, (batch,), generator=generator)
    return Setting(models, x, y, steps=1 if quick else 2)


@click.command()
@click.option("--case", "cases", type=click.Choice(list(CASES)), multiple=True, help="One case; else all.")
@click.option("--rounds", default=3, show_default=True, help="Three times as many for small images.")
@click.option("--only", "fusions", type=click.Choice(list(BARE)), multiple=True, help="One fusion; else all.")
@click.option("--quick", is_flag=True, help="Two images, one step, one round.")
@click.option("--out", type=click.Path(path_type=Path))
def main(
    cases: tuple[str, ...], rounds: int, fusions: tuple[str, ...], quick: bool, out: Path | None
) -> None:
    """Time fusions."""
    about: dict[str, Any] = {
        "device": "cpu", "where": f"{torch.get_num_threads()} threads", "torch": torch.__version__,
        "commit": commit(), "packages": versions(), "cases": {},
    }  # fmt: skip
    for case in cases or CASES:
        here = setting(case, quick)
        largest = here.largest()
        lines: list[dict[str, Any]] = []
        about["cases"][case] = {
            "models": CASES[case][0], "images": len(here.x), "size": CASES[case][1], "steps": here.steps,
            "largest_surrogate_peak_bytes": largest, "lines": lines,
        }  # fmt: skip
        click.echo(f"{case}: {len(here.x)} images, {here.steps} steps; one surrogate takes at most "
                   f"{largest / 2**20:.1f} MiB")  # fmt: skip
        header = ("s/image", "F", "B", "ours/bare", "(median)", "plain/ours", "(median)", "MiB", "plain MiB")
        click.echo(f"{'fusion':<12}" + "".join(f"{word:>11}" for word in header))
        for fusion in fusions or BARE:
            line = here.line(fusion, 1 if quick else rounds * (3 if here.x.shape[-1] < 100 else 1))
            lines.append(line)
            ratios = [line[f"{pair}{end}"] for pair in ("ours_over_bare", "straightforward_over_ours")
                      for end in ("", "_median")]  # fmt: skip
            memory = [line[f"{who}_peak_bytes"] / 2**20 for who in ("ours", "straightforward")]
            click.echo(
                f"{fusion:<12}{line['seconds_per_image']:>11.4f}"
                + "".join(f"{count:>11}" for count in line["passes"])
                + "".join(f"{value:>11.3f}" for value in ratios)
                + "".join(f"{value:>11.1f}" for value in memory)
            )
    if out is not None:
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
