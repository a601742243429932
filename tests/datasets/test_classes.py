"""Which outputs of a model the classes of a data set are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from advens.classifier import Classifier
from advens.datasets import ArraySource, Dataset, load_data
from advens.datasets.classes import check_classes, imagenet
from advens.errors import InputError

WNIDS = ("n03888257", "n01440764", "n02979186")  # parachute, tench, cassette player


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of ImageNet, two images each."""
    draw = np.random.RandomState(0)
    for wnid in WNIDS:
        (tmp_path / "val" / wnid).mkdir(parents=True)
        for name in "ab":
            image = Image.fromarray(draw.randint(0, 256, (8, 8, 3), dtype=np.uint8))
            image.save(tmp_path / "val" / wnid / f"{name}.png")
    return tmp_path / "val"


def test_imagenet_subset_by_its_folders(folder: Path) -> None:
    """Labels are the places of the wnids among all 1,000, sorted."""
    plain, data = load_data(f"folder:{folder}"), load_data(f"folder:{folder}?classes=imagenet")
    assert plain.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.labels.tolist() == [0, 0, 482, 482, 701, 701]
    assert data.num_classes == 1000
    assert data.class_names is not None
    assert [data.class_names[label] for label in data.labels[::2]] == sorted(WNIDS)
    assert list(imagenet()) == sorted(imagenet()), "as ImageNet's folders are sorted"
    assert data.sample_ids == plain.sample_ids
    assert np.array_equal(data.pixels(3), plain.pixels(3))
    assert data.size == plain.size
    assert data.digest != plain.digest
    assert data.take(2).labels.max() <= 701
    assert load_data(f"folder:{folder}?classes=imagenet&limit=6&size=4").size == (4, 4)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_classes_of_a_file(folder: Path, tmp_path: Path, kind: str) -> None:
    outputs = {"n01440764": 7, "n02979186": 1, "n03888257": 7, "another": 11}
    text = "\n".join(f"{name}\t{index}" for name, index in outputs.items()) + "\n\n"
    file = tmp_path / "map"
    file.write_text(text if kind == "text" else json.dumps(outputs))
    data = load_data(f"folder:{folder}?classes={file}")
    assert data.labels.tolist() == [7, 7, 1, 1, 7, 7]
    assert data.num_classes == 12
    check_classes(data, 12)
    check_classes(data, 1000)
    with pytest.raises(InputError, match=r"label 7 in folder:.* is out of range; the models have 7 classes"):
        check_classes(data, 7)


def test_classes_without_names_go_by_number(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "images" / "a.png")
    (tmp_path / "labels.csv").write_text("filename,label,targeted_label\na.png,2,0\n")
    (tmp_path / "map").write_text("0 5\n1 6\n2 9\n")
    data = load_data(f"csv:{tmp_path}?classes={tmp_path / 'map'}")
    assert data.labels.tolist() == [9]
    assert data.target_labels is not None
    assert data.target_labels.tolist() == [5]
    check_classes(load_data(f"csv:{tmp_path}"), 1000)  # numbers of a csv file are a model's


@pytest.mark.parametrize(
    ("text", "said"),
    [("n01440764 1\n", "class 'n02979186' is not among '"), ("", "names no class"), ("{}", "names no class"),
     ("n01440764\n", "line 1 must be NAME INDEX, not 'n01440764'"), ("a 1\nb x\n", "line 2 must be NAME"),
     ("a 1\na 2\n", "names a class twice"),
     ('{"a": -1}', "index of 'a' must be a whole number from 0, not -1"),
     ('{"a": "0"}', "must be a whole number from 0, not '0'"), ('{"a": true}', "from 0, not True"),
     ("{", "Expecting property name"), (b"\xff\xfe\x00", "can't decode byte")],
)  # fmt: skip
def test_files_that_map_nothing(folder: Path, tmp_path: Path, text: str | bytes, said: str) -> None:
    (tmp_path / "map").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        load_data(f"folder:{folder}?classes={tmp_path / 'map'}")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_that_are_nowhere(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("a 1")
    with pytest.raises(InputError, match=r"is neither a file nor 'imagenet'; did you mean 'classes.txt'"):
        load_data(f"folder:{folder}?classes={tmp_path}/clases.txt")
    (folder / "n03888257").rename(folder / "n03888258")
    with pytest.raises(InputError, match=r"class 'n03888258' is not among the classes of ImageNet; did you"):
        load_data(f"folder:{folder}?classes=imagenet")


def test_fewer_classes_than_the_models_have_need_a_mapping(folder: Path) -> None:
    data = load_data(f"folder:{folder}?limit=4")
    with pytest.raises(InputError) as caught:
        check_classes(data, 1000)
    assert str(caught.value) == (
        f"folder:{folder}?limit=4 has 3 classes (n01440764, n02979186, ...) and the models have 1,000: say "
        f"which outputs they are with &classes=FILE (a line 'NAME INDEX' for each), or &classes=imagenet "
        f"for WordNet ids"
    )
    with pytest.raises(InputError, match=r"has 3 classes .* and the models have 12"):
        check_classes(load_data(f"folder:{folder}"), 12)
    check_classes(data, 3)
    check_classes(load_data(f"folder:{folder}?classes=imagenet"), 1000)


def test_names_without_images_count(folder: Path) -> None:
    """Two of three classes drawn are still data of three classes."""
    images, labels = np.zeros((2, 3, 4, 4), np.uint8), np.array([0, 1])
    source = ArraySource(images, labels, ("a", "b"), 3, ("x", "y", "z"))
    with pytest.raises(InputError, match=r"has 3 classes"):
        check_classes(Dataset(source, "toy"), 2)


def test_builders_need_a_mapping_too(folder: Path) -> None:
    from advens.attacks.surrogates.builders.build import check

    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 1000))
    model = Classifier(net, name="m", num_classes=1000)
    check([model], load_data(f"folder:{folder}?classes=imagenet"))
    with pytest.raises(InputError, match=r"has 3 classes .* and the models have 1,000: say which outputs"):
        check([model], load_data(f"folder:{folder}"))
