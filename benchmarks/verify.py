"""Checking a run from what it stored: bytes, ball, clean images, every prediction and every table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np

from advens.attacks.whitebox.adaptive import recorded
from advens.benchmarks import defense_goal
from advens.benchmarks.cells import Cell
from advens.benchmarks.checks import Check, Work, described, forget
from advens.benchmarks.controls import with_controls
from advens.benchmarks.export import png_names
from advens.benchmarks.histories import history_mismatches
from advens.benchmarks.journal import Journal
from advens.benchmarks.likeness import likeness_mismatches
from advens.benchmarks.plan import Plan, Sets, make_plan
from advens.benchmarks.recraft import Recrafted, Sample, craft_again
from advens.benchmarks.rounds import due_rounds
from advens.benchmarks.runner import Runner, goal_of, measures_path
from advens.benchmarks.sanity import sanity_mismatches, tasks_of
from advens.benchmarks.selection import Selection
from advens.benchmarks.status import Planned, plan_path, read_failures, read_plan, runs_in
from advens.benchmarks.suites import (
    AnySuite,
    DefenseSuite,
    Suite,
    built_sets,
    departures,
    load,
    parse,
    settings_digest,
    stored,
    suite_identity,
)
from advens.benchmarks.worker_cache import WorkerCache, cache_for
from advens.datasets import Dataset, find_data
from advens.errors import InputError, RunError, first_line
from advens.files import LinkError, open_regular
from advens.models import check_name
from advens.results.boards.board import BOARDS, board_mismatches, path_of, suite_digest
from advens.results.boards.rows import Rows
from advens.results.store import Listing, Piece, RunStore, is_whole, read_cell, read_table
from advens.results.store.listing import parquet_files

FORWARDS = 200_000
"""Forward passes in a task, at most: minutes on a GPU."""
TASKS = 4
"""Tasks for every worker, about, where there are several."""
MOST_BORDERLINE = 1e-3
"""Largest part of all predictions that may be borderline; a single one always may."""
MEASURED = 0.02
"""Relative difference of a defense's measurements that another machine may make."""
UNKNOWABLE = {
    "seconds": "how long crafting took",
    "device and version": "the devices, versions and commit that a run names",
    "crafting": "how an image was found, in cells that were not crafted again (--recraft)",
    "attempts": "seeds, settings and runs that were tried and not kept, and so a choice of the best of them",
    "comparison": "why these images, models and attacks were chosen; boards name them, and --suite holds a "
    "run to a bundled choice",
    "labels": "the labels that people give to attacks, sets and suites",
    "traces": "what a trace says of the steps of an attack",
    "failures": "why something failed",
}
"""What no check of the files can show, by name."""


@dataclass(frozen=True)
class Drawn:
    """The sample of its evaluations that a run was checked by.

    Args:
        size: as it was asked for: ``1%`` or ``200``.
        seed: from which it follows which ones they are.
        of: how many evaluations the run holds.
        evaluations: those that are drawn: cell, its attack and set, and the target, which is empty for a cell
            that was tried on none.
    """

    size: str
    seed: int
    of: int
    evaluations: tuple[tuple[str, str, str], ...]

    def line(self) -> str:
        """One line for people."""
        return (
            f"only a sample was checked: {len(self.evaluations)} of {self.of} evaluations "
            f"(--sample {self.size} --seed {self.seed})"
        )


@dataclass
class Audit:
    """What `verify` found.

    Args:
        cells, rows: how much was checked.
        borderline: predictions that differ where the two best logits nearly tie.
        mismatches: what does not follow from the stored bytes, one line each.
        recrafted: what came of crafting cells again, where that was asked for.
        drawn: the sample that was checked; None where everything was.
        notes: what is to be said beside, one line each.
    """

    cells: int = 0
    rows: int = 0
    borderline: int = 0
    mismatches: list[str] = field(default_factory=list)
    recrafted: Recrafted | None = None
    drawn: Drawn | None = None
    notes: list[str] = field(default_factory=list)


