"""A part of a run: one of several processes that share it, each with a share of the cells of its own.

The shares follow from the plan, so parts need not know of each other. A part does its own share first, and
then helps the others from the ends of theirs. Whatever is done is claimed (`advens.results.store.lock`), so
that nothing is done twice unless a process stops for a minute; what is done twice is the same.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from advens.benchmarks.cells import Cell
from advens.errors import InputError
from advens.results.store import RunStore


class OnCell(Protocol):
    """A task on a cell of a run.

    Attributes:
        directory: of the run.
        cell: the cell.
        title: what people call it.
        name: of what it makes, among all that is made in the run.
    """

    @property
    def directory(self) -> str: ...
    @property
    def cell(self) -> Cell: ...
    @property
    def title(self) -> str: ...
    @property
    def name(self) -> str: ...
    def there(self) -> bool:
        """Whether what it makes is there."""
        ...

    def do(self, device: str) -> Any: ...


T = TypeVar("T", bound=OnCell)


@dataclass(frozen=True)
class Part:
    """One of several processes that share a run.

    Args:
        number: from 1.
        of: how many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part of a text as ``2/8``. Raises InputError for another."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        number, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= of:
            raise InputError(f"--part {text}: write I/N, the parts being 1/N to N/N")
        return cls(number, of)

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def ordered(self, tasks: Iterable[T], cells: Sequence[Cell], failed: Collection[str]) -> list[Claimed]:
        """The tasks of its own share, then those of the others: the next part's first, the last ones first.

        Args:
            cells: of the plan, the shares of which follow.
            failed: names of tasks that failed; those of others are left to their parts.
        """
        shares = shares_of(cells, self.of)
        away: dict[int, list[T]] = {}
        for task in tasks:
            away.setdefault((shares[task.cell.key] - self.number) % self.of, []).append(task)
        own = away.pop(0, [])
        others = (task for distance in sorted(away) for task in reversed(away[distance]))
        return [Claimed(task) for task in (*own, *(task for task in others if task.name not in failed))]


def shares_of(cells: Sequence[Cell], parts: int) -> Mapping[str, int]:
    """The part, from 1, that a cell belongs to, by its key.

    Neighbours in the plan, which share models, belong to one part; so do cells of which one needs the other.
    """
    first: dict[str, str] = {}
    for cell in cells:  # one that goes on from another comes after it
        first[cell.key] = first.get(cell.after, cell.key)
    place = {key: number for number, key in enumerate(dict.fromkeys(first.values()))}
    return {key: 1 + place[start] * parts // len(place) for key, start in first.items()}


@dataclass(frozen=True)
class Claimed:
    """A task that is done unless another process is at it, or has done it."""

    task: OnCell

    @property
    def directory(self) -> str:
        return self.task.directory

    @property
    def title(self) -> str:
        return self.task.title

    def do(self, device: str) -> Any:
        """What the task returns; None where it is another's."""
        with RunStore(self.directory).claim(self.task.name) as mine:
            return self.task.do(device) if mine and not self.task.there() else None
