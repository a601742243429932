"""Which evaluations of a run are checked, where not all of them are."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from advens.errors import InputError


def new_seed() -> int:
    """A seed that nobody knew before."""
    return secrets.randbits(32)


@dataclass(frozen=True)
class Selection:
    """A sample of the evaluations of a run, with every attack, set and target where it is large enough.

    Args:
        share: of all evaluations, rounded up; or
        number: of evaluations.
        seed: from which it follows which ones they are.

    Raises:
        InputError: a share that is not above 0 and at most 1, a number below 1.
    """

    share: float | None
    number: int | None
    seed: int

    def __post_init__(self) -> None:
        bad = (self.share is None) == (self.number is None)
        bad = bad or (self.share is not None and not 0 < self.share <= 1)
        if bad or (self.number is not None and self.number < 1):
            raise InputError("a sample is a share above 0 and at most 100%, or a number of evaluations")

    @classmethod
    def parse(cls, text: str, seed: int) -> Selection:
        """``1%``, ``0.01``, or ``200`` evaluations. Raises InputError for anything else."""
        try:
            if text.endswith("%"):
                return cls(float(text[:-1]) / 100, None, seed)
            return cls(None, int(text), seed) if text.isdecimal() else cls(float(text), None, seed)
        except (ValueError, InputError):
            raise InputError(
                f"--sample {text}: a share as 1% or 0.01, or a number of evaluations as 200"
            ) from None

    @property
    def text(self) -> str:
        """The size, as it is given on the command line."""
        return str(self.number) if self.share is None else f"{100 * self.share:.10g}%"

    def of(self, units: Mapping[tuple[str, str], Sequence[str]]) -> set[tuple[str, str]]:
        """Those that are drawn.

        Args:
            units: what can be drawn, by cell and key of the target, each with what it is a sample of: its
                attack, set and target.
        """
        wanted = self.number or math.ceil((self.share or 0) * len(units) - 1e-9)
        ranked = sorted(units, key=self._rank)
        features = {unit: set(enumerate(units[unit])) for unit in ranked}
        unseen = set().union(*features.values())
        most = max((len(each) for each in features.values()), default=0)
        found: dict[tuple[str, str], None] = {}
        for least in range(most, -1, -1):  # first what shows most that was not seen yet, in the end anything
            for unit in _up_to(ranked, found, wanted):
                if len(new := unseen & features[unit]) >= least:
                    found[unit] = None
                    unseen -= new
        return set(found)

    def _rank(self, unit: tuple[str, str]) -> bytes:
        return hashlib.sha256("\0".join([str(self.seed), *unit]).encode()).digest()


def _up_to(
    ranked: Iterable[tuple[str, str]], found: Mapping[tuple[str, str], None], wanted: int
) -> Iterable[tuple[str, str]]:
    """Those that are not found yet, while there are fewer than are wanted."""
    for unit in ranked:
        if len(found) >= wanted:
            return
        if unit not in found:
            yield unit
