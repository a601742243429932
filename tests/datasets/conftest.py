"""Small data of every layout, with known pixels."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def noise_image(seed: int, height: int = 12, width: int = 12) -> Pixels:
    """An image of noise, (3, H, W)."""
    return np.random.RandomState(seed).randint(0, 256, (3, height, width)).astype(np.uint8)


def save_image(pixels: Pixels, path: Path) -> None:
    """Write an image (3, H, W) without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(path)


@pytest.fixture
def noise() -> Callable[..., Pixels]:
    """``noise(seed, height=12, width=12)``."""
    return noise_image


@pytest.fixture
def save() -> Callable[[Pixels, Path], None]:
    """``save(pixels, path)``."""
    return save_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Classes cat (3 images, one deeper) and dog (2); image k in sorted order is noise(k)."""
    root = tmp_path / "pets"
    for k, name in enumerate(["cat/a.png", "cat/b.png", "cat/sub/c.png", "dog/x.png", "dog/y.PNG"]):
        save_image(noise_image(k), root / name)
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    return root


@pytest.fixture
def make_csv(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes labels.csv with the given rows; its images exist, noise(k)."""

    def make(columns: Sequence[str], rows: Sequence[Sequence[object]], images: int = 3) -> Path:
        root = tmp_path / "nips"
        for k in range(images):
            save_image(noise_image(k), root / "images" / f"{k}.png")
        with (root / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(rows)
        return root

    return make
