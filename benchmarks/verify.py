"""Checking a run from what it stored: bytes, ball, clean images, every prediction and every table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advens.attacks.expectation import is_randomized
from advens.attacks.whitebox.adaptive import recorded
from advens.benchmarks import defense_goal, tasks
from advens.benchmarks.cells import Cell
from advens.benchmarks.controls import with_controls
from advens.benchmarks.evaluate import stored_cell
from advens.benchmarks.executors import create_executor
from advens.benchmarks.export import png_names
from advens.benchmarks.goals import ATTACK_GOALS
from advens.benchmarks.histories import history_mismatches
from advens.benchmarks.likeness import likeness_mismatches
from advens.benchmarks.plan import Plan, Sets, make_plan, target_key
from advens.benchmarks.predictions import Member, logits_of, members_of, sample_rows
from advens.benchmarks.progress import Progress
from advens.benchmarks.recraft import Recrafted, Sample, recraft
from advens.benchmarks.rounds import due_rounds
from advens.benchmarks.runner import Runner, goal_of, measures_path
from advens.benchmarks.sanity import sanity_mismatches, tasks_of
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
from advens.benchmarks.worker_cache import WorkerCache
from advens.datasets import Batch, Dataset, find_data
from advens.errors import InputError, RunError, first_line
from advens.files import LinkError, open_regular
from advens.models import check_name, known_card, origins
from advens.results.boards.board import BOARDS, board_mismatches, path_of, suite_digest
from advens.results.boards.rows import Rows
from advens.results.store import Listing, Piece, RunStore, is_whole, read_cell, read_table, rows_of
from advens.results.store.images import changed, clean_digest, decoded, digests
from advens.threat import Threat

BORDERLINE = 1e-4
"""Two best logits may swap on another machine when they differ by less than this part of the spread of the
target's logits: of the median, over images, of their range. Such a prediction is no mismatch."""
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


@dataclass
class Audit:
    """What `verify` found.

    Args:
        cells, rows: how much was checked.
        borderline: predictions that differ where the two best logits nearly tie.
        mismatches: what does not follow from the stored bytes, one line each.
        recrafted: what came of crafting cells again, where that was asked for.
        notes: what is to be said beside, one line each.
    """

    cells: int = 0
    rows: int = 0
    borderline: int = 0
    mismatches: list[str] = field(default_factory=list)
    recrafted: Recrafted | None = None
    notes: list[str] = field(default_factory=list)


def verify_directory(
    directory: Path,
    device: str,
    progress: Progress | None = None,
    *,
    sample: Sample | None = None,
    suite: str | None = None,
) -> Iterator[tuple[str, Audit]]:
    """Verify a run, or a folder of runs with its tables.

    Args:
        sample: which cells to craft again; none without.
        suite: whose settings the run must have: a bundled one by name, or a file.

    Yields:
        The name of each run in a folder, or "" for the folder itself, with what was found.

    Raises:
        InputError: the run, its data or one of its models cannot be read, or there is no such suite.
    """
    bars, stores = progress or Progress(), runs_in(directory)
    held = None if suite is None else load(suite)
    for store in stores:
        inside = store.directory != directory
        audit = verify_run(store, device, bars, sample)
        if held is not None and not inside:
            _hold(store, held, audit)
        yield store.directory.name if inside else "", audit
    if inside:
        audit = Audit(mismatches=_folder(directory, device, bars))
        if held is not None:
            _hold(RunStore(directory), held, audit)
        yield "", audit


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


def _folder(directory: Path, device: str, progress: Progress) -> list[str]:
    """What is wrong with a folder of runs beside the runs."""
    store = RunStore(directory)
    try:
        suite = _stored_suite(store)
    except InputError as error:
        return [str(error)]
    if not isinstance(suite, DefenseSuite):
        return [f"{store.suite.name} is no suite of defenses, and here are several runs"]
    with store.lock():
        return verify_defenses(store, suite, device, progress)