def verify_directory(
    directory: Path,
    work: Work,
    *,
    recraft: Sample | None = None,
    sample: Selection | None = None,
    suite: str | None = None,
    journal: bool = False,
    fresh: bool = False,
) -> Iterator[tuple[str, Audit]]:
    """Verify a run, or a folder of runs with its tables.

    Args:
        work: who does it.
        recraft: which cells to craft again; none without.
        sample: which evaluations to check; all without.
        suite: whose settings the run must have: a bundled one by name, or a file.
        journal: whether to keep what is found until the end, so that an interrupted verification goes on.
        fresh: whether to forget what an earlier one has kept.

    Yields:
        The name of each run in a folder, or "" for the folder itself, with what was found.

    Raises:
        InputError: the run, its data or one of its models cannot be read, or there is no such suite.
        RunError: a part could not be checked.
    """
    stores = runs_in(directory)
    held = None if suite is None else load(suite)
    try:
        for store in stores:
            inside = store.directory != directory
            audit = verify_run(store, work, recraft=recraft, sample=sample, journal=journal, fresh=fresh)
            if held is not None and not inside:
                _hold(store, held, audit)
            yield store.directory.name if inside else "", audit
        if inside:
            audit = Audit(mismatches=_folder(directory, work))
            if held is not None:
                _hold(RunStore(directory), held, audit)
            yield "", audit
    finally:
        forget()


def _stored_suite(store: RunStore) -> AnySuite:
    """The suite of a run. Raises InputError when it is missing or damaged."""
    if not store.suite.is_file():
        name = store.suite.name
        raise InputError(f"{name} is missing: nothing says which cells, targets or runs belong together")
    return stored(store.suite)


def _hold(store: RunStore, held: AnySuite, audit: Audit) -> None:
    """Hold a run to the settings of a suite."""
    about = suite_identity(held)
    name = f"suite '{about['name']}', version {about['version']}"
    audit.notes.append(f"held to {name}, settings {about['digest']}")
    try:
        suite = _stored_suite(store)
    except InputError:
        return  # what is wrong with the suite is said elsewhere
    lines, more = departures(suite, held)
    audit.mismatches += [f"not {name}: {line}" for line in lines]
    if more:
        audit.notes.append(f"beyond {name}: {', '.join(more)}")


def _folder(directory: Path, work: Work) -> list[str]:
    """What is wrong with a folder of runs beside the runs."""
    store = RunStore(directory)
    try:
        suite = _stored_suite(store)
    except InputError as error:
        return [str(error)]
    if not isinstance(suite, DefenseSuite):
        return [f"{store.suite.name} is no suite of defenses, and here are several runs"]
    with store.lock():
        return verify_defenses(store, suite, work)


def verify_run(
    store: RunStore,
    work: Work,
    *,
    recraft: Sample | None = None,
    sample: Selection | None = None,
    journal: bool = False,
    fresh: bool = False,
) -> Audit:
    """Re-check every stored example, prediction and table of a run of attacks, or a sample of the first two.

    Args:
        work, recraft, sample, journal, fresh: see `verify_directory`.

    Raises:
        InputError: the run, its data or one of its models cannot be read.
        RunError: a part could not be checked.
    """
    with store.lock():
        try:
            before = _files(store)
        except LinkError as error:  # nothing of such a run is read
            return Audit(mismatches=[str(error)])
        try:
            kept = Journal(store, work.device) if journal else None
            if kept is not None and fresh:
                kept.remove()
            audit = _audit(store, work, recraft, sample, kept)
        except (InputError, RunError) as error:
            if changed := _changes(store, before):
                raise RunError(f"{store.directory}: {changed}") from error
            raise
        if changed := _changes(store, before):
            audit.mismatches.append(changed)
        return audit


