"""Which evaluations make one task: several targets on several cells, so that images and models are read once.

A task is small enough that all workers have something to do until the end, and that its images fit in memory.
The longest come first. How long a pass takes follows from a calibration of the device (`advens calibrate`),
or roughly from the size of the images. Rows are the same whatever the groups are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from math import frexp
from typing import NamedTuple, TypeVar

from advens.benchmarks.calibrate import Size, known_times
from advens.benchmarks.cells import Cell
from advens.errors import InputError

BYTES = 1 << 29
"""Of the images of a task."""
TASKS, LEAST, MOST = 64, 0.5, 600.0
"""Into how many tasks evaluations are divided, and between how many seconds each of them is kept."""
PASS = 1e-7
"""Seconds of a forward pass for each value of an image, where nothing is known: of a ResNet-50 on a CPU."""
USUAL = (224, 224)
"""The size of images of which only decoding would tell."""

T = TypeVar("T")


class Group(NamedTuple):
    """Each of the targets is evaluated on each of the cells.

    Attributes:
        cells, targets: at least one of each.
        seconds: that it takes, about.
    """

    cells: tuple[Cell, ...]
    targets: tuple[str, ...]
    seconds: float


def grouped(
    pending: Iterable[tuple[Cell, tuple[str, ...]]], seconds: Mapping[str, float], size: Size
) -> list[Group]:
    """Groups of cells and the targets that are to be evaluated on them, the longest first.

    Args:
        seconds: of the forward pass of an image, by target.
        size: of the images (H, W).
    """
    alike: dict[tuple[str, ...], list[Cell]] = {}
    total = 0.0
    for cell, targets in pending:
        alike.setdefault(targets, []).append(cell)
        total += _images(cell) * sum(seconds[target] for target in targets)
    most = min(max(total / TASKS, LEAST), MOST)
    found = []
    for targets, cells in alike.items():
        cells.sort(key=lambda cell: cell.shard)  # predictions on clean images are made once for a shard
        images = [_images(cell) for cell in cells]
        for some in _filled(targets, [max(images) * seconds[target] / most for target in targets]):
            each, room = sum(seconds[target] for target in some), 3 * size[0] * size[1] / BYTES
            for part in _filled(cells, [count * max(each / most, room) for count in images]):
                found.append(Group(part, some, each * sum(map(_images, part))))
    # by powers of two: neighbours, which share models or images, stay neighbours
    return sorted(found, key=lambda group: -frexp(group.seconds)[1])


def pass_seconds(targets: Sequence[str], size: Size | None, device: str) -> dict[str, float]:
    """Seconds of a forward pass of an image (H, W), by target, about."""
    height, width = size or USUAL
    guess = dict.fromkeys(targets, 3 * height * width * PASS)
    with suppress(InputError, RuntimeError, AssertionError):  # a device that only workers have
        known, _ = known_times(targets, (height, width), device)
        guess |= {target: times.forward for target, times in known.items()}
    return guess


def _images(cell: Cell) -> int:
    return cell.shard[1] - cell.shard[0]


def _filled(items: Sequence[T], costs: Sequence[float]) -> Iterator[tuple[T, ...]]:
    """Consecutive items whose costs add up to 1 at most; at least one at a time."""
    part: list[T] = []
    spent = 0.0
    for item, cost in zip(items, costs, strict=True):
        if part and spent + cost > 1:
            yield tuple(part)
            part, spent = [], 0.0
        part.append(item)
        spent += cost
    if part:
        yield tuple(part)