def verify_run(
    store: RunStore, device: str, progress: Progress | None = None, sample: Sample | None = None
) -> Audit:
    """Re-check every stored example, prediction and table of a run of attacks.

    Args:
        sample: which cells to craft again; none without.

    Raises:
        InputError: the run, its data or one of its models cannot be read.
    """
    audit, cache, bars = Audit(), WorkerCache(device), progress or Progress()
    with store.lock():
        try:
            listing, there = store.listing(index=False), set(store.cells())
        except LinkError as error:  # nothing of such a run is read
            return Audit(mismatches=[str(error)])
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
        built = None if sample is None else _built_again(store, device, bars, audit)
        with bars.task("verifying", len(pieces)) as advance:
            reader, crafted = _Reader(store, cache), _Crafted()
            for name in sorted(pieces, key=lambda name: _shard(store, name)):
                try:
                    _cell(reader, name, pieces[name], audit, crafted)
                except (RunError, LinkError) as error:
                    audit.mismatches.append(str(error))
                advance(name)
        if audit.borderline > max(1.0, MOST_BORDERLINE * audit.rows):
            audit.mismatches.append(
                f"{audit.borderline} of {audit.rows} predictions differ where two logits nearly tie; "
                f"at most {MOST_BORDERLINE:.1%} of them may"
            )
        try:
            plan, data = _plan(store, cache, crafted, built)
        except InputError as error:
            audit.mismatches.append(str(error))
        else:
            rounds = due_rounds(plan, store)
            undecided = [cell for cell in rounds.undecided if cell.key in there]
            plan = plan.extended([*rounds.cells, *undecided])
            audit.mismatches += _suite(store, plan, data, crafted)
            audit.mismatches += history_mismatches(store, plan.suite, audit.notes)
            audit.mismatches += likeness_mismatches(
                store.directory, plan.suite, crafted.cells.values(), cache, audit.notes.append
            )
            if "sanity" in goal_of(plan.suite).given:
                checks = tasks_of(plan.suite, (*plan.cells, *crafted.cells.values()))
                audit.mismatches += sanity_mismatches(
                    store, plan.suite, checks, audit.notes, None if sample is None else device
                )
            if sample is not None:
                audit.recrafted = recraft(store, plan, sample, cache, bars)
                audit.mismatches += audit.recrafted.mismatches
        audit.mismatches += [
            *_boards(store),
            *_notes(store),
            *_pictures(store, crafted),
            *_traces(store, crafted),
        ]
    return audit


def _built_again(store: RunStore, device: str, progress: Progress, audit: Audit) -> Sets:
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
        how = "taken from the cache, by what they are built from" if cached else "built again"
        audit.notes.append(f"surrogates '{name}': {how}")
    runner = Runner(create_executor(device=device), progress, held_out=False, apart=False)
    return runner.built(suite, find_data(suite.source))[0]


def _cached(spec: str) -> bool:
    """Whether a model can be had without building it."""
    try:
        check_name(spec)
    except (InputError, TypeError):
        return False
    return True


@dataclass
class _Crafted:
    """What was read of the cells.

    Args:
        cells: by key.
        samples: the samples of a cell, by its key.
        images: sha256 of the images stored for a sample, by its name.
    """

    cells: dict[str, Cell] = field(default_factory=dict)
    samples: dict[str, set[str]] = field(default_factory=dict)
    images: dict[str, set[str]] = field(default_factory=dict)


def _damaged(store: RunStore, listing: Listing) -> Iterator[str]:
    """What is wrong with files of rows that say nothing of their rows."""
    for name in listing.damaged:
        try:
            store.refuse(name)
        except RunError as error:
            yield str(error)


class _Reader:
    """What is needed of a run more than once: a file of rows, and what targets predict on clean images.

    Kept are the last file, and the logits on one shard.
    """

    def __init__(self, store: RunStore, cache: WorkerCache) -> None:
        self.store, self.cache = store, cache
        self._file: tuple[str, Any] = ("", None)
        self._shard: tuple[str, tuple[int, int]] | None = None
        self._logits: dict[tuple[str, int | None], Tensor] = {}

    def rows(self, piece: Piece) -> Any:
        """The rows of a cell for a target. Raises RunError when their file is damaged."""
        if self._file[0] != piece.file:
            self._file = piece.file, read_table(self.store.path("samples", piece.file), "samples")
        return rows_of(self._file[1], piece)

    def logits(self, cell: Cell, target: str, member: Member) -> Tensor:
        """Logits (N, classes) on the clean images of the cell's shard."""
        if self._shard != (cell.data, cell.shard):
            self._shard, self._logits = (cell.data, cell.shard), {}
        key = target, member.place
        if key not in self._logits:
            pixels = self.cache.shard(cell.data, *cell.shard).pixels
            self._logits[key] = logits_of(self.cache, member.model, pixels, None)
        return self._logits[key]


def _shard(store: RunStore, name: str) -> list[int]:
    """The shard of a cell, to take cells of one shard together; what is broken comes first."""
    try:
        return list(read_cell(store.examples_path(name))["shard"])
    except (RunError, InputError, KeyError, TypeError):
        return []


