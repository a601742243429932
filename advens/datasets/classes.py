"""Which outputs of a model the classes of a data set are: ``?classes=FILE`` or ``?classes=imagenet``.

FILE has a line ``NAME INDEX`` for every class, or is a JSON object of them. NAME is what the data set calls
the class (a folder's name), or its number where classes have no names; INDEX counts the model's outputs
from 0. ``imagenet`` knows the 1,000 classes of ImageNet by their WordNet ids, as ``n01440764``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from advens.datasets.folder import nearby
from advens.datasets.source import Bytes, Integers, Source
from advens.errors import InputError, nearest

if TYPE_CHECKING:
    from advens.datasets.dataset import Dataset

IMAGENET = "imagenet"


@dataclass(frozen=True, eq=False)
class MappedSource:
    """A source whose labels are the outputs of a model.

    Args:
        source: the rows.
        labels, target_labels: as outputs.
        num_classes: how many outputs there are, as far as the mapping tells.
        class_names: the outputs' names, where all are known.
    """

    source: Source
    labels: Integers
    target_labels: Integers | None
    num_classes: int
    class_names: tuple[str, ...] | None

    @property
    def sample_ids(self) -> Sequence[str]:
        """As the source has them."""
        return self.source.sample_ids

    @property
    def in_memory(self) -> bool:
        """As the source says."""
        return self.source.in_memory

    def header_sizes(self, rows: Integers) -> Iterable[tuple[int, tuple[int, int]]]:
        """As the source says."""
        return self.source.header_sizes(rows)

    def pixels(self, row: int) -> Bytes:
        """As the source gives it."""
        return self.source.pixels(row)

    def content(self, rows: Integers) -> Iterable[bytes]:
        """As the source gives it."""
        return self.source.content(rows)


def mapped(source: Source, classes: str, name: str) -> MappedSource:
    """A source with its labels as outputs of a model.

    Args:
        classes: a file, or ``imagenet``.
        name: what to call the data in errors.

    Raises:
        InputError: no such file, not a mapping, or a class of the data is not in it.
    """
    names = imagenet() if classes == IMAGENET else None
    outputs = _read(classes) if names is None else {wnid: k for k, wnid in enumerate(names)}

    def output(label: int) -> int:
        known = source.class_names
        of = str(label) if known is None else known[label]
        if of not in outputs:
            where = "the classes of ImageNet" if names else f"'{classes}'"
            raise InputError(f"'{name}': class '{of}' is not among {where}{nearest(of, outputs)}")
        return outputs[of]

    def over(labels: Integers) -> Integers:
        every, places = np.unique(labels, return_inverse=True)
        return np.array([output(label) for label in every.tolist()], np.int64)[places]

    targets = source.target_labels
    return MappedSource(
        source,
        over(source.labels),
        None if targets is None else over(targets),
        max(outputs.values()) + 1,
        names,
    )


def check_classes(data: Dataset, classes: int) -> None:
    """Raise InputError when the labels of the data cannot be those of models with so many classes."""
    highest = int(np.max(data.labels))
    if highest >= classes:
        raise InputError(
            f"label {highest} in {data.name} is out of range; the models have {classes:,} classes"
        )
    if data.class_names is not None and data.num_classes != classes:
        some = ", ".join(data.class_names[:2])
        query = "&" if "?" in data.name else "?"
        raise InputError(
            f"{data.name} has {data.num_classes:,} classes ({some}, ...) and the models have {classes:,}: "
            f"say which outputs they are with {query}classes=FILE (a line 'NAME INDEX' for each), or "
            f"{query}classes=imagenet for WordNet ids"
        )


def imagenet() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes, in the order of the outputs."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo("imagenet-1k").label_names())


def _read(path: str) -> dict[str, int]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(f"classes = '{path}' is neither a file nor '{IMAGENET}'{nearby(file)}")
    try:
        text = file.read_text(encoding="utf-8-sig")
        pairs = list(_json(text) if text.lstrip().startswith("{") else _lines(text))
    except (OSError, ValueError) as error:
        raise InputError(f"classes = '{path}': {error}") from error
    found = dict(pairs)
    if not found or len(found) < len(pairs):
        raise InputError(f"classes = '{path}' " + ("names a class twice" if found else "names no class"))
    return found


def _json(text: str) -> Iterator[tuple[str, int]]:
    entries: Mapping[str, Any] = json.loads(text)
    for name, index in entries.items():
        if type(index) is not int or index < 0:
            raise ValueError(f"the index of '{name}' must be a whole number from 0, not {index!r}")
        yield name, index


def _lines(text: str) -> Iterator[tuple[str, int]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        *name, index = line.strip().rsplit(maxsplit=1)
        if not name or not index.isdecimal():
            raise ValueError(f"line {number} must be NAME INDEX, not '{line.strip()[:40]}'")
        yield name[0], int(index)
