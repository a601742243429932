"""Data sets that lead out of their folder, hang, or are not what they say."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from advens.datasets import load_data
from advens.errors import InputError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of one image, and one outside."""
    root = tmp_path / "photos"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / "1.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    return root


def loop(root: Path) -> None:
    (root / "cat" / "again").symlink_to(root)


def itself(root: Path) -> None:
    (root / "self").symlink_to(root)


def file_out(root: Path) -> None:
    (root / "cat" / "2.png").symlink_to(root.parent / "secret.png")


def folder_out(root: Path) -> None:
    (root / "cat" / "more").symlink_to(root.parent)


def pipe(root: Path) -> None:
    os.mkfifo(root / "cat" / "2.png")


def nowhere(root: Path) -> None:
    (root / "cat" / "2.png").symlink_to(root / "cat" / "3.png")


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (loop, "again' is a link to a folder"), (itself, "self' is a link to a folder"),
        (file_out, "2.png' is a link that leads out of"), (folder_out, "more' is a link to a folder"),
        (pipe, "2.png' is not a regular file"), (nowhere, "2.png' is not a regular file"),
    ],
)  # fmt: skip
def test_folders(forge: Callable[[Path], None], words: str, photos: Path, advens: Callable[..., Any]) -> None:
    forge(photos)
    for more in ((), ("--check",)):
        advens("data", f"folder:{photos}", *more).refused(words)


def test_links_inside_a_folder_are_files(photos: Path) -> None:
    (photos / "cat" / "2.png").symlink_to(photos / "dog" / "1.png")
    link = photos.parent / "link"
    link.symlink_to(photos)
    assert len(load_data(f"folder:{link}")) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret.png", "leads out of"), ("{root}/../secret.png", "leads out of"),
        ("{root}/images/1.png", "leads out of"), ("out.png", "leads out of"),
        ("more/secret.png", "leads out of"),
        ("pipe.png", "is not a regular file"), ("sub", "is not a regular file"),
    ],
)  # fmt: skip
def test_tables(name: str, words: str, tmp_path: Path, advens: Callable[..., Any]) -> None:
    root = tmp_path / "set"
    (root / "images" / "sub").mkdir(parents=True)
    for path in (root / "images" / "1.png", tmp_path / "secret.png"):
        Image.new("RGB", (4, 4)).save(path)
    (root / "images" / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "images" / "more").symlink_to(tmp_path)
    os.mkfifo(root / "images" / "pipe.png")
    (root / "labels.csv").write_text(f"filename,label\n1.png,0\n{name.format(root=root)},1\n")
    advens("data", f"csv:{root}").refused("labels.csv line 3: ", words)


def test_a_table_whose_images_lie_elsewhere(tmp_path: Path, advens: Callable[..., Any]) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "set" / "labels.csv").write_text("filename,label\nsecret.png,0\n")
    advens("data", f"csv:{tmp_path / 'set'}").refused("images' is a link that leads out of")


def test_a_file_that_becomes_a_pipe(photos: Path) -> None:
    """Whatever is listed is looked at again when it is opened."""
    data = load_data(f"folder:{photos}")
    (photos / "cat" / "1.png").unlink()
    os.mkfifo(photos / "cat" / "1.png")
    for use in (lambda: data.pixels(0), lambda: data.digest):
        with pytest.raises(InputError, match="not a regular file"):
            use()


def test_all_images_are_checked(photos: Path, advens: Callable[..., Any]) -> None:
    said = advens("data", f"folder:{photos}", "--check")
    assert said.code == 0, said
    assert "all 2 images can be decoded" in said.out
    (photos / "cat" / "0.png").write_bytes(b"")
    (photos / "dog" / "2.png").write_bytes((photos / "dog" / "1.png").read_bytes()[:-30])
    Image.new("RGB", (4, 8)).save(photos / "dog" / "3.png")
    said = advens("data", f"folder:{photos}", "--check")
    assert said.code == 1
    assert [line.partition(":")[0] for line in said.out.splitlines()] == ["bad"] * 3
    for name in ("0.png", "2.png", "3.png"):
        assert name in said.out
    assert said.err == f"advens: 3 of the 5 images of 'folder:{photos}' cannot be used\n"
