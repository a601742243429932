"""Which rounds of white-box attacks are due: as many as it takes until one breaks little enough.

The cells of all rounds that may follow an attack are known beforehand (`Plan.rounds`); the rows that are
stored say which of them are needed. The first round always is. Another follows when the last one broke at
least the stated share of all images of the run, whatever their shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from advens.benchmarks.cells import Cell
from advens.benchmarks.plan import Plan
from advens.errors import RunError
from advens.results.boards.outcomes import expected, share_broken
from advens.results.store import Listing, RunStore

COLUMNS = [
    "suite", "target", "attack", "seed", "cell", "sample_id", "clean_correct", "success", "weight",
]  # fmt: skip


@dataclass(frozen=True)
class Due:
    """What the stored rows say of the rounds of a plan.

    Args:
        cells: of the rounds that are needed.
        undecided: of those that may still turn out to be, once the rows of the rounds before are there.
    """

    cells: tuple[Cell, ...] = ()
    undecided: tuple[Cell, ...] = ()


def due_rounds(plan: Plan, store: RunStore) -> Due:
    """The rounds that are due, and those of which this cannot be said yet."""
    due: list[Cell] = []
    undecided: list[Cell] = []
    if not plan.rounds:
        return Due()
    there = store.listing()
    for rounds in _chains(plan):
        for number, cells in enumerate(rounds, 1):
            due += cells
            share = _broken(plan, store, there, cells)
            if share is None:
                undecided += [cell for later in rounds[number:] for cell in later]
            if share is None or share < (cells[0].until or 0):
                break
    return Due(tuple(due), tuple(undecided))


def _chains(plan: Plan) -> list[list[list[Cell]]]:
    """For every attack, model and seed its rounds in order, each the cells of all shards."""
    found: dict[str, dict[int, list[Cell]]] = {}
    for cell in plan.rounds:
        found.setdefault(cell.chain, {}).setdefault(cell.round, []).append(cell)
    return [[rounds[number] for number in sorted(rounds)] for rounds in found.values()]


def _broken(plan: Plan, store: RunStore, there: Listing, cells: Sequence[Cell]) -> float | None:
    """The share of all images that a round broke on its model; None until all of its rows are there."""
    model, after = cells[0].specs[0], {cell.key: cell.after for cell in cells}
    if not all(there.has(key, plan.keys[model]) for key in (*after, *after.values())):
        return None
    try:
        rows = store.read_samples(
            COLUMNS, cells={*after, *after.values()}, filters={"target": model}, listing=there
        )
        return share_broken(expected(rows), after)
    except (RunError, KeyError, ZeroDivisionError):  # rows that are not those of the cells: verify says so
        return None
