"""What stored adversarial images take, as differences and whole, and what reading them costs.

    python -m advens.benchmarks.speed.storing [--model timm:resnet18.a1_in1k] [--out FILE.json]

Photographs are crops of those that come with scikit-learn, 224 pixels wide. Without a model, which would have
to be downloaded, they are attacked through a ResNet-18 and a small vision transformer with random weights.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import timm
import torch
from sklearn.datasets import load_sample_images

import advens
from advens.benchmarks.environment import commit, versions
from advens.classifier import Classifier
from advens.models import find_model
from advens.results.store import read_table, schema, write_table
from advens.results.store.images import Pixels, image_columns, whole_images

ATTACKS = ("mifgsm", "di-ti-mi-ens-logits", "pgd")
UNTRAINED = ("resnet18", "vit_tiny_patch16_224")
SIDE, REPEATS = 224, 5


def photographs(count: int) -> Pixels:
    """Crops (N, 3, 224, 224) of two photographs in turn."""
    photos, draw = load_sample_images().images, np.random.default_rng(0)
    found = []
    for k in range(count):
        photo = photos[k % len(photos)]
        y, x = (int(draw.integers(0, side - SIDE)) for side in photo.shape[:2])
        found.append(photo[y : y + SIDE, x : x + SIDE].transpose(2, 0, 1))
    return np.stack(found)


def untrained(name: str) -> Classifier:
    """A network of timm's with random weights that are the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Classifier(timm.create_model(name).eval(), name=name, num_classes=1000)


def digits(count: int) -> Pixels:
    """The first test images (N, 3, 32, 32)."""
    data = advens.load_data("digits:test")
    return np.stack([data.pixels(row) for row in range(count)])


def stored(adversarial: Pixels, clean: Pixels | None, path: Path) -> None:
    """Write images as a cell's, whole or as differences from the clean ones."""
    count = len(adversarial)
    rows = {
        "cell": ["c"] * count, "sample_id": [f"{k}" for k in range(count)], "label": [0] * count,
        "target_label": [None] * count, **{norm: [0.0] * count for norm in ("linf", "l2", "l1")},
    }  # fmt: skip
    write_table(path, schema.to_table("examples", rows | image_columns(adversarial, clean)))


def seconds(path: Path, clean: Pixels) -> float:
    """CPU seconds to read the images of a file, of several times the fastest."""
    found = []
    for _ in range(REPEATS):
        started = time.process_time()
        whole_images(read_table(path, "examples"), lambda: clean)
        found.append(time.process_time() - started)
    return min(found)


def lines(
    what: str, model: Classifier, clean: Pixels, eps: str, folder: Path, attacks: Sequence[str] = ATTACKS
) -> Iterator[dict[str, Any]]:
    """Kilobytes and milliseconds an image, a line for every attack."""
    x, count = torch.from_numpy(clean).float() / 255, len(clean)
    with torch.inference_mode():
        y = model(x).argmax(1)
    for name in attacks:
        attack: Any = advens.create_attack(name, eps=eps)
        images = attack.threat.quantise(attack(model, x, y.clone()), x).numpy()
        line: dict[str, Any] = {"data": what, "attack": name, "bytes": clean[0].nbytes}
        for form, given in (("images", None), ("differences", clean)):
            path = folder / f"{form}.parquet"
            stored(images, given, path)
            line[form] = path.stat().st_size / count
            line[f"ms_{form}"] = 1000 * seconds(path, clean) / count
        yield line


@click.command()
@click.option("--model", "names", multiple=True, help="Models to attack photographs through.")
@click.option("--images", default=16, show_default=True, help="Photographs.")
@click.option("--eps", default="8/255", show_default=True, help="Of photographs; digits have 0.2.")
@click.option("--out", type=click.Path(path_type=Path))
def main(names: tuple[str, ...], images: int, eps: str, out: Path | None) -> None:
    """Measure bytes and time to read."""
    models = [find_model(name) for name in names] or [untrained(name) for name in UNTRAINED]
    given = [(f"photographs, {model.name}", model, photographs(images), eps) for model in models]
    given.append(("digits, digits:resnet", find_model("digits:resnet"), digits(250), "0.2"))
    click.echo(f"{'':<36}{'attack':<22}{'kB':>7}{'whole':>8}{'differences':>13}{'read, ms':>10}{'':>8}")
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for what, model, clean, radius in given:
            for line in lines(what, model, clean, radius, Path(folder)):
                found.append(line)
                kilobytes = (line[key] / 1000 for key in ("bytes", "images", "differences"))
                click.echo(
                    f"{what:<36}{line['attack']:<22}" + "{:>7.1f}{:>8.1f}{:>13.1f}".format(*kilobytes)
                    + f"{line['ms_images']:>10.2f}{line['ms_differences']:>8.2f}"
                )
    if out is not None:
        about = {"eps": eps, "commit": commit(), "packages": versions(), "lines": found}
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
