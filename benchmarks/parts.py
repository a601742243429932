"""A part of a run: one of several processes that share it, each with a share of the cells of its own.

The shares follow from the plan, so parts need not know of each other. A part does its own share first, and
then helps the others from the ends of theirs. Whatever is done is claimed (`advens.results.store.lock`), so
that nothing is done twice unless a process stops for a minute; what is done twice is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from advens.benchmarks.cells import Cell
from advens.errors import InputError


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

    def ordered(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """The cells of its own share, which may be none, then those of the others.

        Those of the next part come first, and the last ones of each, as that part takes the first ones.
        """
        shares = shares_of(cells, self.of)
        away: dict[int, list[Cell]] = {0: []}
        for cell in cells:
            away.setdefault((shares[cell.key] - self.number) % self.of, []).append(cell)
        return [away[each] if each == 0 else away[each][::-1] for each in sorted(away)]


def shares_of(cells: Sequence[Cell], parts: int) -> Mapping[str, int]:
    """The part, from 1, that a cell belongs to, by its key.

    Neighbours in the plan, which share models, belong to one part; so do cells of which one needs the other.
    """
    first: dict[str, str] = {}
    for cell in cells:  # one that goes on from another comes after it
        first[cell.key] = first.get(cell.after, cell.key)
    place = {key: number for number, key in enumerate(dict.fromkeys(first.values()))}
    return {key: 1 + place[start] * parts // len(place) for key, start in first.items()}
