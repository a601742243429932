"""``folder:PATH``: one sub-folder per class, in sorted order; files at any depth below it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from advens.datasets.decoding import SUFFIXES
from advens.datasets.files import FileSource
from advens.errors import InputError, nearest

SPLITS = ("dev", "test", "train", "training", "val", "valid", "validation")
"""How folders are called that hold a part of a data set."""


def load(path: str) -> FileSource:
    """The images of a folder of class folders; ids are paths relative to it.

    Hidden files and folders, and files that are not named as images, are passed over.

    Raises:
        InputError: no such folder, no class folders, parts (train, val) instead of classes, a class folder
            without images, links to folders or out of the folder, or something else than a file that is
            named as an image.
    """
    root = existing_folder(path)
    folders = [e for e in list(os.scandir(root)) if e.is_dir() and not e.name.startswith(".")]
    for link in (Path(entry.path) for entry in folders if entry.is_symlink()):
        raise InputError(f"'{link}' is a link to a folder; a class is a folder of its own")
    classes = sorted(entry.name for entry in folders)
    if not classes:
        hint = f"every class needs a sub-folder of its own, as {Path(path) / 'cat' / 'image.png'}"
        if (root / "labels.csv").is_file():
            hint = f"it holds a labels.csv: did you mean 'csv:{path}'?"
        raise InputError(f"folder '{path}' has no class folders; {hint}")
    if all(name.lower() in SPLITS for name in classes):
        nested = [e.name for e in list(os.scandir(root / classes[0])) if e.is_dir()]
        if nested:
            raise InputError(
                f"folder '{path}' holds {', '.join(classes)}, which are no classes but parts of a data set: "
                f"did you mean 'folder:{Path(path) / classes[-1]}'?"
            )
    ids: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _images(root, name)
        if not found:
            hint = ""
            if name == "images" and (root / "labels.csv").is_file():
                hint = f"; did you mean 'csv:{path}'?"
            raise InputError(f"class folder '{root / name}' holds no images{hint}")
        ids += found
        labels += [label] * len(found)
    return FileSource(root, tuple(ids), np.array(labels, np.int64), len(classes), tuple(classes))


def existing_folder(path: str) -> Path:
    """The folder of a path, which may begin with ``~``. Raises InputError with the nearest name."""
    root = Path(path).expanduser()
    if root.is_dir():
        return root
    if root.exists():
        raise InputError(f"'{path}' is a file; a folder is needed here")
    raise InputError(f"folder '{path}' does not exist{nearby(root)}")


def nearby(path: Path) -> str:
    """A hint at a name beside a path that does not exist."""
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, [entry.name for entry in os.scandir(path.parent)])


def inside(root: Path, link: Path) -> None:
    """Raise InputError for a link that leads out of a folder."""
    if not link.resolve().is_relative_to(root.resolve()):
        raise InputError(f"'{link}' is a link that leads out of '{root}'; data stay in their folder")


def _images(root: Path, name: str) -> list[str]:
    """Names of the images of a class, relative to the root; links to folders are not followed."""
    found, waiting = [], [root / name]
    while waiting:
        for entry in list(os.scandir(waiting.pop())):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if entry.is_symlink():
                    raise InputError(f"'{entry.path}' is a link to a folder; its images would count twice")
                waiting.append(Path(entry.path))
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                if entry.is_symlink():
                    inside(root, Path(entry.path))
                if not entry.is_file():
                    raise InputError(f"'{entry.path}' is not a regular file")
                found.append(Path(entry.path).relative_to(root).as_posix())
    return sorted(found)