def _audit(
    store: RunStore, work: Work, recraft: Sample | None, sample: Selection | None, journal: Journal | None
) -> Audit:
    audit, cache = Audit(), cache_for(work.device, work.name)
    listing, there = store.listing(index=False), set(store.cells())
    pieces: dict[str, list[Piece]] = {cell: [] for cell in there}
    for piece in sorted(chain.from_iterable(listing.files.values()), key=lambda each: each.place):
        pieces.setdefault(piece.cell, []).append(piece)
    if not pieces and not listing.damaged:
        raise InputError(f"{store.directory} holds no finished cells yet")
    audit.mismatches += _damaged(store, listing)
    audit.mismatches += [
        f"{piece.file}: rows of a cell whose examples are missing"
        for cell in sorted(set(pieces) - there) for piece in pieces.pop(cell)
    ]  # fmt: skip
    built = None if recraft is None else _built_again(store, work, audit)
    crafted, broken = _described(store, sorted(pieces))
    drawn: set[tuple[str, str]] = set()
    if sample is not None:
        every, drawn = _units(pieces, crafted), sample.of(_units(pieces, crafted))
        audit.mismatches += [broken[name] for name in sorted(broken.keys() - {name for name, _ in drawn})]
        pieces = {
            name: [piece for piece in pieces[name] if (name, piece.key) in drawn]
            for name in sorted({name for name, _ in drawn})
        }
    _cells(store, work, pieces, audit, crafted, journal)
    if audit.borderline > max(1.0, MOST_BORDERLINE * audit.rows):
        audit.mismatches.append(
            f"{audit.borderline} of {audit.rows} predictions differ where two logits nearly tie; "
            f"at most {MOST_BORDERLINE:.1%} of them may"
        )
    names: dict[str, str] = {}
    try:
        plan, data = _plan(store, cache, crafted, built)
    except InputError as error:
        audit.mismatches.append(str(error))
    else:
        rounds = due_rounds(plan, store)
        undecided = [cell for cell in rounds.undecided if cell.key in there]
        plan = plan.extended([*rounds.cells, *undecided])
        names = {key: target for target, key in plan.keys.items()}
        audit.mismatches += _suite(store, plan, data, crafted)
        audit.mismatches += history_mismatches(store, plan.suite, audit.notes)
        audit.mismatches += likeness_mismatches(
            store.directory, plan.suite, crafted.values(), cache, audit.notes.append
        )
        if "sanity" in goal_of(plan.suite).given:
            checks = tasks_of(plan.suite, (*plan.cells, *crafted.values()))
            audit.mismatches += sanity_mismatches(
                store, plan.suite, checks, audit.notes, None if recraft is None else work.device
            )
        if recraft is not None:
            audit.recrafted = craft_again(store, plan, recraft, work)
            audit.mismatches += audit.recrafted.mismatches
    audit.mismatches += [
        *_boards(store),
        *_notes(store),
        *_pictures(store, crafted),
        *_traces(store, crafted),
    ]
    if sample is not None:
        titles = {name: cell.title for name, cell in crafted.items()}
        audit.drawn = Drawn(
            sample.text, sample.seed, len(every),
            tuple((name, titles.get(name, ""), names.get(key, key)) for name, key in sorted(drawn)),
        )  # fmt: skip
    if journal is not None:
        journal.remove()
    return audit


def _described(store: RunStore, names: Sequence[str]) -> tuple[dict[str, Cell], dict[str, str]]:
    """The cells that files of images describe, by name; and what is wrong with the other descriptions."""
    crafted: dict[str, Cell] = {}
    broken: dict[str, str] = {}
    for name in names:
        try:
            path = store.examples_path(name)
            crafted[name] = described(path, read_cell(path))[0]
        except (RunError, InputError) as error:
            broken[name] = str(error)
    return crafted, broken


def _files(store: RunStore) -> dict[str, tuple[int, int]]:
    """Size and time of every file of images and rows."""
    return {
        f"{folder}/{name}": about
        for folder in ("examples", "samples")
        for name, about in parquet_files(store.directory, folder).items()
    }


def _changes(store: RunStore, before: Mapping[str, tuple[int, int]]) -> str:
    """That files changed while they were read; empty when none did."""
    try:
        now = _files(store)
    except InputError as error:
        return str(error)
    changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
    if not changed:
        return ""
    return (
        f"{len(changed)} files changed while they were verified (first: {changed[0]}); "
        "verify the run again when nothing writes into it"
    )


