"""New targets join a finished run: stored images are shown to them, nothing is crafted again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advens.benchmarks.environment import environment, merged
from advens.benchmarks.plan import Cell, Plan
from advens.benchmarks.progress import Progress
from advens.benchmarks.runner import Report, doubtful, plan_path, save_plan, work
from advens.benchmarks.suites import parse
from advens.benchmarks.tasks import cell_from
from advens.datasets import find_data
from advens.digest import value_digest
from advens.errors import InputError, RunError, first_line
from advens.models import describe, expand
from advens.results.boards.summary import summarise
from advens.results.store import RunStore, read_cell, write_bytes


def evaluate_targets(
    directory: Path,
    targets: Sequence[str],
    device: str,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluate the stored examples of a run on more models and summarise again.

    Raises:
        InputError: no run, no examples, unknown models, another label space.
    """
    store = RunStore.open(directory)
    if not store.suite.is_file():
        raise InputError(f"{directory} holds no suite.toml; was it made by 'advens run'?")
    with store.lock():
        cells = tuple(_cell(store, name) for name in store.cells())
        if not cells:
            raise InputError(f"{directory} holds no examples yet")
        _same_data(cells)
        names = tuple(dict.fromkeys(name for pattern in targets for name in expand(pattern)))
        cards = {name: describe(name) for name in names}
        classes = describe(cells[0].specs[0]).num_classes
        for name, card in cards.items():
            if card.num_classes != classes:
                raise InputError(f"{name} has {card.num_classes} classes; this run has {classes}")
        suite = parse(store.suite.read_text(), str(store.suite))
        suite = suite.model_copy(
            update={
                "targets": list(dict.fromkeys([*suite.targets, *names])),
                "batch_size": batch_size or suite.batch_size,
            }
        )
        plan = Plan(suite, {}, cards, names, cells)
        write_bytes(store.suite, suite.toml().encode())
        save_plan(plan, plan_path(store))
        digests = {name: card.digest for name, card in cards.items()}
        about = merged(store.environment, environment(device, digests, {}))
        write_bytes(store.environment, about)
        report = Report(directory, len(cells))
        work(
            plan, store, report, progress or Progress(), executor="local", workers=1, device=device
        )
        if report.evaluated:
            matrix, _ = summarise(directory, value_digest(suite.model_dump()))
            report.warnings += doubtful(matrix)
    return report


def _cell(store: RunStore, name: str) -> Cell:
    path = store.examples_path(name)
    try:
        return cell_from(read_cell(path))
    except ValueError as error:
        raise RunError(f"{path.name}: its description is not that of a cell ({first_line(error)})") from error


def _same_data(cells: Sequence[Cell]) -> None:
    """Raise InputError unless the data are those the cells were crafted on."""
    shards = {(cell.data, cell.shard): cell.fingerprint for cell in cells}
    data = {source: find_data(source) for source in {source for source, _ in shards}}
    for (source, shard), fingerprint in shards.items():
        if data[source].fingerprint(slice(*shard)) != fingerprint:
            raise InputError(f"{source}: the data are not those this run was crafted on")
