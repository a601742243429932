"""What a run's directory says of its own progress: the plan of its cells, and failures.

Reads without torch and pandas, so that ``advens status`` answers at once.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from advens.errors import InputError
from advens.files import read_regular
from advens.results.store import RunStore, write_bytes

if TYPE_CHECKING:
    from advens.benchmarks.cells import Cell
    from advens.benchmarks.plan import Plan


@dataclass(frozen=True)
class Planned:
    """What ``plan.json`` holds.

    Args:
        cells: title of every cell, by key.
        targets: key of every target, by name.
        own: in a run that is not crossed, the key of the only attacked model that is evaluated on a
            cell, by cell.
        rounds: for every attack that rounds follow, how many cells of these may still become due.
    """

    cells: dict[str, str]
    targets: dict[str, str]
    own: dict[str, str]
    rounds: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan, undecided: Collection[Cell] | None = None) -> Planned:
        """What is kept of a plan.

        Args:
            undecided: rounds that may still become due; all of the plan without.
        """
        cells = {
            cell.key: f"{cell.title}, seed {cell.seed}, {cell.shard[0]}:{cell.shard[1]}"
            for cell in plan.cells
        }
        targets = dict(plan.keys)
        alone = [] if plan.suite.crossed else [c for c in plan.cells if c.specs[0] in targets]
        rounds = dict.fromkeys((cell.chain for cell in plan.rounds), 0)
        for cell in plan.rounds if undecided is None else undecided:
            rounds[cell.chain] += 1
        return cls(cells, targets, {cell.key: targets[cell.specs[0]] for cell in alone}, rounds)

    def keys(self, cell: str) -> set[str]:
        """The keys of the targets that are evaluated on a cell."""
        every = set(self.targets.values())
        return every - set(self.own.values()) | {self.own[cell]} if cell in self.own else every


def plan_path(store: RunStore) -> Path:
    """Where a run keeps the list of its cells."""
    return store.path("plan.json")


def read_plan(path: Path) -> Planned:
    """What a ``plan.json`` holds. Raises InputError for a damaged file."""
    try:
        plan = json.loads(read_regular(path))
        parts, rounds = [plan["cells"], plan["targets"], plan.get("own", {})], dict(plan.get("rounds", {}))
        if not all(isinstance(text, str) for part in parts for text in part.values()):
            raise ValueError("names, titles and keys are text")
        if not all(type(count) is int and count >= 0 for count in rounds.values()):
            raise ValueError("rounds are counted")
        cells, targets, own = map(dict, parts)
        return Planned(cells, targets, own, rounds)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(f"{path} is damaged; delete it and run the suite again") from None


def save_plan(plan: Plan, path: Path, undecided: Collection[Cell] | None = None) -> None:
    """Write cells and targets, with those that an earlier run of the directory planned.

    Args:
        undecided: rounds that may still become due; all of the plan without.
    """
    new = Planned.of(plan, undecided)
    old = read_plan(path) if path.is_file() else Planned({}, {}, {})
    names = ("cells", "targets", "own", *(["rounds"] if old.rounds or new.rounds else []))
    whole = {name: getattr(old, name) | getattr(new, name) for name in names}
    write_bytes(path, (json.dumps(whole, indent=1) + "\n").encode())


def failure_path(store: RunStore, name: str) -> Path:
    """Where the last failure of a task is noted, by its name: a cell, or a cell and the key of a target."""
    return store.path("failures", f"{name}.json")


def read_failures(store: RunStore) -> dict[str, str]:
    """What failed last, and why, by cell or by cell and target. Raises InputError for a damaged note."""
    found = {}
    for each in sorted(store.path("failures").glob("*.json")):
        path = store.path("failures", each.name)
        try:
            note = json.loads(read_regular(path))
            found[path.stem] = f"{note['task']}: {note['error']}"
        except (TypeError, KeyError, UnicodeDecodeError, json.JSONDecodeError, RecursionError):
            raise InputError(f"{path} is damaged; delete it and run the suite again") from None
    return found


def runs_in(directory: Path) -> list[RunStore]:
    """The run in a directory, or those in its folders, as a suite of defenses leaves them.

    A directory with samples or images of its own is a run, as it is for boards, whatever lies in its folders.
    """
    store = RunStore(directory)
    inside = sorted(path.parent.name for path in store.directory.glob("*/suite.toml"))
    if not inside or store.has_cells():
        return [RunStore.open(directory)]
    return [RunStore(store.path(name)) for name in inside]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        cells, crafted: planned, and done.
        rounds: more cells that may still become due.
        evaluations, evaluated: of targets on cells: planned, and done.
        failures: what failed last, and why, by cell or by cell and target.
    """

    cells: int
    crafted: int
    rounds: int
    evaluations: int
    evaluated: int
    failures: dict[str, str]

    @property
    def left(self) -> int:
        """Cells and evaluations that are planned and not done."""
        return self.cells - self.crafted + self.evaluations - self.evaluated


def progress(store: RunStore) -> Progress:
    """Cells and evaluations done and left, and what failed. Raises InputError without a plan."""
    if not plan_path(store).is_file():
        raise InputError(f"{store.directory} holds no plan; was it made by 'advens run'?")
    plan, failures, there = read_plan(plan_path(store)), read_failures(store), store.listing()
    wanted = {cell: plan.keys(cell) for cell in plan.cells}
    return Progress(
        cells=len(plan.cells),
        crafted=sum(cell in there.images for cell in plan.cells),
        rounds=sum(plan.rounds.values()),
        evaluations=sum(map(len, wanted.values())),
        evaluated=sum(len(keys & there.rows.get(cell, {}).keys()) for cell, keys in wanted.items()),
        failures=failures,
    )


def status_lines(store: RunStore) -> list[str]:
    """Cells and evaluations done and left, and what failed. Raises InputError without a plan."""
    now = progress(store)
    more = f"rounds       up to {now.rounds} more cells, as long as a round breaks enough images"
    return [
        f"cells        {now.crafted} of {now.cells} crafted, {now.cells - now.crafted} left",
        *([more] if now.rounds else []),
        f"evaluations  {now.evaluated} of {now.evaluations} done",
        f"failed       {len(now.failures)}",
        *(f"  {cell}  {note}" for cell, note in now.failures.items()),
    ]