def _units(
    pieces: Mapping[str, Sequence[Piece]], crafted: Mapping[str, Cell]
) -> dict[tuple[str, str], list[str]]:
    """The evaluations of a run by cell and key of the target, each with its attack, set and target.

    A cell without any has one with an empty key, so that its images can be drawn.
    """
    units: dict[tuple[str, str], list[str]] = {}
    for name, each in pieces.items():
        cell = crafted.get(name)
        for key in dict.fromkeys(piece.key for piece in each) or [""]:
            units[name, key] = [cell.attack if cell else "", cell.surrogates if cell else "", key]
    return units


def _cells(
    store: RunStore, work: Work, pieces: Mapping[str, Sequence[Piece]], audit: Audit,
    crafted: dict[str, Cell], journal: Journal | None,
) -> None:  # fmt: skip
    """Check cells with their rows; those that are not sound are taken out of what is crafted."""
    found = {} if journal is None else journal.found(pieces)
    if found:
        audit.notes.append(
            f"{len(found)} of {len(pieces)} cells were checked by an interrupted 'advens verify' of yours; "
            "--fresh checks them again"
        )
    order = sorted(pieces, key=lambda name: (_shard(crafted, name), name))
    tasks = [
        Check(str(store.directory), tuple((name, tuple(pieces[name])) for name in part), work.name)
        for part in _parts([name for name in order if name not in found], pieces, crafted, work.workers)
    ]
    for _, outcome in work.outcomes("verifying", tasks, lambda task: len(task.cells)):
        found |= {each.cell: each for each in outcome}
        if journal is not None:
            journal.add(outcome, pieces)
    audit.mismatches += dict.fromkeys(chain.from_iterable(found[name].mismatches for name in order))
    audit.cells += sum(each.sound for each in found.values())
    audit.rows += sum(each.rows for each in found.values())
    audit.borderline += sum(each.borderline for each in found.values())
    for name, each in found.items():
        if not each.sound:
            crafted.pop(name, None)


