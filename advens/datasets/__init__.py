"""Data sources: images with labels and stable ids, from a name.

`load_data` opens ``digits:``, ``folder:``, ``csv:``, ``parquet:``, ``torchvision:``, ``synthetic:``
and whatever third-party packages add through the entry-point group ``advens.data``: the entry
point's name is the scheme, and it loads a function ``factory(path: str, **query: str)`` that gives
a `Dataset`, a `Source`, or any map-style data set of (image, label) pairs.

Importing this package imports neither torch nor pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advens.datasets.dataset import Batch as Batch
    from advens.datasets.dataset import Dataset as Dataset
    from advens.datasets.dataset import Sample as Sample
    from advens.datasets.loading import find_data as find_data
    from advens.datasets.loading import list_data as list_data
    from advens.datasets.loading import load_data as load_data
    from advens.datasets.source import ArraySource as ArraySource
    from advens.datasets.source import Source as Source

_HOMES = {
    "ArraySource": "advens.datasets.source",
    "Batch": "advens.datasets.dataset",
    "Dataset": "advens.datasets.dataset",
    "Sample": "advens.datasets.dataset",
    "Source": "advens.datasets.source",
    "find_data": "advens.datasets.loading",
    "list_data": "advens.datasets.loading",
    "load_data": "advens.datasets.loading",
}


def __getattr__(name: str) -> Any:
    """The public names, imported when first asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'advens.datasets' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(_HOMES)


__all__ = [
    "ArraySource",
    "Batch",
    "Dataset",
    "Sample",
    "Source",
    "find_data",
    "list_data",
    "load_data",
]
