"""Ensembles of the embedded zoo: a saved ensemble is measured, and copied beside the networks.

The command in `advens.zoo.recipes.ENSEMBLES` trains it. Then, in the repository,

    python -m advens.defenses.adopt dverge3 FOLDER advens/zoo/weights
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn

from advens.attacks.expectation import expectations
from advens.classifier import Classifier, accuracy
from advens.datasets import load_data
from advens.defenses.saved import load
from advens.digest import file_digest
from advens.errors import InputError, unknown
from advens.zoo.recipes import ENSEMBLES, MEAN, RECIPES, STD, TESTS
from advens.zoo.training import CHUNK, pgd

EPS, STEPS = 0.2, 20
"""Of the PGD that measures the robust accuracy, as for the networks."""


def pgd_accuracy(model: Classifier, x: Tensor, y: Tensor) -> float:
    """Accuracy after PGD on the cross-entropy of the model, of its expected probabilities where it draws."""
    draw, total, seen = torch.Generator().manual_seed(0), 0.0, Normalised(model)
    for images, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True):
        x_adv = pgd(seen, images, labels, eps=EPS, steps=STEPS, step_size=2.5 * EPS / STEPS, draw=draw)
        total += accuracy(model, x_adv, labels) * len(labels)
    return total / len(y)


class Normalised(nn.Module):
    """A model that takes normalised images, as the zoo's networks do; a randomized one as its expectation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        (self.model,) = expectations([model])

    def forward(self, z: Tensor) -> Tensor:
        mean, std = (z.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        out: Tensor = self.model(z * std + mean)
        return out


def adopt(name: str, folder: Path, directory: Path) -> dict[str, Any]:
    """Copy a saved ensemble to ``DIRECTORY/NAME`` and write its entry into the index there.

    Returns:
        The entry.

    Raises:
        InputError: no such ensemble in the zoo, or none in the folder.
    """
    if name not in ENSEMBLES:
        raise unknown("embedded ensemble", name, ENSEMBLES)
    model = load(folder)
    about, how = (json.loads((folder / f"{part}.json").read_text()) for part in ("ensemble", "training"))
    arches = {card["name"].partition(":")[2] for card in about["members"]}
    if not arches <= set(RECIPES):
        raise InputError(f"{folder}: the members are not of the zoo's architectures")
    data = load_data(TESTS["digits"])
    batch = next(data.batches([slice(0, len(data))]))
    x, y = batch.pixels.float() / 255, batch.labels
    entry = {
        "arch": f"{how['defense']} of {len(about['members'])} {RECIPES[arches.pop()].arch}",
        "family": model.family,
        "adversarial": ENSEMBLES[name].adversarial,
        "seed": how["seed"],
        "epochs": how["training"]["epochs"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "sha256": file_digest(folder / "ensemble.json"),
        "digest": model.digest,
        "clean_accuracy": accuracy(model, x, y),
        "robust_accuracy": pgd_accuracy(model, x, y),
        "ensemble": about["kind"],
        "command": ENSEMBLES[name].command,
    }
    shutil.rmtree(directory / name, ignore_errors=True)
    history = shutil.ignore_patterns("history.parquet")
    shutil.copytree(folder, directory / name, ignore=history, copy_function=shutil.copyfile)
    path = directory / "index.json"
    index = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(dict(sorted((index | {name: entry}).items())), indent=2) + "\n")
    return entry


@click.command()
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("directory", type=click.Path(path_type=Path))
def main(name: str, folder: Path, directory: Path) -> None:
    """Measure the ensemble saved in FOLDER and copy it into the zoo in DIRECTORY."""
    entry = adopt(name, folder, directory)
    click.echo(f"{name}: clean {entry['clean_accuracy']:.1%}, robust {entry['robust_accuracy']:.1%}")


if __name__ == "__main__":
    main()
