"""Running a suite: plan, craft what is missing, show it to every target, summarise."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advens.benchmarks.environment import environment, merged
from advens.benchmarks.executors import execute
from advens.benchmarks.merge import agree
from advens.benchmarks.plan import Cell, Plan, make_plan
from advens.benchmarks.progress import Progress
from advens.benchmarks.suites import Suite
from advens.datasets import find_data
from advens.digest import value_digest
from advens.errors import InputError, RunError
from advens.files import os_errors, read_regular
from advens.results.boards.silence import silent_lines
from advens.results.boards.summary import summarise
from advens.results.store import RunStore, is_whole, write_bytes

if TYPE_CHECKING:
    import pandas as pd


CLEAN_ENOUGH = 0.3
"""Clean accuracy under which a target's preprocessing or labels are doubted aloud."""


@dataclass
class Report:
    """What a run did.

    Args:
        directory: where its files are.
        cells: in the plan.
        crafted: cells crafted now.
        evaluated: (cell, target) pairs evaluated now.
        failures: what failed, and why.
        warnings: for people.
    """

    directory: Path
    cells: int
    crafted: int = 0
    evaluated: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run_suite(
    suite: Suite,
    directory: Path,
    *,
    device: str = "cpu",
    executor: str = "local",
    workers: int = 1,
    progress: Progress | None = None,
) -> Report:
    """Do what is missing of a suite and summarise it.

    Raises:
        InputError: the suite, a model or the data cannot be used, the directory is in use, cannot be
            written or holds another suite. Finished cells stay.
    """
    progress = progress or Progress()
    store = RunStore(directory)
    agree(store.suite, suite)  # before anything is built for a run that will be refused
    data = find_data(suite.source)
    plan = make_plan(suite, data, progress=progress, device=device)
    with store.lock():
        whole = agree(store.suite, suite)
        write_bytes(store.suite, whole.toml().encode())
        digests = {name: card.digest for name, card in plan.cards.items()}
        about = environment(device, digests, {suite.source: data.digest})
        write_bytes(store.environment, merged(store.environment, about))
        save_plan(plan, plan_path(store))
        report = Report(directory, len(plan.cells))
        work(plan, store, report, progress, executor=executor, workers=workers, device=device)
        summary = all(
            is_whole(path, path.stem) for path in (store.matrix, store.leaderboard)
        )
        if store.evaluated() and (report.crafted or report.evaluated or not summary):
            matrix, _ = summarise(directory, value_digest(whole.model_dump()))
            report.warnings += doubtful(matrix)
        report.warnings += silent_lines(store.read_cells()) if report.crafted else []
    return report


def doubtful(matrix: pd.DataFrame) -> list[str]:
    """A line for every target that is wrong on most clean images: the usual sign of a bad setup."""
    clean = matrix.groupby("target", observed=True)["clean_accuracy"].first()
    return [
        f"{target} is right on only {accuracy:.1%} of the clean images; "
        "check its weights, preprocessing and the labels"
        for target, accuracy in clean[clean < CLEAN_ENOUGH].items()
    ]


def work(
    plan: Plan,
    store: RunStore,
    report: Report,
    progress: Progress,
    *,
    executor: str,
    workers: int,
    device: str,
) -> None:
    """Craft the cells that are missing, then evaluate the pairs that are missing."""
    from advens.benchmarks.tasks import Craft, Evaluate  # torch, only when there is work
    from advens.benchmarks.whitebox import Break
    from advens.benchmarks.worker_cache import workshop

    workshop.cache_clear()  # models and data may have changed since an earlier run of this process
    folder, size = str(store.directory), plan.suite.batch_size
    missing = [
        cell for cell in plan.cells if not is_whole(store.examples_path(cell.key), "examples")
    ]
    if missing or any(True for _ in _pending(plan, store)):
        _forget(store, {cell.key for cell in missing})
    how = {"executor": executor, "workers": workers, "device": device}
    for depth in _by_depth(plan.cells, {cell.key for cell in missing}):
        failed = {cell for cell, _ in report.failures}
        crafts: list[Any] = [
            Craft(folder, cell, size) if cell.goal == "transfer" else Break(folder, cell, size)
            for cell in depth
            if cell.after not in failed
        ]
        report.crafted += _do(crafts, "crafting", store, report, progress, how)
    failed = {cell for cell, _ in report.failures}
    evaluations = [
        Evaluate(folder, cell, target, target_key(plan, target), plan.white_box(cell, target), size)
        for target, cell in _pending(plan, store)
        if cell.key not in failed
    ]
    report.evaluated = _do(evaluations, "evaluating", store, report, progress, how)


