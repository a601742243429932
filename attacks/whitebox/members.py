"""Attacks on randomized ensembles through their members: all together, each alone, and every pair."""

from __future__ import annotations

from itertools import combinations
from typing import Annotated

from advens.attacks.interfaces import Attack, Passes
from advens.attacks.parts import one, part
from advens.attacks.registry import override, recipe
from advens.attacks.whitebox.descent import PMA
from advens.attacks.whitebox.engine import WhiteBox
from advens.attacks.whitebox.oracle import RowOracle
from advens.fields import Count
from advens.threat import Threat

NORMS = ("linf", "l2", "l1")
PAPER = "Dbouk & Shanbhag, ICML 2022 (ARC): attacks on subsets of members; the composition is ours"


@part("attack", "members", family="white-box", norms=NORMS, paper=PAPER, year=2022)
class MemberAware(WhiteBox):
    """One attack on a randomized ensemble's expectation, then on its members alone and in small groups.

    The expectation can hide a weak member behind a confident one. So the same attack is run on all members
    together, on each, and on every group of up to ``largest``, drawn with their own probabilities. Whichever
    group is attacked, every point is shown to all members, and the image with the lowest expected accuracy is
    kept. Members that are never drawn are left out; several plain models are members, too. A single model
    meets the attack twice, from starts of its own each time, so that it is not attacked less.

    Args:
        threat: the ball.
        attack: a white-box attack that goes row by row.
        largest: members in a group that is attacked beside the whole.
    """

    threat: Threat = Threat("linf", "8/255")
    attack: Annotated[Attack, one("attack")] = PMA()
    largest: Count = 2

    @property
    def iterations(self) -> int:
        """Iterations of one of its runs."""
        return int(getattr(self.attack, "iterations", 0))

    def rounds(self, oracle: RowOracle) -> list[tuple[WhiteBox, RowOracle]]:
        """The attack with each of the views of the model that it is run on, in order."""
        attack: WhiteBox = override(self.attack, eps=self.threat.eps, norm=self.threat.norm)  # type: ignore[assignment]
        p = oracle.probabilities
        drawn = [k for k in range(oracle.k) if p is None or float(p[k]) > 0]
        return [(attack, oracle.seen_through(view, k)) for k, view in enumerate(self.views(drawn))]

    def views(self, members: list[int]) -> list[list[int]]:
        """The members that are attacked in each run."""
        others = groups(members, self.largest) if len(members) > 1 else [members]
        return [members, *others]

    def passes(self, surrogates: int) -> Passes:
        """Of an ensemble of so many members, all drawn: every point is shown to all of them."""
        each = self.attack.passes(1)
        views = self.views(list(range(surrogates)))
        return Passes(
            len(views) * surrogates * each.forward, sum(len(view) for view in views) * each.backward
        )


def groups(members: list[int], largest: int) -> list[list[int]]:
    """The groups of 1 to ``largest`` members that are not all of them, the smallest first."""
    sizes = range(1, min(largest, len(members) - 1) + 1)
    return [list(group) for size in sizes for group in combinations(members, size)]


@recipe("pma-members", symbol="PMAMembers", family="white-box", norms=NORMS, paper=PAPER, year=2022)
def PMAMembers() -> MemberAware:
    """PMA on all members of a randomized ensemble, on each alone and on every pair."""
    return MemberAware()