def _cell(
    reader: _Reader, name: str, pieces: Sequence[Piece], audit: Audit, crafted: _Crafted
) -> None:
    store, cache = reader.store, reader.cache
    path = store.examples_path(name)
    said, cell = read_cell(path), stored_cell(store, name)
    try:
        threat = Threat(said["norm"], said["eps"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path.name}: its description is not that of a cell ({first_line(error)})"
        ) from error
    where = f"{path.name} ({cell.title})"
    if cell.key != name:
        raise RunError(f"{where}: its description does not hash to its name")
    if cell.goal not in ATTACK_GOALS:
        raise RunError(f"{where}: no cell has the goal '{cell.goal}'")
    if cell.params.get("threat") != {"norm": threat.norm, "eps": threat.eps}:
        raise RunError(f"{where}: the ball it names is not the attack's")
    if cache.data(cell.data).fingerprint(slice(*cell.shard)) != cell.fingerprint:
        raise RunError(f"{where}: the data are not those it was crafted on")
    for spec, digest in zip(cell.specs, cell.digests, strict=True):
        known = known_card(spec)
        if known is not None and known.digest != digest:
            raise RunError(
                f"{where}: the weights of its surrogates are not those it was crafted with"
            )
    models = cache.models.get(cell.specs)
    spent = (said.get("forwards_per_sample"), said.get("backwards_per_sample"))
    members = sum(_members(model) for model in models)
    if not ATTACK_GOALS[cell.goal].possible(spent, cell, members):
        raise RunError(f"{where}: the passes it claims are not those of the attack")
    if [model.digest for model in models] != list(cell.digests):
        raise RunError(f"{where}: the weights of its surrogates are not those it was crafted with")
    if dict.fromkeys(base for model in models for base in origins(model)) != dict.fromkeys(
        cell.bases
    ):
        raise RunError(f"{where}: its surrogates were not built from the models it names")
    table, batch = read_table(path, "examples"), cache.shard(cell.data, *cell.shard)
    if table.num_rows != len(batch.labels):
        raise RunError(f"{where}: its samples are not those of the shard")
    if said.get("clean_sha256") not in (None, clean_digest(batch.pixels.numpy())):
        raise RunError(f"{where}: the clean images decode to other pixels here than where it was crafted")
    try:
        pixels = torch.from_numpy(decoded(table, batch.pixels.numpy))
    except (InputError, RunError) as error:
        raise RunError(f"{where}: {error}") from error
    found = digests(pixels.numpy())
    target = cell.wanted(batch.labels, batch.target_labels, models[0].num_classes)
    audit.mismatches += [
        f"{where}: {what}" for what in _examples(table, pixels, found, batch, threat, cell, target)
    ]
    audit.cells += 1
    crafted.cells[name] = cell
    crafted.samples[name] = set(table.column("sample_id").to_pylist())
    for sample, digest in zip(table.column("sample_id").to_pylist(), found, strict=True):
        crafted.images.setdefault(sample, set()).add(digest)
    for piece in pieces:
        audit.mismatches += [f"{where}: {what}" for what in _rows(reader, cell, piece, table, pixels, audit)]


def _members(model: Any) -> int:
    return len(model.members) if is_randomized(model) else 1


def _examples(
    table: Any, pixels: Tensor, found: Sequence[str], clean: Batch, threat: Threat, cell: Cell,
    target: Tensor | None,
) -> Iterator[str]:  # fmt: skip
    """What is wrong with the stored images of one cell."""
    bytes_ = ("image", "difference")
    column = {name: table.column(name).to_pylist() for name in table.column_names if name not in bytes_}
    if column["sample_id"] != list(clean.sample_ids):
        yield "its samples are not those of the shard"
        return
    if column["label"] != clean.labels.tolist():
        yield "labels differ from the data's"
    if set(column["cell"]) != {cell.key}:
        yield "rows of another cell"
    for name in changed(table, found):
        yield f"the image of {name} was changed after it was written"
    excess = threat.excess(pixels, clean.pixels).numpy()
    for row in np.flatnonzero(excess > tasks.AUDIT_TOLERANCE):
        yield f"the image of {column['sample_id'][row]} leaves the ball by {excess[row]:.3g}"
    for norm, measured in tasks.measured(pixels, clean.pixels).items():
        if norm in column and not np.allclose(
            measured, np.array(column[norm], float), rtol=0, atol=1e-9
        ):
            yield f"stored {norm} norms are not those of the images"
    if column["target_label"] != (target.tolist() if target is not None else [None] * len(found)):
        yield "wanted classes are not those of the data and seed"