def _by_depth(cells: Sequence[Cell], missing: set[str]) -> list[list[Cell]]:
    """The missing cells, those that need no other first, then those that need these, and so on.

    In a plan a stage comes after the one it needs.
    """
    depths: dict[str, int] = {}
    found: list[list[Cell]] = []
    for cell in cells:
        depths[cell.key] = depth = depths.get(cell.after, -1) + 1
        if cell.key in missing:
            found += [[] for _ in range(depth + 1 - len(found))]
            found[depth].append(cell)
    return found


def _forget(store: RunStore, cells: set[str]) -> None:
    """Remove what will not be true any more: summaries, and rows on images that are crafted again."""
    stale = [store.samples_path(*pair) for pair in store.evaluated() if pair[0] in cells]
    for path in (store.matrix, store.leaderboard, *stale):
        with os_errors("remove", path):
            path.unlink(missing_ok=True)


def _pending(plan: Plan, store: RunStore) -> Iterable[tuple[str, Cell]]:
    """(target, cell) pairs without a whole samples file, target by target."""
    for target, cell in plan.pairs():
        if not is_whole(store.samples_path(cell.key, target_key(plan, target)), "samples"):
            yield target, cell


def _do(
    tasks: Sequence[Any],
    what: str,
    store: RunStore,
    report: Report,
    progress: Progress,
    how: dict[str, Any],
) -> int:
    done = 0
    with progress.task(what, len(tasks)) as advance, closing(execute(tasks, **how)) as outcomes:
        for task, outcome in outcomes:
            note = failure_path(store, task.cell.key, getattr(task, "target_key", None))
            if isinstance(outcome, RunError):
                report.failures.append((task.cell.key, f"{task.title}: {outcome}"))
                write_bytes(note, json.dumps({"task": task.title, "error": str(outcome)}).encode())
            else:
                note.unlink(missing_ok=True)
                done += 1
            advance(task.title)
    return done


def target_key(plan: Plan, target: str) -> str:
    """A target in a file name: its name and weights, so that new weights are evaluated anew."""
    return value_digest([target, plan.cards[target].digest], 16)


def plan_path(store: RunStore) -> Path:
    """Where the run keeps the list of its cells, for ``advens status``."""
    return store.directory / "plan.json"


def failure_path(store: RunStore, cell: str, target_key: str | None = None) -> Path:
    """Where the last failure of a cell, or of showing it to a target, is noted."""
    name = cell if target_key is None else f"{cell}.{target_key}"
    return store.directory / "failures" / f"{name}.json"


def read_failures(store: RunStore) -> dict[str, str]:
    """What failed last, and why, by cell or by cell and target. Raises InputError for a damaged note."""
    found = {}
    for path in sorted((store.directory / "failures").glob("*.json")):
        try:
            note = json.loads(read_regular(path))
            found[path.stem] = f"{note['task']}: {note['error']}"
        except (TypeError, KeyError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            raise InputError(f"{path} is damaged; delete it and run the suite again") from None
    return found


def read_plan(path: Path) -> dict[str, dict[str, str]]:
    """``cells``: title by key; ``targets``: key by name; ``own``: key of the only attacked model that sees a
    cell, by cell, where a run is not crossed. Raises InputError for a damaged file."""
    try:
        plan = json.loads(path.read_text())
        parts = {"cells": plan["cells"], "targets": plan["targets"], "own": plan.get("own", {})}
        if not all(isinstance(text, str) for part in parts.values() for text in part.values()):
            raise ValueError("names, titles and keys are text")
        return {name: dict(part) for name, part in parts.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{path} is damaged; delete it and run the suite again") from None


def save_plan(plan: Plan, path: Path) -> None:
    """Write cells and targets, with those an earlier run of the directory planned."""
    cells = {
        c.key: f"{c.attack} on {c.surrogates}, seed {c.seed}, {c.shard[0]}:{c.shard[1]}"
        for c in plan.cells
    }
    targets = {target: target_key(plan, target) for target in plan.targets}
    alone = [] if plan.suite.crossed else [cell for cell in plan.cells if cell.specs[0] in targets]
    own = {cell.key: targets[cell.specs[0]] for cell in alone}
    whole = {"cells": cells, "targets": targets, "own": own}
    if path.is_file():
        before = read_plan(path)
        whole = {name: before[name] | part for name, part in whole.items()}
    write_bytes(path, (json.dumps(whole, indent=1) + "\n").encode())
