"""The one pipeline: a suite becomes a plan, an executor does its tasks, the store keeps what they make,
and boards are computed from the store.

Whatever the goal, what comes first (building surrogates, training defenses), crafting, evaluating and
measuring are tasks that an executor does. A rerun does only what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import singledispatchmethod
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from advens.benchmarks import defense_goal
from advens.benchmarks.cells import Cell, by_depth
from advens.benchmarks.controls import with_controls
from advens.benchmarks.defense_goal import Line
from advens.benchmarks.environment import environment, merged
from advens.benchmarks.executors import Executor, Task, create_executor
from advens.benchmarks.goals import ATTACK_GOALS, Goal
from advens.benchmarks.groups import USUAL, grouped, pass_seconds
from advens.benchmarks.histories import History, keep_histories
from advens.benchmarks.likeness import Answer, Comparison
from advens.benchmarks.merge import agree
from advens.benchmarks.parts import Part
from advens.benchmarks.pins import held
from advens.benchmarks.plan import Plan, Sets, make_plan, outline
from advens.benchmarks.progress import Progress
from advens.benchmarks.rounds import due_rounds
from advens.benchmarks.sanity import (
    CheckModel,
    keep,
    read_kept,
    tasks_of,
    unmeasured,
    write_report,
)
from advens.benchmarks.status import failure_path, plan_path, save_plan
from advens.benchmarks.suites import (
    AnySuite,
    BuiltSet,
    DefenseSuite,
    Suite,
    built_sets,
    settings_digest,
)
from advens.benchmarks.tasks import (
    Build,
    Craft,
    Evaluate,
    Measure,
    Pair,
    Target,
    Train,
    opened,
    trace_path,
)
from advens.benchmarks.worker_cache import worker_cache
from advens.datasets import Dataset, find_data
from advens.digest import value_digest
from advens.errors import InputError, RunError
from advens.files import os_errors
from advens.models import find_model
from advens.results.boards.board import BOARDS, path_of, suite_digest, write_board
from advens.results.boards.defenses import write_models
from advens.results.boards.likeness import FILE as LIKENESS
from advens.results.boards.likeness import write_likeness
from advens.results.boards.rows import NoRows, Rows
from advens.results.boards.silence import silent_lines
from advens.results.store import Listing, RunStore, is_whole, read_cell, read_table, write_bytes

T = TypeVar("T", bound=Task)
CLEAN_ENOUGH = 0.3
"""Clean accuracy under which a warning doubts a target's preprocessing or labels."""


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
        unsound: checks of the sanity report that failed, a line each.
    """

    directory: Path
    cells: int = 0
    crafted: int = 0
    evaluated: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unsound: list[str] = field(default_factory=list)

    def add(self, part: Report) -> None:
        """Count what a part of the run did."""
        self.cells += part.cells
        self.crafted += part.crafted
        self.evaluated += part.evaluated
        self.failures += part.failures
        self.warnings += part.warnings
        self.unsound += part.unsound


def run_suite(
    suite: AnySuite,
    directory: Path,
    *,
    executor: Executor | None = None,
    progress: Progress | None = None,
    held_out: bool = True,
    apart: bool = True,
    trace: bool = False,
    lock: Path | None = None,
    part: Part | None = None,
) -> Report:
    """Do what is missing of a suite and compute its boards.

    Args:
        executor: who does the tasks; this process by default.
        held_out: whether every set of surrogates must leave a target held out, where the goal asks for it.
        apart: whether building surrogates on images that are attacked is refused.
        trace: whether to keep what happened at every step of the attacks.
        lock: a file that pins the models and data, see `advens.benchmarks.pins`; it is recorded.
        part: which of several processes that share the run this one is; none of them computes boards.

    Raises:
        InputError: the suite, a model or the data cannot be used or are not those of the lock, the directory
            is in use, cannot be written or holds another suite. Finished cells stay.
        RunError: what the rest depends on failed.
    """
    pins = None if lock is None else held(suite, lock)
    run = Runner(executor or create_executor(), progress or Progress(), held_out, apart, trace, pins, part)
    return run.of(suite, Path(directory))


GOALS: dict[str, Goal] = {**ATTACK_GOALS, defense_goal.DEFENSE.name: defense_goal.DEFENSE}


def goal_of(suite: AnySuite) -> Goal:
    """What a suite is run for."""
    return GOALS[suite.goal]


def shown_of(suite: AnySuite) -> str:
    """The board that is printed in the end; models that are lines of no table have no `study`."""
    lineless = isinstance(suite, DefenseSuite) and not suite.defenses
    return "defenses" if lineless else goal_of(suite).shown


@dataclass
class Runner:
    """How suites are run; see `run_suite`."""

    executor: Executor
    progress: Progress
    held_out: bool = True
    apart: bool = True
    trace: bool = False
    pins: Mapping[str, Any] | None = None
    part: Part | None = None

    @singledispatchmethod
    def of(self, suite: AnySuite, directory: Path) -> Report:
        """Do what is missing of a suite."""
        raise TypeError(type(suite))

    @of.register
    def _attacks(self, suite: Suite, directory: Path) -> Report:
        store = RunStore(directory)
        agree(store.suite, suite)  # before anything is built for a run that will be refused
        data = find_data(suite.source)
        built, histories = self.built(suite, data)
        plan = make_plan(suite, data, built, held_out=self.held_out)
        if self.part is not None:
            with store.share():
                with store.alone():
                    self._begin(store, plan, suite, data, histories)
                    self._forget_missing(plan, store)
                return self.complete_part(plan, store)
        with store.lock(), _nothing_of_a_mistake(store):
            whole = self._begin(store, plan, suite, data, histories)
            return self.complete(plan, store, whole)

    def _begin(
        self, store: RunStore, plan: Plan, suite: Suite, data: Dataset,
        histories: Mapping[tuple[str, int], History],
    ) -> Suite:  # fmt: skip
        """Write down what will be done; all that the directory holds, with what earlier runs put there."""
        whole = agree(store.suite, suite)
        write_bytes(store.suite, whole.toml().encode())
        self.record(store, plan, {suite.source: data.digest})
        keep_histories(store, histories)
        return whole

    @of.register
    def _defenses(self, suite: DefenseSuite, directory: Path) -> Report:
        if self.part is not None:
            raise InputError(
                f"suite '{suite.name}' trains and measures models (goal = \"{suite.goal}\"), which is "
                "not done in parts; run it without --part"
            )
        store = RunStore(directory)
        suite = agree(store.suite, suite)
        defense_goal.check(suite)
        for source in (suite.data, *([suite.training.data] if suite.training else [])):
            find_data(source)
        lines, trained = self._trained(suite)
        names = defense_goal.models_of(suite, lines, trained)
        defense_goal.refuse_known(names, suite.surrogates)
        parts = defense_goal.parts_of(suite, names)
        for part in parts.values():
            outline(part, held_out=False)  # mistakes first
        report = Report(directory)
        with store.lock():
            write_bytes(store.suite, suite.toml().encode())
            write_bytes(store.path("trial.json"), defense_goal.trial(suite))
            for number, (folder, part) in enumerate(parts.items(), 1):
                progress = self.progress.of(f"{folder} ({number} of {len(parts) + 1} parts)")
                report.add(
                    replace(self, progress=progress, held_out=False).of(part, store.path(folder))
                )
            if report.failures:
                return report
            last = self.progress.of(f"members ({len(parts) + 1} of {len(parts) + 1} parts)")
            self._measured(suite, lines, trained, store, last)
            write_boards(store, suite)
        return report

    def _trained(self, suite: DefenseSuite) -> tuple[list[Line], dict[Train, str]]:
        """Train the defenses, then the controls, whose epochs follow from the compute that was counted."""
        lines = defense_goal.lines_of(suite)
        tasks = defense_goal.trainings(lines)
        trained: dict[Train, str] = dict(zip(tasks, self.first("training", tasks), strict=True))
        lines = with_controls(suite, lines, trained)
        if more := [task for task in defense_goal.trainings(lines) if task not in trained]:
            trained |= zip(more, self.first("training controls", more), strict=True)
        return lines, trained

    def complete(self, plan: Plan, store: RunStore, suite: Suite) -> Report:
        """Craft the cells that are missing, evaluate the pairs that are missing, compute the boards.

        Args:
            plan: of this run.
            store: locked.
            suite: all that the directory holds, with what earlier runs put there.
        """
        report, goal = Report(store.directory), goal_of(suite)
        worker_cache.cache_clear()  # models and data may have changed since an earlier run of this process
        due: tuple[Cell, ...] | None = None
        while due != (rounds := due_rounds(plan, store)).cells:  # what is done may make others due
            due, whole = rounds.cells, plan.extended(rounds.cells)
            if plan.rounds:
                save_plan(whole, plan_path(store), rounds.undecided)
            report.cells = len(whole.cells)
            self._forget_missing(whole, store)
            self._cells_of(whole, store, report)
        if plan.rounds:
            save_plan(plan.extended(due), plan_path(store), rounds.undecided)
        compared = self._compared(store, suite, report)
        digest = settings_digest(suite)
        current = all(suite_digest(store.directory, name) == digest for name in goal.boards)
        if store.has_rows() and (report.crafted or report.evaluated or compared or not current):
            frames = write_boards(store, suite)
            report.warnings += doubtful(frames[goal.shown])
        report.warnings += silent_lines(store.read_cells()) if report.crafted else []
        if "sanity" in goal.given:
            cells = {cell.key: cell for cell in (*plan.cells, *readable_cells(store))}
            checks = tasks_of(suite, cells.values())
            report.unsound += self._checked(checks, store, suite.sanity is False)
        return report

    def complete_part(self, plan: Plan, store: RunStore) -> Report:
        """Do a part of the cells and pairs that are missing, and then what is left of those of other parts.

        It ends when all that is left is at hand in other parts that are alive. Boards are not computed.

        Args:
            plan: of this run.
            store: shared.
        """
        report = Report(store.directory)
        worker_cache.cache_clear()  # as above
        while True:
            rounds = due_rounds(plan, store)
            whole = plan.extended(rounds.cells)
            if plan.rounds:
                with store.alone():
                    save_plan(whole, plan_path(store), rounds.undecided)
            report.cells = len(whole.cells)
            before = report.crafted + report.evaluated
            left = self._cells_of(whole, store, report)
            if report.crafted + report.evaluated > before:
                continue
            if not left:
                return report
            held = store.claims()
            if held and not store.release(held) and store.claims() == held:
                return report

    def _cells_of(self, plan: Plan, store: RunStore, report: Report) -> int:
        """Craft and evaluate what is missing of the cells of a plan, but for what failed before.

        Returns how many tasks that were.
        """
        shares = [list(plan.cells)] if self.part is None else self.part.ordered(plan.cells)
        there, tasks = store.listing(), 0
        missing = self._missing(plan, store, there)
        for depth in by_depth(plan.cells, missing):
            ready = {cell.key for cell in depth if not cell.after or cell.after in there.images}
            crafts = list(self._crafts(plan, shares, ready, store, report))
            tasks += len(crafts)
            self._craft(crafts, store, report)
            there = store.listing()
        evaluations = self._evaluations(plan, shares, there, store, report)
        self._evaluate(evaluations, store, report)
        return tasks + len(evaluations)

    def _missing(self, plan: Plan, store: RunStore, there: Listing) -> set[str]:
        """The cells of a plan that are not crafted."""
        return {cell.key for cell in plan.cells if not self._crafted(there, store, cell)}

    def _forget_missing(self, plan: Plan, store: RunStore) -> None:
        """Remove what will not be true any more once what is missing is done."""
        there = store.listing()
        missing = self._missing(plan, store, there)
        if missing or any(True for _ in plan.pending(there)):
            _forget(store, missing, goal_of(plan.suite), there)

    def _crafts(
        self, plan: Plan, shares: Sequence[Sequence[Cell]], ready: set[str], store: RunStore, report: Report
    ) -> Iterator[Craft]:
        folder, suite, shared = str(store.directory.absolute()), plan.suite, self.part is not None
        failed, noted = _failed(plan, report), _noted(store)
        for number, cells in enumerate(shares):
            for cell in cells:
                left = cell.key in ready and cell.key not in failed
                if left and not (number and cell.key in noted):  # of others: their parts try again
                    yield Craft(folder, cell, suite.batch_size, self.trace, suite.store, shared)

    def _evaluations(
        self, plan: Plan, shares: Sequence[Sequence[Cell]], there: Listing, store: RunStore, report: Report
    ) -> list[Evaluate]:
        failed, noted = _failed(plan, report), _noted(store)
        pending = {
            cell.key: targets for cell, targets in plan.pending(there)
            if cell.key in there.images and cell.key not in failed
        }  # fmt: skip
        if not pending:
            return []
        size = opened(plan.suite.source).size
        seconds, found = pass_seconds(plan.targets, size, self.executor.device), []
        for number, cells in enumerate(shares):
            left = (
                (cell, tuple(
                    name for name in pending.get(cell.key, ())
                    if not number or f"{cell.key}.{plan.keys[name]}" not in noted
                ))
                for cell in cells
            )  # fmt: skip
            groups = grouped((each for each in left if each[1]), seconds, size or USUAL)
            found += groups[::-1] if number else groups
        return [
            Evaluate(
                str(store.directory.absolute()), group.cells,
                tuple(Target(name, plan.keys[name], plan.cards[name]) for name in group.targets),
                plan.suite.batch_size,
                self.part is not None,
            )
            for group in found
        ]  # fmt: skip

    def built(self, suite: Suite, data: Dataset) -> tuple[Sets, Mapping[tuple[str, int], History]]:
        """The surrogate sets that a suite builds, by set and seed; what the cache holds stays as it is.

        Beside them how they came about, by set and by the seed that each was built with.
        """
        wanted = built_sets(suite)
        if not wanted:
            return {}, {}
        outline(suite, self.held_out)  # mistakes first
        if self.apart:
            refuse_shared_images(wanted, data)
        seeds = {
            name: suite.seeds if each.seed is None else [each.seed] for name, each in wanted.items()
        }
        tasks = [Build(name, each, seed) for name, each in wanted.items() for seed in seeds[name]]
        done = self.first("building", tasks)
        made = {(task.name, task.seed): each for task, (each, _) in zip(tasks, done, strict=True)}
        sets = {
            (name, seed): made[name, seed if each.seed is None else each.seed]
            for name, each in wanted.items() for seed in suite.seeds
        }  # fmt: skip
        return sets, {(task.name, task.seed): rows for task, (_, rows) in zip(tasks, done, strict=True)}

    def outcomes(self, what: str, tasks: Sequence[T]) -> Iterator[tuple[T, Any]]:
        """Do tasks; each with what it returned, or with the `RunError` that it failed with."""
        with (
            self.progress.task(what, len(tasks)) as advance,
            closing(self.executor.execute(tasks)) as outcomes,
        ):
            for task, outcome in outcomes:
                yield task, outcome
                advance(task.title)

    def first(self, what: str, tasks: Sequence[Task]) -> list[Any]:
        """Do what there can be no plan without; what each task returned. Raises RunError when one fails."""
        found = {id(task): outcome for task, outcome in self.outcomes(what, tasks)}
        returned = [found[id(task)] for task in tasks]
        failed = [
            f"{t.title}: {o}"
            for t, o in zip(tasks, returned, strict=True)
            if isinstance(o, RunError)
        ]
        if failed:
            raise RunError(
                f"{what} failed in {len(failed)} cases ({failed[0]}); what is finished is kept"
            )
        return returned

    def _craft(self, tasks: Sequence[Craft], store: RunStore, report: Report) -> None:
        """Craft cells; failures are noted beside the cells."""
        for task, outcome in self.outcomes("crafting", tasks):
            failed = str(outcome) if isinstance(outcome, RunError) else None
            if outcome is not None:  # or else another part has it
                report.crafted += failed is None
                _note(store, report, task.cell.key, task.cell.key, task.title, failed)

    def _evaluate(self, tasks: Sequence[Evaluate], store: RunStore, report: Report) -> None:
        """Evaluate targets on cells; failures are noted beside the cells.

        What is left of a task whose worker was lost is done again pair by pair: one of them may be at fault.
        """
        lost: list[Evaluate] = []
        for task, outcome in self.outcomes("evaluating", tasks):
            if isinstance(outcome, RunError):
                there = store.listing()
                pairs = list(task.pairs)
                left = [pair for pair in pairs if not there.has(pair[0].key, pair[1].key)]
                report.evaluated += len(pairs) - len(left)
                if len(left) > 1:
                    lost += [replace(task, cells=(cell,), targets=(target,)) for cell, target in left]
                    continue
                outcome = [Pair(cell.key, target.key, str(outcome)) for cell, target in left]
            titles = {(cell.key, target.key): task.title_of(cell, target) for cell, target in task.pairs}
            for cell, key, failed in outcome:
                report.evaluated += failed is None
                _note(store, report, f"{cell}.{key}", cell, titles[cell, key], failed)
        if lost:
            self._evaluate(lost, store, report)

    def _crafted(self, there: Listing, store: RunStore, cell: Cell) -> bool:
        return cell.key in there.images and (
            not self.trace or trace_path(store, cell.key).is_file()
        )

    def _compared(self, store: RunStore, suite: Suite, report: Report) -> bool:
        """Compare the targets with the surrogates and with each other; whether there was anything to do."""
        path = store.directory / LIKENESS
        if not ATTACK_GOALS[suite.goal].held_out or not store.has_rows():
            return False
        if is_whole(path, "likeness") and not (report.crafted or report.evaluated):
            return False
        compared = Comparison.of(readable_cells(store), suite)
        given = {}
        tasks = [Answer(name, compared.source) for name in compared.models]
        for task, outcome in self.outcomes("comparing", tasks):
            if isinstance(outcome, RunError):
                report.warnings.append(
                    f"{task.name} was not compared with the other models: {outcome}"
                )
            else:
                given[task.name] = outcome
        write_likeness(store.directory, compared.table(given))
        return True

    def _checked(self, tasks: Sequence[CheckModel], store: RunStore, off: bool) -> list[str]:
        """Check the models that were not checked yet, and write the sanity report; what failed in it."""
        reports = {task: read_kept(store, task) for task in tasks}
        missing = [task for task, report in reports.items() if report is None]
        for task, outcome in self.outcomes("checking", missing) if missing else ():
            failed = isinstance(outcome, RunError)
            reports[task] = unmeasured(outcome) if failed else outcome
            if not failed:
                keep(store, task, outcome)
        return write_report(store, {task: found for task, found in reports.items() if found}, off)

    def record(self, store: RunStore, plan: Plan, data: Mapping[str, str]) -> None:
        """Write what the run depends on, and its plan."""
        digests = {name: card.digest for name, card in plan.cards.items()}
        about = environment(self.executor.device, digests, data)
        if self.pins is not None:
            about["lock"] = self.pins
        write_bytes(store.environment, merged(store.environment, about))
        save_plan(plan, plan_path(store))

    def _measured(
        self, suite: DefenseSuite, lines: Sequence[Line], trained: Mapping[Train, str], store: RunStore,
        progress: Progress,
    ) -> None:  # fmt: skip
        """Measure every model, unless it was done, and write ``models``."""
        names = defense_goal.models_of(suite, lines, trained)
        tasks, models = defense_goal.measures(suite, names), BOARDS.get("models")
        paths = {task: measures_path(store, task) for task in tasks}
        missing = [task for task in tasks if not is_whole(paths[task], models.table)]
        for task, outcome in replace(self, progress=progress).outcomes("measuring", missing):
            if isinstance(outcome, RunError):
                raise RunError(f"{task.title}: {outcome}")
            write_models(paths[task], [outcome])
        measured = {
            task.name: read_table(paths[task], models.table).to_pylist()[0] for task in tasks
        }
        rows = defense_goal.rows_of(suite, lines, trained, measured)
        write_models(path_of(store.directory, models), rows)


def write_boards(store: RunStore, suite: AnySuite) -> dict[str, pd.DataFrame]:
    """Compute and write the boards of a suite that there are rows for."""
    rows, digest = Rows(store.directory), settings_digest(suite)
    found = {}
    for name in goal_of(suite).boards:
        with suppress(NoRows):
            found[name] = write_board(rows, name, suite_digest=digest)
    return found


def readable_cells(store: RunStore) -> Iterator[Cell]:
    """The cells that were crafted, without those whose files are damaged."""
    for name in store.cells():
        with suppress(RunError, InputError, ValueError):
            yield Cell.from_json(read_cell(store.examples_path(name)))


def _note(
    store: RunStore, report: Report, name: str, cell: str, title: str, failed: str | None
) -> None:
    """Note why a task failed, or remove what was noted of it before."""
    note = failure_path(store, name)
    if failed is None:
        note.unlink(missing_ok=True)
    else:
        report.failures.append((cell, f"{title}: {failed}"))
        write_bytes(note, json.dumps({"task": title, "error": failed}).encode())


def _noted(store: RunStore) -> set[str]:
    """The cells, and the pairs of cells and targets, of which a failure is noted."""
    return {path.stem for path in store.path("failures").glob("*.json")}


def _failed(plan: Plan, report: Report) -> set[str]:
    """The cells that failed, and those that go on from these."""
    failed = {cell for cell, _ in report.failures}
    for cell in plan.cells:  # one that goes on from another comes after it
        if cell.after in failed:
            failed.add(cell.key)
    return failed


@contextmanager
def _nothing_of_a_mistake(store: RunStore) -> Iterator[None]:
    """Take back the description of a new run whose first cell shows that it cannot be: a misspelt layer."""
    new = not store.suite.exists()
    try:
        yield
    except InputError:
        if new and not store.cells():
            for path in (store.suite, store.environment, plan_path(store)):
                path.unlink(missing_ok=True)
        raise


def _forget(store: RunStore, cells: set[str], goal: Goal, there: Listing) -> None:
    """Remove what will not be true any more: boards, and rows on images that are crafted again."""
    for path in (path_of(store.directory, BOARDS.get(name)) for name in goal.boards):
        with os_errors("remove", path):
            path.unlink(missing_ok=True)
    store.drop(cells, there)


def doubtful(board: pd.DataFrame) -> list[str]:
    """A line for every target that is wrong on most clean images: the usual sign of a bad setup."""
    name = "target" if "target" in board else "model"
    clean = board.groupby(name, observed=True)["clean_accuracy"].first()
    return [
        f"{target} is right on only {accuracy:.1%} of the clean images; "
        "check its weights, preprocessing and the labels"
        for target, accuracy in clean[clean < CLEAN_ENOUGH].items()
    ]


def refuse_shared_images(wanted: Mapping[str, BuiltSet], attacked: Dataset) -> None:
    """Raise InputError when a surrogate set would be built on images that are attacked."""
    for name, each in wanted.items():
        data = find_data(each.source)
        if shared := images_of_both(data, attacked):
            raise InputError(
                f"surrogates '{name}': {shared} of the images in '{data.name}' are attacked; "
                "build on others"
            )


def images_of_both(one: Dataset, other: Dataset) -> int:
    """How many images of ``one`` are in ``other``: of the same name, and of the same content."""
    place = {name: i for i, name in enumerate(other.sample_ids)}
    named = ((i, place[name]) for i, name in enumerate(one.sample_ids) if name in place)
    return sum(_content(one, i) == _content(other, j) for i, j in named)


def _content(data: Dataset, index: int) -> bytes:
    return b"".join(data.source.content(data.rows[index : index + 1]))


def measures_path(store: RunStore, task: Measure) -> Path:
    """Where the measurements of a model are kept, by everything that they depend on."""
    about = [
        find_model(task.name).digest,
        find_data(task.source).digest,
        task.images,
        task.eps,
        task.seed,
    ]
    return store.path("measures", f"{value_digest(about, 20)}.parquet")
