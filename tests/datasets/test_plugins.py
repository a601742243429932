"""Data sources of third-party packages, through the entry-point group ``advens.data``."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import numpy as np
import pytest

from advens import registry
from advens.datasets import ArraySource, Dataset, list_data, load_data
from advens.errors import InputError

GROUP = "advens.data"


def source(n: int = 4, repeat: bool = False) -> ArraySource:
    images = np.arange(n * 48, dtype=np.uint8).reshape(n, 3, 4, 4)
    ids = tuple(f"id-{0 if repeat else i}" for i in range(n))
    return ArraySource(images, np.arange(n, dtype=np.int64), ids, n)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that installs factories as entry points."""

    def install(**factories: Any) -> None:
        module = types.ModuleType("somebody")
        vars(module).update(factories)
        monkeypatch.setitem(sys.modules, "somebody", module)
        points = [EntryPoint(name, f"somebody:{name}", GROUP) for name in factories]
        points.append(EntryPoint("broken", "somebody:absent", GROUP))
        monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(points))

    return install


def test_factory_may_give_a_source_a_dataset_or_pairs(install: Callable[..., None]) -> None:
    images = source().images
    install(
        src=lambda path, n: source(int(n)),
        data=lambda path: Dataset(source(), path, rows=[2, 0, 1]),
        pairs=lambda path, **query: [(image, 1) for image in images],
    )
    assert load_data("src:x?n=3&limit=2").labels.tolist() == (
        np.random.RandomState(0).permutation(3)[:2].tolist()
    )
    view = load_data("data:x?size=2")
    assert (view.name, view.size, view.sample_ids) == (
        "data:x?size=2",
        (2, 2),
        ("id-2", "id-0", "id-1"),
    )
    assert np.array_equal(load_data("pairs:x?any=thing").pixels(3), images[3])
    assert [scheme for scheme, _ in list_data()][-4:] == ["broken", "data", "pairs", "src"]


def test_errors(install: Callable[..., None]) -> None:
    def failing(path: str) -> None:
        raise FileNotFoundError(f"no {path}\nhere")

    install(
        src=lambda path, n="4": source(int(n)),
        twice=lambda path: source(repeat=True),
        failing=failing,
        nothing=lambda path: None,
        constant=3,
        folder=failing,
    )
    for spec, message in {
        "srk:x": "unknown data source 'srk'; did you mean 'src'",
        "src:x?m=3": "unknown option 'm'",
        "src:x?n=a": "'src' cannot open 'src:x\\?n=a': ValueError",
        "twice:x": "sample id 'id-0' is there 4 times",
        "failing:x": "FileNotFoundError: no x$",
        "nothing:x": "gave a NoneType",
        "constant:x": "not a function",
        "broken:x": "does not load: AttributeError",
        "folder:x": "defined more than once: by advens, somebody:folder",
    }.items():
        with pytest.raises(InputError, match=message):
            load_data(spec)
