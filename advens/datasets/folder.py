"""``folder:PATH``: one sub-folder per class, in sorted order; files at any depth below it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from advens.datasets.decoding import SUFFIXES
from advens.datasets.files import FileSource
from advens.errors import InputError, nearest


def load(path: str) -> FileSource:
    """The images of a folder of class folders; ids are paths relative to it.

    Hidden files and folders, and files that are not named as images, are passed over.

    Raises:
        InputError: no such folder, no class folders, or a class folder without images.
    """
    root = existing_folder(path)
    folders = (entry.name for entry in os.scandir(root) if entry.is_dir())
    classes = sorted(name for name in folders if not name.startswith("."))
    if not classes:
        hint = "every class needs a sub-folder of its own"
        if (root / "labels.csv").is_file():
            hint = f"it holds a labels.csv: did you mean 'csv:{path}'?"
        raise InputError(f"folder '{path}' has no class folders; {hint}")
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


def _images(root: Path, name: str) -> list[str]:
    found = []
    for folder, folders, files in os.walk(root / name, followlinks=True):
        folders[:] = [f for f in folders if not f.startswith(".")]
        relative = Path(folder).relative_to(root)
        found += [
            (relative / file).as_posix()
            for file in files
            if not file.startswith(".") and os.path.splitext(file)[1].lower() in SUFFIXES
        ]
    return sorted(found)
