"""New targets join a finished run: they are evaluated on stored images, and nothing is crafted again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advens.benchmarks.cells import Cell
from advens.benchmarks.merge import union
from advens.benchmarks.plan import Plan
from advens.benchmarks.runner import Report, Runner, goal_of
from advens.benchmarks.suites import Suite, expanded, stored
from advens.datasets import find_data
from advens.errors import InputError, RunError, first_line
from advens.models import describe
from advens.results.store import RunStore, read_cell, write_bytes


def evaluate_targets(
    directory: Path, targets: Sequence[str], run: Runner, batch_size: int | None = None
) -> tuple[Report, str]:
    """Evaluate more models on the stored images of a run, and compute its boards again.

    Returns:
        What was done, and the board that such a run shows.

    Raises:
        InputError: no run, no examples, unknown models, another label space.
    """
    store = RunStore.open(directory)
    if not store.suite.is_file():
        raise InputError(f"{directory} holds no suite.toml; was it made by 'advens run'?")
    with store.lock():
        cells = tuple(stored_cell(store, name) for name in store.cells())
        if not cells:
            raise InputError(f"{directory} holds no examples yet")
        _same_data(cells)
        names = expanded(targets)
        cards = {name: describe(name) for name in names}
        classes = describe(cells[0].specs[0]).num_classes
        for name, card in cards.items():
            if card.num_classes != classes:
                raise InputError(f"{name} has {card.num_classes} classes; this run has {classes}")
        suite = stored(store.suite)
        if not isinstance(suite, Suite):
            raise InputError(f"{directory} evaluates defenses; give one of the runs in it")
        suite = suite.model_copy(
            update={
                "targets": union(suite.targets, names),
                "batch_size": batch_size or suite.batch_size,
            }
        )
        plan = Plan(suite, cards, names, cells)
        write_bytes(store.suite, suite.toml().encode())
        run.record(store, plan, {})
        return run.complete(plan, store, suite), goal_of(suite).shown


def stored_cell(store: RunStore, name: str) -> Cell:
    """The cell that an examples file describes. Raises RunError when it describes none."""
    path = store.examples_path(name)
    try:
        return Cell.from_json(read_cell(path))
    except ValueError as error:
        raise RunError(
            f"{path.name}: its description is not that of a cell ({first_line(error)})"
        ) from error


def _same_data(cells: Sequence[Cell]) -> None:
    """Raise InputError unless the data are those the cells were crafted on."""
    shards = {(cell.data, cell.shard): cell.fingerprint for cell in cells}
    data = {source: find_data(source) for source in {source for source, _ in shards}}
    for (source, shard), fingerprint in shards.items():
        if data[source].fingerprint(slice(*shard)) != fingerprint:
            raise InputError(f"{source}: the data are not those this run was crafted on")