def _parts(
    names: Sequence[str], pieces: Mapping[str, Sequence[Piece]], crafted: Mapping[str, Cell], workers: int
) -> Iterator[list[str]]:
    """Cells for one task each: of one shard, with so many forward passes, and some tasks for every worker."""
    most = len(names) if workers == 1 else max(1, len(names) // (TASKS * workers))
    for _, together in groupby(names, key=lambda name: _shard(crafted, name)):
        part: list[str] = []
        forwards = 0
        for name in together:
            cost = sum(piece.stop - piece.start for piece in pieces[name])
            if part and (len(part) >= most or forwards + cost > FORWARDS):
                yield part
                part, forwards = [], 0
            part.append(name)
            forwards += cost
        yield part


def _shard(crafted: Mapping[str, Cell], name: str) -> tuple[str, tuple[int, ...]]:
    """The shard of a cell, to take cells of one shard together; what is broken comes first."""
    cell = crafted.get(name)
    return ("", ()) if cell is None else (cell.data, tuple(cell.shard))


def _built_again(store: RunStore, work: Work, audit: Audit) -> Sets:
    """The surrogate sets that the suite of a run builds: built again, unless the cache holds them."""
    try:
        suite = _stored_suite(store)
    except InputError:
        return {}  # what is wrong with the suite is said elsewhere
    if not isinstance(suite, Suite) or not (wanted := built_sets(suite)):
        return {}
    named: dict[str, set[str]] = {}
    for cell in store.cells():
        with suppress(RunError):
            said = read_cell(store.examples_path(cell))
            named.setdefault(said["surrogates"], set()).update(said["surrogate_specs"])
    for name in wanted:
        cached = all(_cached(spec) for spec in named.get(name, ["?"]))
        made = "taken from the cache, by what they are built from" if cached else "built again"
        audit.notes.append(f"surrogates '{name}': {made}")
    runner = Runner(work.executor, work.progress, held_out=False, apart=False)
    return runner.built(suite, find_data(suite.source))[0]


def _cached(spec: str) -> bool:
    """Whether a model can be had without building it."""
    try:
        check_name(spec)
    except (InputError, TypeError):
        return False
    return True


def _damaged(store: RunStore, listing: Listing) -> Iterator[str]:
    """What is wrong with files of rows that say nothing of their rows."""
    for name in listing.damaged:
        try:
            store.refuse(name)
        except RunError as error:
            yield str(error)


def _plan(
    store: RunStore, cache: WorkerCache, crafted: Mapping[str, Cell], built: Sets | None
) -> tuple[Plan, Dataset]:
    """The plan of a run's suite, and its data.

    Args:
        built: the models of the sets that are built; without, those that the cells name.

    Raises:
        InputError: there is no suite, or it gives no plan.
    """
    suite = _stored_suite(store)
    try:
        if isinstance(suite, DefenseSuite):
            raise InputError("it is a suite of defenses, and here are cells of attacks")
        named = {
            (cell.surrogates, cell.seed): cell.specs
            for cell in crafted.values() if cell.surrogates in built_sets(suite)
        }  # fmt: skip
        data = cache.data(suite.source)
        with recorded(_stand_ins(crafted)):  # nothing is called to see which cells belong to a suite
            plan = make_plan(suite, data, named if built is None else built, held_out=False)
        return plan, data
    except InputError as error:
        raise InputError(f"the run does not follow from its {store.suite.name}: {error}") from error


def _stand_ins(crafted: Mapping[str, Cell]) -> dict[str, str]:
    """The stand-ins of adaptive attacks that cells name, and the digests of their files."""
    attacks = [cell.params for cell in crafted.values() if cell.params.get("name") == "adaptive"]
    return {str(params.get("stand_in")): str(params.get("source")) for params in attacks}


def _suite(store: RunStore, plan: Plan, data: Dataset, crafted: Mapping[str, Cell]) -> Iterator[str]:
    """What is wrong between the plan of a run's suite and its cells, samples, plan and environment."""
    wanted = {cell.key: cell for cell in plan.cells}
    there = set(store.cells())
    if missing := [cell for key, cell in wanted.items() if key not in there]:
        yield (
            f"{len(missing)} of the {len(wanted)} cells of {store.suite.name} are missing "
            f"(the first is {missing[0].title}); 'advens run' on it completes the run"
        )
    beyond = {cell.key for cell in plan.rounds}
    for key in sorted(there - set(wanted)):
        why = ": it follows a round that broke little enough to be the last" if key in beyond else ""
        yield f"{key}.parquet is no cell of {store.suite.name}{why}"
    for key in sorted(there & set(wanted) & set(crafted)):
        if wanted[key] != crafted[key]:
            yield f"{key}.parquet ({wanted[key].title}): its description is not that of the plan"
    pairs = {(cell.key, plan.keys[target]): target for target, cell in plan.pairs()}
    evaluated = store.evaluated()
    if unseen := [
        target for pair, target in pairs.items() if pair[0] in there and pair not in evaluated
    ]:
        yield f"{len(unseen)} evaluations of {store.suite.name} are missing (the first is {unseen[0]})"
    for cell, key in sorted(evaluated - set(pairs)):
        yield f"{cell}.{key}: samples that {store.suite.name} does not ask for"
    yield from _planned(store, plan)
    yield from _environment(store, plan, {plan.suite.source: data.digest})


def _planned(store: RunStore, plan: Plan) -> Iterator[str]:
    """What is wrong with the list of cells that ``advens status`` reads."""
    if not plan_path(store).is_file():
        yield f"{plan_path(store).name} is missing"
        return
    try:
        found = read_plan(plan_path(store))
    except InputError as error:
        yield str(error)
        return
    wanted = Planned.of(plan)
    listed = [found.cells, found.targets, found.own]
    given = [wanted.cells, wanted.targets, wanted.own]
    known = set(store.cells()) & set(wanted.cells)
    shown = {key for _, key in store.evaluated()} & set(wanted.targets.values())
    unlisted = known - set(found.cells) or shown - set(found.targets.values())
    strange = set(found.rounds) - set(wanted.rounds) or any(
        not part.items() <= whole.items() for part, whole in zip(listed, given, strict=True)
    )
    if unlisted or strange:
        yield f"{plan_path(store).name} is not what {store.suite.name} gives"


def _environment(store: RunStore, plan: Plan, data: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with the digests that a run says it depended on."""
    name = store.environment.name
    if not store.environment.is_file():
        yield f"{name} is missing"
        return
    try:
        said = json.loads(store.environment.read_text())
        models, known = dict(said["models"]), dict(said["data"])
    except (ValueError, KeyError, TypeError, RecursionError):
        yield f"{name} is damaged"
        return
    for model, card in plan.cards.items():
        if models.pop(model, None) != card.digest:
            yield f"{name}: the digest of {model} is not that of its weights"
    for source, digest in data.items():
        if known.pop(source, None) != digest:
            yield f"{name}: the digest of {source} is not that of the data"
    for strange in (*models, *known):
        yield f"{name} names {strange}, which the run does not use"


def _boards(store: RunStore) -> Iterator[str]:
    """What is wrong with the tables of a run: they are those of its goal, and follow from the rows."""
    try:
        suite = _stored_suite(store)
    except InputError:
        return  # what is wrong with the suite is said elsewhere
    rows, goal, digest = Rows(store.directory), goal_of(suite), settings_digest(suite)
    for name in BOARDS.names():
        path = path_of(store.directory, BOARDS.get(name))
        if name in goal.boards:
            yield from board_mismatches(rows, name)
            if is_whole(path, BOARDS.get(name).table) and suite_digest(store.directory, name) != digest:
                yield f"{path.name} names another suite than {store.suite.name}"
        elif path.exists() and name not in goal.given:
            yield f"{path.name} is no table of this kind of run"


def _notes(store: RunStore) -> Iterator[str]:
    """What is wrong with the notes on failures: a finished cell has none."""
    try:
        failures = read_failures(store)
    except InputError as error:
        yield str(error)
        return
    evaluated = store.evaluated()
    for name in failures:
        cell, _, key = name.partition(".")
        finished = (cell, key) in evaluated if key else cell in store.cells()
        if finished:
            yield f"failures/{name}.json notes a failure of what is finished"


def _pictures(store: RunStore, crafted: Mapping[str, Cell]) -> Iterator[str]:
    """What is wrong with the PNG files of ``advens craft``: each shows an image stored for its sample."""
    folder = store.path("images")
    if not folder.is_dir():
        return
    from PIL import Image

    images: dict[str, set[str]] = {}
    for cell in crafted:
        for sample, digest in zip(*_columns(store, cell, "sample_id", "sha256"), strict=True):
            images.setdefault(sample, set()).add(digest)
    samples = {path: name for name, path in png_names(list(images)).items()}
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            continue
        name = path.relative_to(folder).as_posix()
        try:
            with open_regular(store.path("images", *Path(name).parts)) as file, Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
        except (OSError, ValueError, Image.DecompressionBombError) as error:  # of InputError, too
            yield f"images/{name} cannot be read: {first_line(error)}"
            continue
        found = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
        if found not in images.get(samples.get(name, ""), ()):
            yield f"images/{name} is no image that is stored for its sample"


def _traces(store: RunStore, crafted: Mapping[str, Cell]) -> Iterator[str]:
    """What is wrong with stored traces: they are of cells of the run, of their samples and surrogates."""
    for path in sorted(store.path("traces").glob("*")):
        cell = crafted.get(path.stem)
        if cell is None or path.suffix != ".parquet":
            yield f"traces/{path.name} is of no cell of the run"
            continue
        try:
            table = read_table(store.path("traces", path.name), "traces")
        except (RunError, LinkError) as error:
            yield str(error)
            continue
        samples = set(table.column("sample_id").to_pylist())
        (known,) = _columns(store, path.stem, "sample_id")
        surrogates = set(table.column("surrogate").to_pylist()) - {None}
        if not samples <= set(known) or not surrogates <= set(cell.specs):
            yield f"traces/{path.name} is not of the samples and surrogates of its cell"


def _columns(store: RunStore, cell: str, *names: str) -> list[list[Any]]:
    """Columns of the images of a cell; empty ones where the file is damaged, which is said elsewhere."""
    try:
        table = read_table(store.examples_path(cell), "examples")
    except (RunError, InputError):
        return [[] for _ in names]
    return [table.column(name).to_pylist() for name in names]


def verify_defenses(
    store: RunStore, suite: DefenseSuite, work: Work
) -> list[str]:
    """What is wrong with the tables of a folder of defenses; the runs in it are verified one by one.

    Every model is measured again.
    """
    found, folder = [], store.directory
    trial = store.path("trial.json")
    if not trial.is_file() or trial.read_bytes() != defense_goal.trial(suite):
        found.append(f"{trial.name} is not what {store.suite.name} gives")
    try:
        lines = defense_goal.lines_of(suite)
        trained = {task: task.trained_name() for task in defense_goal.trainings(lines)}
        lines = with_controls(suite, lines, trained)
        trained |= {task: task.trained_name() for task in defense_goal.trainings(lines)}
        names = defense_goal.models_of(suite, lines, trained)
        defense_goal.refuse_known(names, suite.surrogates)
        parts = defense_goal.parts_of(suite, names)
    except InputError as error:
        return [
            *found,
            f"the folder does not follow from its {store.suite.name}: {first_line(error)}",
        ]
    for name, part in parts.items():
        path = store.path(name, "suite.toml")
        if not path.is_file() or _settings(parse(path.read_text(), str(path))) != _settings(part):
            found.append(f"{name}/suite.toml is not what {store.suite.name} gives")
    found += [
        f"{path.parent.name}/ is no run that {store.suite.name} asks for"
        for path in sorted(folder.glob("*/suite.toml"))
        if path.parent.name not in parts
    ]
    again: dict[str, dict[str, Any]] = {}
    tasks_ = defense_goal.measures(suite, names)
    for task, row in work.outcomes("measuring", tasks_):
        again[task.name] = row
    for task in tasks_:
        found += _measured(measures_path(store, task), [again[task.name]], folder)
    kept = {measures_path(store, task).name for task in tasks_}
    found += [
        f"measures/{path.name} measures no model of the suite"
        for path in sorted(store.path("measures").glob("*.parquet"))
        if path.name not in kept
    ]
    found += _measured(
        path_of(folder, BOARDS.get("models")), [*defense_goal.rows_of(suite, lines, trained, again)], folder
    )
    return [*found, *_boards(store)]


def _settings(suite: AnySuite) -> str:
    """What the results of a run in a folder depend on: not its sanity report or how its images are stored."""
    return suite.model_copy(update={"sanity": True, "store": "differences"}).toml()


def _measured(path: Path, expected: Sequence[Mapping[str, Any]], folder: Path) -> list[str]:
    """What is wrong with stored measurements; those of networks may differ a little on another machine."""
    name = path.relative_to(folder)
    if not path.is_file():
        return [f"{name} is missing"]
    try:
        rows = read_table(path, BOARDS.get("models").table).to_pylist()
    except (RunError, InputError) as error:
        return [str(error)]
    if len(rows) != len(expected):
        return [f"{name} has {len(rows)} rows, not {len(expected)}"]
    return [
        f"{name}: '{key}' of {row['defense']} is not what was measured again"
        for row, wanted in zip(rows, expected, strict=True)
        for key in row
        if not _close(key, row[key], wanted.get(key))
    ]


def _close(key: str, stored: Any, again: Any) -> bool:
    if stored is None or again is None:
        return stored is again
    if key in ("pairs", "rates", "counted"):
        one, other = np.array(json.loads(stored), float), np.array(json.loads(again), float)
        return one.shape == other.shape and bool(
            np.allclose(one, other, rtol=MEASURED, atol=MEASURED)
        )
    if isinstance(stored, float):
        return bool(np.isclose(stored, again, rtol=MEASURED))
    return bool(stored == again)
