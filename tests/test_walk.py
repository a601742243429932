"""A first hour with what is one's own: a checkpoint of timm's, a folder of images, the NIPS 2017 layout."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import tomli_w
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from advens.cli import invoke
from advens.results.store import RunStore

ARCH = "test_byobnet.r160_in1k"
"""The smallest network of timm's; the weights' name says how images are prepared."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder, and one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    torch.set_num_threads(threads)


def checkpoint(name: str, seed: int, classes: int) -> str:
    """Weights as a training leaves them, and the name of the model."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        state = timm.create_model(ARCH, pretrained=False, num_classes=classes).state_dict()
    if name.endswith("safetensors"):
        save_file(state, name)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, name)
    return f"timm:{ARCH}?checkpoint={name}&num_classes={classes}&size=32"


def crops(count: int, size: int) -> list[Image.Image]:
    """Pieces of two photographs in turn."""
    photos, draw = load_sample_images().images, np.random.default_rng(0)
    found = []
    for k in range(count):
        photo = photos[k % 2]
        y, x = (int(draw.integers(0, side - size)) for side in photo.shape[:2])
        found.append(Image.fromarray(photo[y : y + size, x : x + size]))
    return found


def run(data: str, surrogate: str, targets: list[str], **threat: object) -> RunStore:
    suite = {
        "name": "mine", "data": data, "targets": targets, "threat": {"eps": "16/255", "steps": 1} | threat,
        "surrogates": {"own": [surrogate]}, "attacks": [{"name": "mifgsm"}],
    }  # fmt: skip
    Path("mine.toml").write_text(tomli_w.dumps(suite))
    assert invoke(["run", "mine.toml"]) == 0
    return RunStore(Path("runs/mine"))


def test_an_own_checkpoint_on_a_folder_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    for k, image in enumerate(crops(8, 100)):
        folder = Path("photos", "val", ("temple", "flower")[k % 2])
        folder.mkdir(parents=True, exist_ok=True)
        image.resize((100 + k, 90)).save(folder / f"{k}.{('jpg', 'PNG')[k // 4]}")
    surrogate, target = checkpoint("a.pth", 0, 2), checkpoint("b.safetensors", 1, 2)
    run("folder:photos/val?size=32", surrogate, [surrogate, target])
    out = capsys.readouterr().out
    assert "1 cells crafted, 2 evaluations" in out
    assert "white-box" in out
    assert invoke(["verify", "runs/mine"]) == 0
    assert "1 cells and 16 predictions checked" in capsys.readouterr().out


def test_an_own_checkpoint_on_the_layout_of_nips_2017(capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("nips2017", "images")
    folder.mkdir(parents=True)
    with Path("nips2017", "images.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ImageId", "URL", "x1", "y1", "x2", "y2", "TrueLabel", "TargetClass", "License"])
        for k, image in enumerate(crops(4, 299)):
            image.save(folder / f"{k:016x}.png")
            table.writerow([f"{k:016x}", "https://a.b/c,d", 0, 0, 1, 1, 1 + k % 1000, 1000 - k, "CC BY"])
    assert invoke(["data", "csv:nips2017", "--check"]) == 0
    assert "all 4 images can be decoded" in capsys.readouterr().out
    name = checkpoint("a.pth", 0, 1000)
    store = run("csv:nips2017?size=32", name, [checkpoint("b.pth", 1, 1000)], targeted=True)
    assert invoke(["evaluate", "runs/mine", "--targets", name]) == 0
    assert invoke(["verify", "runs/mine"]) == 0
    assert "predictions checked" in capsys.readouterr().out
    assert len(store.cells()) == 1
