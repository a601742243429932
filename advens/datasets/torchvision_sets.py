"""``torchvision:NAME?root=PATH``: the image classification sets that torchvision reads.

``split=``, ``train=`` and whatever else the class takes are passed on. Nothing is downloaded unless
``download=true`` is given, though some classes would by default.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

from advens.datasets.folder import nearby
from advens.datasets.map_style import MapStyleSource, wrap
from advens.errors import InputError, first_line, nearest, unknown
from advens.spec import Spec, literal

NOT_OPTIONS = frozenset(
    {"self", "root", "transform", "target_transform", "transforms", "loader", "is_valid_file"}
)
NOT_OFFERED = ("VisionDataset", "DatasetFolder", "LSUN", "LSUNClass")
"""Base classes, and those that unpickle an index which lies beside the images."""
WRITERS = ("Caltech101", "Caltech256", "Cityscapes", "INaturalist", "ImageNet", "PhotoTour")
"""Classes that make folders, unpack archives or save tensors below their root, also without downloads."""
FLAGS = ("train", "download")


def would(spec: Spec) -> str:
    """What opening a name does beyond reading regular files below its root, as far as it needs trust."""
    root = spec.query.get("root", "")
    if spec.query.get("download", "false").lower() != "false":
        return f"download to '{root}'"
    if spec.rest in WRITERS:
        return f"let torchvision's {spec.rest} write below '{root}'"
    odd = _irregular(Path(root).expanduser()) if root else None
    return "" if odd is None else f"open '{odd}', which is a link or no regular file"


def load(path: str, root: str = "", **query: str) -> MapStyleSource:
    """The data set of a class of ``torchvision.datasets``, from the files under ``root``.

    Raises:
        InputError: no such class, an option it does not take, or no usable files under the root.
    """
    name = f"torchvision:{path}"
    kind = _class(path)
    allowed = _parameters(kind) - NOT_OPTIONS
    for key in query:
        if key not in allowed:
            raise InputError(f"{name}: unknown option '{key}'{nearest(key, allowed)}")
    options: dict[str, Any] = {key: literal(value) for key, value in query.items()}
    for key in FLAGS:
        if key in options and not isinstance(options[key], bool):
            raise InputError(f"{name}: {key} = '{query[key]}' must be true or false")
    if "download" in allowed:
        options.setdefault("download", False)
    if not root:
        raise InputError(f"{name} needs the folder of its files: add ?root=PATH")
    folder = Path(root).expanduser()
    if not folder.is_dir() and not options.get("download"):
        raise InputError(f"{name}: root '{root}' does not exist{nearby(folder)}")
    try:
        data = kind(root=str(folder), **options)
    except (RuntimeError, ValueError, OSError, TypeError, ImportError) as error:
        reason = first_line(error)
        reason += "; add &download=true to fetch it" if "download" in reason else ""
        raise InputError(f"{name}: nothing usable in '{root}': {reason}") from error
    split = "".join(f"-{value}" for key, value in sorted(query.items()) if key == "split")
    split += {True: "-train", False: "-test", None: ""}[options.get("train")]
    return wrap(data, name, f"{path}{split}")


def _irregular(root: Path) -> str | None:
    """The first entry below a folder that is a link, a pipe or a device; torchvision would open it."""
    waiting = [root] if root.is_dir() else []
    while waiting:
        for entry in _entries(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                return entry.path
    return None


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except PermissionError:  # torchvision cannot read it either
        return []


def _class(name: str) -> Any:
    from torchvision import datasets

    known = [
        key
        for key in datasets.__all__
        if inspect.isclass(kind := getattr(datasets, key))
        and "root" in _parameters(kind)
        and key not in NOT_OFFERED
    ]
    if name not in known:
        raise unknown("torchvision data set", name, known)
    return getattr(datasets, name)


def _parameters(kind: Any) -> set[str]:
    """What a class takes, with what it hands on to its parents as keywords."""
    found: set[str] = set()
    for parent in kind.__mro__:
        if "__init__" not in vars(parent):
            continue
        parameters = inspect.signature(parent.__init__).parameters
        forwards = [key for key, p in parameters.items() if p.kind == p.VAR_KEYWORD]
        found |= set(parameters) - set(forwards)
        if not forwards:
            break
    return found
