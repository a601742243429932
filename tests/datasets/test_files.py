"""``folder:`` and ``csv:``: images that are files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from advens.datasets import load_data
from advens.errors import InputError


def test_folder_lists_classes_and_files_in_sorted_order(folder: Path, noise: Any) -> None:
    data = load_data(f"folder:{folder}")
    assert data.class_names == ("cat", "dog")
    assert data.num_classes == 2
    assert data.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.labels.dtype == np.int64
    assert list(data.sample_ids) == [
        "cat/a.png",
        "cat/b.png",
        "cat/sub/c.png",
        "dog/x.png",
        "dog/y.PNG",
    ]
    assert data.size == (12, 12)
    for k in range(5):
        assert np.array_equal(data.pixels(k), noise(k))


def test_folder_path_may_be_relative(
    folder: Path, monkeypatch: pytest.MonkeyPatch, noise: Any
) -> None:
    monkeypatch.chdir(folder.parent)
    relative, absolute = load_data("folder:pets"), load_data(f"folder:{folder}")
    assert relative.digest == absolute.digest
    assert np.array_equal(relative.pixels(0), noise(0))


def test_folder_fingerprint_follows_one_pixel(folder: Path, noise: Any, save: Any) -> None:
    before = load_data(f"folder:{folder}")
    first, rest = before.fingerprint([0]), before.fingerprint([1, 2, 3, 4])
    assert load_data(f"folder:{folder}").fingerprint([0]) == first
    changed = noise(0)
    changed[1, 3, 3] ^= 1
    save(changed, folder / "cat" / "a.png")
    after = load_data(f"folder:{folder}")
    assert after.fingerprint([0]) != first
    assert after.fingerprint([1, 2, 3, 4]) == rest


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_colour_modes_become_rgb(tmp_path: Path, mode: str, noise: Any, save: Any) -> None:
    base = Image.fromarray(noise(1).transpose(1, 2, 0))
    image = base.convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(noise(2)[0]))
    suffix = "tif" if mode == "CMYK" else "png"
    (tmp_path / "c").mkdir()
    image.save(tmp_path / "c" / f"i.{suffix}")
    pixels = load_data(f"folder:{tmp_path}").pixels(0)
    expected = base.convert("L") if mode in ("L", "LA") else image.convert("RGB")
    grey_or_colour = np.asarray(expected)
    if grey_or_colour.ndim == 2:
        grey_or_colour = np.repeat(grey_or_colour[..., None], 3, 2)
    if mode == "RGBA":  # alpha is dropped, not blended
        grey_or_colour = noise(1).transpose(1, 2, 0)
    assert np.array_equal(pixels, grey_or_colour.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", range(10))
def test_orientation_tags_are_honoured(orientation: int, tmp_path: Path, noise: Any) -> None:
    """As Pillow's own function turns them; 0 and 9 mean nothing."""
    (tmp_path / "c").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(noise(0, 8, 16).transpose(1, 2, 0))
    image.save(tmp_path / "c" / "i.png", exif=exif)
    with Image.open(tmp_path / "c" / "i.png") as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened))
    data = load_data(f"folder:{tmp_path}")
    assert data.size == upright.shape[:2]
    assert np.array_equal(data.pixels(0), upright.transpose(2, 0, 1))


def test_damaged_tags_are_passed_over(tmp_path: Path, noise: Any) -> None:
    (tmp_path / "c").mkdir()
    image = Image.fromarray(noise(0, 8, 16).transpose(1, 2, 0))
    image.save(tmp_path / "c" / "i.png", exif=b"Exif\0\0MM\0*nonsense")
    assert np.array_equal(load_data(f"folder:{tmp_path}").pixels(0), noise(0, 8, 16))


def test_mixed_sizes_are_refused_up_front_unless_a_size_is_given(
    folder: Path, noise: Any, save: Any
) -> None:
    save(noise(9, 10, 14), folder / "dog" / "x.png")
    with pytest.raises(InputError) as caught:
        load_data(f"folder:{folder}")
    message = str(caught.value)
    assert "'cat/a.png' is 12x12, 'dog/x.png' is 10x14" in message
    assert "?size=224" in message
    assert load_data(f"folder:{folder}?size=8").pixels(3).shape == (3, 8, 8)
    with pytest.raises(InputError, match="add &size=224"):
        load_data(f"folder:{folder}?limit=5")


