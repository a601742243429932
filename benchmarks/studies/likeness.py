"""How alike are models that were trained apart, and how alike is a copy? Where `NEAR` was put, and why.

    python -m advens.benchmarks.studies.likeness [--out runs/likeness]

All pairs of the embedded zoo are compared on the test images of their data. To these come some of its
recipes, trained with another seed; this takes about ten minutes, and the weights are kept in the
folder. Beside them stand copies of one model that were changed a little, and surrogates built from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from advens.attacks.expectation import log_expected
from advens.benchmarks.likeness import NEAR, likeness, residuals
from advens.benchmarks.predictions import members_of
from advens.cli import script

BASE = "digits:resnet"
AGAIN = ("resnet", "convnext", "vit", "resnet-at", "shapes-resnet")
"""Recipes that are trained with another seed."""
SEED = 7
BUILT = {
    f"trained further by SGD, one epoch at {lr:g}": {"name": "lgv", "epochs": 1, "per_epoch": 1, "lr": lr}
    for lr in (0.001, 0.01, 0.05)
} | {"members of LGV": {"name": "lgv", "epochs": 2}}  # fmt: skip
FEW, DRAWS = 50, 200
"""Images of a draw, and draws, of the columns about few images."""


@dataclass(frozen=True)
class Pair:
    """Two models' logits (N, classes), and what they are to each other."""

    what: str
    names: tuple[str, str]
    logits: tuple[np.ndarray, np.ndarray]
    labels: np.ndarray

    def alike(self, rows: np.ndarray | None = None) -> float:
        """Their likeness on these images; on all by default."""
        chosen = slice(None) if rows is None else rows
        labels = self.labels[chosen]
        return likeness(*(residuals(each[chosen], labels) for each in self.logits))

    def few(self) -> list[float]:
        """Their likeness on each of some draws of a few images."""
        random = np.random.RandomState(0)
        return [
            self.alike(random.permutation(len(self.labels))[:FEW])
            for _ in range(DRAWS)
        ]


@dataclass(frozen=True)
class Known:
    """A model of the zoo, or one that was trained by its recipe with another seed.

    Args:
        name: of the model.
        design: its architecture and training, but for the seed.
        adversarial: whether it was trained adversarially.
        logits: (N, classes).
    """

    name: str
    design: str
    adversarial: bool
    logits: np.ndarray


def images(scheme: str) -> tuple[Tensor, np.ndarray]:
    """The test images (N, 3, H, W) in [0, 1] and labels of a scheme of the zoo."""
    from advens import load_data
    from advens.zoo.recipes import TESTS

    data = load_data(TESTS[scheme])
    batch = next(data.batches([slice(0, len(data))]))
    return batch.pixels.float() / 255, batch.labels.numpy()


@torch.inference_mode()
def answered(model: nn.Module, x: Tensor) -> np.ndarray:
    """Logits (N, classes) in float64; of a randomized ensemble the logarithm of expected probabilities."""
    drawn = members_of(model)
    each = torch.stack([torch.cat([part.model(some) for some in x.split(250)]) for part in drawn])
    shares = torch.tensor([part.probability for part in drawn])
    out = each[0] if len(drawn) == 1 else log_expected(each, shares)
    return out.double().numpy()


def zoo(scheme: str, x: Tensor, out: Path) -> Iterator[Known]:
    """The models of a scheme, and those that are trained again."""
    from advens import list_models, load_model
    from advens.zoo.recipes import ENSEMBLES, RECIPES
    from advens.zoo.recipes import scheme as scheme_of
    from advens.zoo.training import normalise

    for name in list_models(f"{scheme}:*"):
        short = name.removeprefix(f"{scheme}:")
        recipe = ENSEMBLES.get(short) or RECIPES.get(f"{scheme}-{short}") or RECIPES[short]
        yield Known(name, design(recipe), recipe.adversarial, answered(load_model(name), x))
    for name in AGAIN:
        if scheme_of(name) == scheme:
            logits = answered(trained(name, out), normalise(x))
            title = f"{scheme}:{name.removeprefix('shapes-')} with seed {SEED}"
            yield Known(title, design(RECIPES[name]), RECIPES[name].adversarial, logits)


def design(recipe: Any) -> str:
    """All of a recipe but its name and seed."""
    return repr({**asdict(recipe), "name": "", "seed": 0})


def trained(name: str, out: Path) -> nn.Module:
    """A network of a recipe with another seed, from the folder or trained now."""
    from advens import load_data
    from advens.zoo.recipes import RECIPES, TRAINING, build, scheme
    from advens.zoo.training import train

    recipe, path = replace(RECIPES[name], seed=SEED), out / f"{name}-{SEED}.pt"
    if path.is_file():
        net = build(recipe)
        net.load_state_dict(torch.load(path, weights_only=True))
        return net.eval()
    data = load_data(TRAINING[scheme(name)])
    batch = next(data.batches([slice(0, len(data))]))
    net = train(recipe, batch.pixels.numpy(), batch.labels.numpy())
    out.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), path)
    return net