def _rows(
    reader: _Reader, cell: Cell, piece: Piece, table: Any, pixels: Tensor, audit: Audit
) -> Iterator[str]:
    """What is wrong with the stored rows of one cell and target."""
    stored, n, key = reader.rows(piece), len(pixels), piece.key
    if stored.num_rows == 0:
        yield f"no rows in {cell.key}.{key}"
        return
    target = stored.column("target")[0].as_py()
    known = known_card(target)
    if known is not None and target_key(target, known.digest) != key:
        yield f"the weights of {target} are not those that were evaluated"
        return
    model = reader.cache.models.get([target])[0]
    members = members_of(model)
    if stored.num_rows != n * len(members):
        yield f"{stored.num_rows} rows in {cell.key}.{key}, not {len(members)} for every image"
        return
    if target_key(target, model.digest) != key:
        yield f"the weights of {target} are not those that were evaluated"
        return
    audit.rows += stored.num_rows
    for k, member in enumerate(members):
        found = {
            "clean_pred": reader.logits(cell, target, member),
            "adv_pred": logits_of(reader.cache, member.model, pixels, None),
        }
        rows = stored.slice(k * n, n)
        said = {what: rows.column(what).to_numpy() for what in found}
        for what, logits in found.items():
            yield from _predictions(said[what], logits, f"{what} of {target}", audit)
        clean_pred, adv_pred = said["clean_pred"], said["adv_pred"]
        expected = sample_rows(
            cell, table, target, member, clean_pred, adv_pred, cell.knows(model), model.family
        )
        for name, values in expected.items():
            if name in rows.column_names and rows.column(name).to_pylist() != _plain(values):
                yield f"column '{name}' for {target} does not follow from the predictions"


def _predictions(given: np.ndarray, logits: Tensor, what: str, audit: Audit) -> Iterator[str]:
    """What is wrong with stored predictions, given the logits that the model has."""
    claimed, best = torch.from_numpy(given.copy()), logits.argmax(1)
    gap = logits.amax(1) - logits.gather(1, claimed.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    spread = (logits.amax(1) - logits.amin(1)).median()
    near = (best != claimed) & (gap < BORDERLINE * spread)
    audit.borderline += int(near.sum())
    wrong = int(((best != claimed) & ~near).sum())
    if wrong:
        yield f"{wrong} stored {what} are not what the model says"


def _plain(values: Any) -> list[Any]:
    if isinstance(values, np.ndarray):
        return values.tolist()  # type: ignore[no-any-return]
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def _plan(
    store: RunStore, cache: WorkerCache, crafted: _Crafted, built: Sets | None
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
            for cell in crafted.cells.values() if cell.surrogates in built_sets(suite)
        }  # fmt: skip
        data = cache.data(suite.source)
        with recorded(_stand_ins(crafted)):  # nothing is called to see which cells belong to a suite
            plan = make_plan(suite, data, named if built is None else built, held_out=False)
        return plan, data
    except InputError as error:
        raise InputError(f"the run does not follow from its {store.suite.name}: {error}") from error


def _stand_ins(crafted: _Crafted) -> dict[str, str]:
    """The stand-ins of adaptive attacks that cells name, and the digests of their files."""
    attacks = [cell.params for cell in crafted.cells.values() if cell.params.get("name") == "adaptive"]
    return {str(params.get("stand_in")): str(params.get("source")) for params in attacks}


def _suite(store: RunStore, plan: Plan, data: Dataset, crafted: _Crafted) -> Iterator[str]:
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
    for key in sorted(there & set(wanted) & set(crafted.cells)):
        if wanted[key] != crafted.cells[key]:
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


def _pictures(store: RunStore, crafted: _Crafted) -> Iterator[str]:
    """What is wrong with the PNG files of ``advens craft``: each shows an image stored for its sample."""
    folder = store.path("images")
    if not folder.is_dir():
        return
    from PIL import Image

    samples = {path: name for name, path in png_names(list(crafted.images)).items()}
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
        if found not in crafted.images.get(samples.get(name, ""), ()):
            yield f"images/{name} is no image that is stored for its sample"


def _traces(store: RunStore, crafted: _Crafted) -> Iterator[str]:
    """What is wrong with stored traces: they are of cells of the run, of their samples and surrogates."""
    for path in sorted(store.path("traces").glob("*")):
        cell = crafted.cells.get(path.stem)
        if cell is None or path.suffix != ".parquet":
            yield f"traces/{path.name} is of no cell of the run"
            continue
        try:
            table = read_table(store.path("traces", path.name), "traces")
        except (RunError, LinkError) as error:
            yield str(error)
            continue
        samples = set(table.column("sample_id").to_pylist())
        surrogates = set(table.column("surrogate").to_pylist()) - {None}
        if not samples <= crafted.samples[path.stem] or not surrogates <= set(cell.specs):
            yield f"traces/{path.name} is not of the samples and surrogates of its cell"


def verify_defenses(
    store: RunStore, suite: DefenseSuite, device: str, progress: Progress
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
    with progress.task("measuring", len(tasks_)) as advance:
        for task in tasks_:
            again[task.name] = task.do(device)
            path = measures_path(store, task)
            found += _measured(path, [again[task.name]], folder)
            advance(task.title)
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