def test_undecodable_images_are_named(folder: Path) -> None:
    (folder / "cat" / "b.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"b\.png' is not an image"):
        load_data(f"folder:{folder}")
    data = load_data(f"folder:{folder}?size=12")
    with pytest.raises(InputError, match=r"b\.png' is not an image"):
        data.pixels(1)


def test_truncated_and_wide_images_are_named(folder: Path, save: Any) -> None:
    whole = (folder / "cat" / "a.png").read_bytes()
    (folder / "cat" / "a.png").write_bytes(whole[: len(whole) // 2])
    wide = np.arange(144, dtype=np.uint16).reshape(12, 12) * 400
    Image.fromarray(wide).save(folder / "cat" / "b.png")
    data = load_data(f"folder:{folder}")
    with pytest.raises(InputError, match=r"a\.png' cannot be decoded"):
        data.pixels(0)
    with pytest.raises(InputError, match=r"b\.png' has more than 8 bits"):
        data.pixels(1)
    (folder / "dog" / "x.png").unlink()
    with pytest.raises(InputError, match=r"x\.png' does not exist"):
        data.pixels(3)
    with pytest.raises(InputError, match=r"cannot read .*x\.png"):
        data.fingerprint([3])


def test_folder_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'.*/pet' does not exist; did you mean 'pets'"):
        load_data(f"folder:{tmp_path}/pet")
    with pytest.raises(InputError, match="is a file"):
        load_data(f"folder:{folder}/cat/a.png")
    (folder / "bird").mkdir()
    with pytest.raises(InputError, match=r"class folder '.*bird' holds no images"):
        load_data(f"folder:{folder}")
    with pytest.raises(InputError, match=r"has no class folders; every class .* as \S+/dog/cat/image\.png"):
        load_data(f"folder:{folder}/dog")


def test_parts_of_a_data_set_are_no_classes(folder: Path, tmp_path: Path) -> None:
    """Each of them would be one class."""
    whole = tmp_path / "whole"
    for part in ("train", "val"):
        shutil.copytree(folder, whole / part)
    with pytest.raises(InputError, match=r"holds train, val, which are no classes.*whole/val'\?"):
        load_data(f"folder:{whole}")
    shutil.rmtree(whole / "val")
    (whole / "val").mkdir()
    shutil.copy(folder / "cat" / "a.png", whole / "val")
    with pytest.raises(InputError, match="holds train, val"):
        load_data(f"folder:{whole}")
    shutil.rmtree(whole / "train")
    assert load_data(f"folder:{whole}").class_names == ("val",)


def test_folder_hints_at_csv(make_csv: Callable[..., Path]) -> None:
    root = make_csv(["filename", "label"], [["0.png", 4]])
    (root / "more").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        load_data(f"folder:{root}")
    for image in (root / "images").iterdir():
        image.unlink()
    with pytest.raises(InputError, match="did you mean 'csv:"):
        load_data(f"folder:{root}")


@pytest.mark.parametrize("as_file", [False, True])
def test_csv_reads_labels_and_targets(
    make_csv: Callable[..., Path], as_file: bool, noise: Any
) -> None:
    columns = ["filename", "label", "targeted_label", "comment"]
    root = make_csv(columns, [["2.png", 5, 9, "x"], ["0.png", 1, 2, ""]])
    data = load_data(f"csv:{root / 'labels.csv' if as_file else root}")
    assert list(data.sample_ids) == ["2.png", "0.png"]
    assert data.labels.tolist() == [5, 1]
    assert data.target_labels is not None
    assert data.target_labels.tolist() == [9, 2]
    assert data.num_classes == 10
    assert np.array_equal(data.pixels(0), noise(2))
    shifted = load_data(f"csv:{root}?label_offset=1&limit=2&seed=0")
    assert sorted(shifted.labels.tolist()) == [0, 4]
    assert shifted.target_labels is not None
    assert (shifted.target_labels - shifted.labels).tolist() == (
        [4, 1] if shifted.sample_ids[0] == "2.png" else [1, 4]
    )
    assert shifted.digest != data.digest


@pytest.fixture
def nips2017(make_csv: Callable[..., Path]) -> Path:
    """Three images in the layout of the competition: classes count from 1, names have no suffix."""
    root = make_csv([], [])
    (root / "labels.csv").unlink()
    for k in range(3):
        (root / "images" / f"{k}.png").rename(root / "images" / f"{k:016x}.png")
    columns = "ImageId,URL,x1,y1,x2,y2,TrueLabel,TargetClass,OriginalLandingURL,License,Author,Profile"
    rows = [f"{k:016x},https://a/{k}.jpg,0.1,0,0.9,1,{label},{target},https://a,https://b,\"A, B\",https://c"
            for k, (label, target) in enumerate([(305, 780), (1, 1000), (883, 2)])]  # fmt: skip
    (root / "images.csv").write_text("\n".join([columns, *rows]) + "\n")
    return root


@pytest.mark.parametrize("file", ["", "/images.csv"])
def test_csv_reads_the_layout_of_nips_2017(nips2017: Path, noise: Any, file: str) -> None:
    data = load_data(f"csv:{nips2017}{file}")
    assert data.labels.tolist() == [304, 0, 882]
    assert data.target_labels is not None
    assert data.target_labels.tolist() == [779, 999, 1]
    assert data.num_classes == 1000
    assert list(data.sample_ids) == [f"{k:016x}.png" for k in range(3)]
    assert np.array_equal(data.pixels(2), noise(2))


def test_csv_says_which_line_of_nips_2017_is_wrong(nips2017: Path) -> None:
    (nips2017 / "images" / f"{2:016x}.png").unlink()
    with pytest.raises(InputError, match=r"images\.csv line 4: image '\S+0002\.png' does not exist"):
        load_data(f"csv:{nips2017}")
    table = nips2017 / "images.csv"
    table.write_text(table.read_text().replace(",1,1000,", ",0,1000,"))
    with pytest.raises(InputError, match="line 3: TrueLabel 0 minus label_offset 1 is negative"):
        load_data(f"csv:{nips2017}")


def test_csv_survives_spreadsheets(make_csv: Callable[..., Path]) -> None:
    root = make_csv(["filename"], [])
    (root / "labels.csv").write_bytes(b"\xef\xbb\xbffilename, label\r\n0.png, 3\r\n\r\n1.png,2\r\n")
    data = load_data(f"csv:{root}")
    assert data.labels.tolist() == [3, 2]
    assert data.target_labels is None


@pytest.mark.parametrize(
    ("columns", "rows", "query", "message"),
    [
        (
            ["file_name", "label"],
            [["0.png", 1]],
            "",
            "no column 'filename'; did you mean 'file_name'",
        ),
        (
            ["filename", "TrueLabel"],
            [["0.png", 1]],
            "",
            "no column 'label'; did you mean 'TrueLabel'",
        ),
        (["filename", "label"], [], "", "lists no images"),
        (
            ["filename", "label"],
            [["0.png", 1], ["7.png", 1]],
            "",
            r"line 3: image '.*7\.png' does not",
        ),
        (
            ["filename", "label"],
            [["0.png", "cat"]],
            "",
            "line 2: label 'cat' is not a whole number",
        ),
        (["filename", "label"], [["0.png", "1.0"]], "", r"label '1\.0' is not a whole number"),
        (["filename", "label"], [["0.png", -1]], "", "line 2: label -1 is negative"),
        (["filename", "label"], [["0.png"]], "", "label '' is not a whole number"),
        (["filename", "label"], [["0.png", 0]], "?label_offset=1", "0 minus label_offset 1 is neg"),
        (["filename", "label"], [["0.png", 0]], "?label_offset=x", "label_offset = 'x' is not"),
        (["filename", "label"], [["0.png", 0]], "?offset=1", "did you mean 'label_offset'"),
        (["filename", "label"], [["0.png", 0], ["0.png", 1]], "", r"line 3: '0\.png' is on line 2"),
        (
            ["filename", "label", "targeted_label"],
            [["0.png", 0, ""]],
            "",
            "targeted_label '' is not",
        ),
    ],
)
def test_csv_errors(
    make_csv: Callable[..., Path],
    columns: list[str],
    rows: list[list[object]],
    query: str,
    message: str,
) -> None:
    root = make_csv(columns, rows)
    with pytest.raises(InputError, match=message):
        load_data(f"csv:{root}{query}")


def test_csv_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_data(f"csv:{tmp_path}/none")
    (tmp_path / "dev.csv").write_text("filename,label\n")
    with pytest.raises(InputError, match=r"nor images\.csv; did you mean 'csv:.*dev\.csv'"):
        load_data(f"csv:{tmp_path}")