def apart(out: Path) -> Iterator[Pair]:
    """All pairs of models that were trained apart."""
    for scheme in ("digits", "shapes"):
        x, y = images(scheme)
        for one, other in combinations(zoo(scheme, x, out), 2):
            how = "the same but for the seed" if one.design == other.design else "different"
            robust = ", adversarially trained" if one.adversarial and other.adversarial else ""
            what = f"`{scheme}`: {how}{robust}"
            yield Pair(what, (one.name, other.name), (one.logits, other.logits), y)


def copies(out: Path) -> Iterator[Pair]:
    """Copies of one model, and what is built from it, each with the model."""
    from advens import load_data, load_model
    from advens.attacks.parts import from_spec

    x, y = images("digits")
    base = load_model(BASE)
    said = answered(base, x)
    soft = np.exp(said - said.max(axis=1, keepdims=True)).astype(np.float32)
    found: dict[str, np.ndarray] = {
        "in a wrapper": answered(nn.Sequential(deepcopy(base)), x),
        "logits x 1e-5": (said.astype(np.float32) * np.float32(1e-5)).astype(np.float64),
        "probabilities in place of logits": soft / soft.sum(axis=1, keepdims=True),
        "one weight moved by 1e-4": answered(changed(base, one_weight), x),
    }
    for bits in (8, 5, 4):
        found[f"weights rounded to {bits} bits"] = answered(changed(base, rounded(bits)), x)
    for share in (0.01, 0.03, 0.1, 0.2):
        found[f"noise of {100 * share:.0f} % on each weight"] = answered(changed(base, noisy(share)), x)
    found["the smallest 30 % of weights pruned"] = answered(changed(base, pruned(0.3)), x)
    for name, logits in found.items():
        yield Pair(f"copy: {name}", (BASE, name), (said, logits), y)
    data = load_data("digits:train")
    for name, spec in BUILT.items():
        for member in from_spec("builder", spec).build([base], data, cache=out / "built"):
            yield Pair(f"built: {name}", (BASE, member.name), (said, answered(member, x)), y)


def changed(model: nn.Module, change: Callable[[Tensor], object]) -> nn.Module:
    """A copy of a model whose matrices and kernels are changed in place."""
    copy = deepcopy(model)
    with torch.no_grad():
        for weight in copy.parameters():
            if weight.dim() > 1:
                change(weight)
    return copy


def one_weight(weight: Tensor) -> None:
    """Move the first weight."""
    weight.view(-1)[0] += 1e-4


def rounded(bits: int) -> Callable[[Tensor], object]:
    """Round weights to so many bits of the largest."""

    def change(weight: Tensor) -> None:
        step = weight.abs().max() / (2 ** (bits - 1) - 1)
        weight.copy_((weight / step).round() * step)

    return change


def noisy(share: float) -> Callable[[Tensor], object]:
    """Add normal noise of so much of the standard deviation of the weights."""
    draw = torch.Generator().manual_seed(0)
    return lambda weight: weight.add_(
        share * weight.std() * torch.randn(weight.shape, generator=draw)
    )


def pruned(share: float) -> Callable[[Tensor], object]:
    """Set the smallest weights to zero."""
    return lambda weight: weight.mul_(weight.abs() > weight.abs().flatten().quantile(share))


def markdown(pairs: list[Pair]) -> str:
    """The table, and what lies on both sides of the threshold."""
    kinds = {pair.what: [p for p in pairs if p.what == pair.what] for pair in pairs}
    lines = [
        f"| models | pairs | median | extreme | on {FEW} images |",
        "|---|---|---|---|---|",
    ]
    for what, group in kinds.items():
        values = [pair.alike() for pair in group]
        copy = not what.startswith("`")
        extreme = min if copy else max
        end = group[values.index(extreme(values))]
        numbers = (np.median(values), extreme(values), extreme(end.few()))
        lines.append(f"| {what} | {len(group)} | " + " | ".join(f"{v:.3f}" for v in numbers) + " |")
    between = [(pair.alike(), pair.names) for pair in pairs if pair.what.startswith("`")]
    most, names = max(between)
    return "\n".join(lines) + (
        "\n\nextreme: of models that were trained apart the highest likeness, of copies and built surrogates "
        f"the lowest, on all test images; then the same of {DRAWS} draws of {FEW} images, for that pair. "
        f"Of the {len(between)} pairs that were trained apart, {names[0]} and {names[1]} are the most alike "
        f"({most:.3f}). Near-duplicates are pairs above {NEAR} by three standard errors.\n"
    )


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/likeness"), show_default=True)
def main(out: Path) -> None:
    """Print the likeness of models that were trained apart, and of copies."""
    click.echo(markdown([*apart(out), *copies(out)]), nl=False)


if __name__ == "__main__":
    script(main)
