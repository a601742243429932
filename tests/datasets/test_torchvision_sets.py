"""``torchvision:``: the sets that torchvision reads, and map-style data in general."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from advens.datasets import Dataset, load_data, map_style
from advens.errors import InputError


@pytest.fixture
def mnist(tmp_path: Path, noise: Callable[..., Any]) -> Path:
    """A root with an MNIST of 6 training and 3 test images: image k is noise(k), label 9 - k."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 3)):
        pixels = b"".join(noise(k, 28, 28)[0].tobytes() for k in range(count))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, count, 28, 28) + pixels
        )
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            struct.pack(">II", 0x801, count) + bytes(9 - k for k in range(count))
        )
    return tmp_path


def test_mnist(mnist: Path, noise: Callable[..., Any]) -> None:
    train = load_data(f"torchvision:MNIST?root={mnist}")
    test = load_data(f"torchvision:MNIST?root={mnist}&train=false")
    assert (len(train), len(test)) == (6, 3)
    assert test.labels.tolist() == [9, 8, 7]
    assert test.num_classes == 10
    assert test.class_names is not None
    assert test.class_names[3] == "3 - three"
    assert test.sample_ids[2] == "MNIST-test-000002"
    assert np.array_equal(test.pixels(1), np.repeat(noise(1, 28, 28)[:1], 3, 0))
    assert load_data(f"torchvision:MNIST?root={mnist}&train=false&size=32").size == (32, 32)


def test_mnist_fingerprint_follows_one_pixel(mnist: Path) -> None:
    spec = f"torchvision:MNIST?root={mnist}&train=false"
    before = load_data(spec)
    assert load_data(spec).digest == before.digest
    file = mnist / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    content = bytearray(file.read_bytes())
    content[16 + 5] ^= 1
    file.write_bytes(content)
    after = load_data(spec)
    assert after.fingerprint([0]) != before.fingerprint([0])
    assert after.fingerprint([1, 2]) == before.fingerprint([1, 2])


def test_sets_of_files_have_fingerprints_without_decoding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".cache").rmdir()
    data = load_data(f"torchvision:ImageFolder?root={folder}")
    assert data.class_names == ("cat", "dog")
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert np.array_equal(data.pixels(3), load_data(f"folder:{folder}").pixels(3))
    monkeypatch.setattr(map_style.MapStyleSource, "pixels", lambda *_: pytest.fail("decoded"))
    before = data.digest
    with (folder / "cat" / "a.png").open("ab") as file:
        file.write(b"x")
    assert load_data(f"torchvision:ImageFolder?root={folder}").digest != before


def test_nothing_is_downloaded_unasked(mnist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.SEMEION, "download", lambda _: pytest.fail("downloaded"))
    # SEMEION would download by default
    with pytest.raises(InputError, match="add &download=true"):
        load_data(f"torchvision:SEMEION?root={mnist}")
    asked = []
    monkeypatch.setattr(datasets.MNIST, "download", lambda _: asked.append(1))
    load_data(f"torchvision:MNIST?root={mnist}&download=true")
    load_data(f"torchvision:MNIST?root={mnist}&download=false")
    assert asked == [1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "torchvision:CIFAR1O?root=ROOT",
            "unknown torchvision data set 'CIFAR1O'; did you mean 'CIFAR10",
        ),
        ("torchvision:FakeData?root=ROOT", "unknown torchvision data set"),
        ("torchvision:CIFAR10", r"add \?root=PATH"),
        ("torchvision:CIFAR10?root=ROOT/none", "root '.*none' does not exist"),
        ("torchvision:CIFAR10?root=ROOT", "nothing usable in .*not found.*add &download=true"),
        ("torchvision:CIFAR10?root=ROOT&split=test", "unknown option 'split'"),
        ("torchvision:MNIST?root=ROOT&trian=false", "unknown option 'trian'; did you mean 'train'"),
        ("torchvision:MNIST?root=ROOT&train=no", "train = 'no' must be true or false"),
        ("torchvision:SVHN?root=ROOT&split=val", "nothing usable .*split"),
        ("torchvision:EMNIST?root=ROOT&split=letters&train=true", "nothing usable"),
    ],
)
def test_errors(mnist: Path, spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_data(spec.replace("ROOT", str(mnist)))
    assert "\n" not in str(caught.value)


class Pairs(list):  # type: ignore[type-arg]
    """A map-style data set."""


def test_map_style_images_of_every_kind(noise: Callable[..., Any]) -> None:
    pixels = noise(1)
    floats = torch.from_numpy(pixels).float() / 255
    kinds = [pixels, torch.from_numpy(pixels), floats, pixels.transpose(1, 2, 0)]
    data = Dataset(map_style.wrap(Pairs((kind, i) for i, kind in enumerate(kinds)), "x"), "x")
    assert data.labels.tolist() == [0, 1, 2, 3]
    for i in range(4):
        assert np.array_equal(data.pixels(i), pixels)
    grey = Dataset(map_style.wrap(Pairs([(pixels[0], 0)]), "x"), "x")
    assert np.array_equal(grey.pixels(0), np.repeat(pixels[:1], 3, 0))


def test_label_attributes_are_trusted_only_where_they_agree(noise: Callable[..., Any]) -> None:
    data = Pairs((noise(k), k) for k in range(4))
    data.targets = [3, 2, 1, 0]  # type: ignore[attr-defined]
    assert map_style.wrap(data, "x").labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no images"),
        ([np.zeros((3, 4, 4), np.uint8)], "no \\(image, label\\) pairs"),
        ([(np.zeros((3, 4, 4), np.uint8), "cat")], "targets of type str"),
        ([(np.zeros((3, 4, 4), np.uint8), -1)], "label -1"),
    ],
)
def test_map_style_errors(rows: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        map_style.wrap(Pairs(rows), "x")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((3, 4, 4), 1.5), r"values from 1\.5 to 1\.5"),
        (np.full((3, 4, 4), np.nan), "values from nan"),
        (np.zeros((3, 4, 4), np.int64), "type int64"),
        (np.zeros((2, 4, 4), np.uint8), r"shape \(2, 4, 4\)"),
    ],
)
def test_map_style_images_that_are_none(image: Any, message: str) -> None:
    data = Dataset(map_style.wrap(Pairs([(image, 0)]), "x"), "x")
    with pytest.raises(InputError, match=message):
        data.pixels(0)
