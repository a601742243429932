"""Reduced precision in a run: suites whose models compute in it, and how well that agrees with float32.

A model in reduced precision is a model of its own (`advens.models.computed`), so that rows and cells say what
they were computed with, and rows of two precisions are never mixed. How much it matters is measured on images
of the run: see `Agreement`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from advens.benchmarks.cells import Cell
from advens.benchmarks.executors import Executor
from advens.benchmarks.predictions import members_of, predict
from advens.benchmarks.progress import Progress
from advens.benchmarks.suites import AnySuite, BuiltSet, Suite, expanded
from advens.benchmarks.tasks import images_of, stored_pixels
from advens.benchmarks.worker_cache import WorkerCache, worker_cache
from advens.errors import InputError, RunError
from advens.files import write_bytes
from advens.models import describe
from advens.models.computed import computed, plain
from advens.results.statistics import wilson
from advens.results.store import RunStore, read_cell, read_table

FILE = "agreement.json"


def in_precision(suite: AnySuite, targets: str, surrogates: str) -> AnySuite:
    """The suite with its targets and its surrogates in a precision each.

    Raises:
        InputError: a suite that is not one of transfer, or a set of surrogates that is built.
    """
    if targets == surrogates == "float32":
        return suite
    if not isinstance(suite, Suite) or suite.goal != "transfer":
        raise InputError(
            "--precision is for suites with goal = 'transfer'; in others, name models computed:bf16?of=MODEL"
        )
    changes: dict[str, Any] = {}
    if targets != "float32":
        changes["targets"] = [computed(name, targets) for name in expanded(suite.targets)]
    if surrogates != "float32":
        sets = suite.surrogates.items()
        changes["surrogates"] = {name: _reduced(name, each, surrogates) for name, each in sets}
    return suite.model_copy(update=changes)


def _reduced(name: str, models: Any, precision: str) -> list[str]:
    if isinstance(models, BuiltSet):
        raise InputError(f"surrogates '{name}' are built, in float32; leave --craft-precision out")
    return [computed(each, precision) for each in expanded([models] if isinstance(models, str) else models)]


@dataclass(frozen=True)
class Agreement:
    """How images or predictions in reduced precision agree with those in float32.

    Args:
        what: ``evaluation`` of a target, or ``crafting`` of an attack.
        of: the target, or the attack on its set of surrogates.
        cell: the cell whose images were looked at.
        predictions: how many were compared: on clean and adversarial images; when crafting, of all targets on
            images of both kinds.
        equal: the share of equal predictions.
        outcomes: the share of images that succeed in both or in neither.
        success, exact: success rates in reduced precision and in float32.
        low, high: 95 % Wilson interval of ``exact``.
    """

    what: str
    of: str
    cell: str
    predictions: int
    equal: float
    outcomes: float
    success: float
    exact: float
    low: float
    high: float

    @property
    def within(self) -> bool:
        """Whether the success rate is within the interval of float32."""
        return self.low <= self.success <= self.high

    def line(self) -> str:
        """One line for people."""
        return (
            f"{self.what} of {self.of}: {self.equal:.1%} of {self.predictions} predictions and "
            f"{self.outcomes:.1%} of outcomes as in float32; success {self.success:.1%}, in float32 "
            f"{self.exact:.1%} [{self.low:.1%}–{self.high:.1%}]{'' if self.within else ': NOT WITHIN'}"
        )


@dataclass(frozen=True)
class Compare:
    """Compare a cell's images, or what a target predicts on them, with float32.

    Args:
        directory: of the run.
        cell: the cell.
        targets: the one target to compare; when crafting, all of them.
        crafting: whether the images are crafted again in float32.
        batch_size: images at once.
    """

    directory: str
    cell: Cell
    targets: tuple[str, ...]
    crafting: bool
    batch_size: int | None

    @property
    def title(self) -> str:
        return self.cell.title if self.crafting else self.targets[0]

    @property
    def what(self) -> tuple[str, str]:
        """What the result is told apart by."""
        return "crafting" if self.crafting else "evaluation", self.title

    def do(self, device: str) -> Agreement:
        """Predicts, and crafts where that is asked for."""
        cache, store = worker_cache(device), RunStore(self.directory)
        table = read_table(store.examples_path(self.cell.key), "examples")
        label, pixels = table.column("label").to_numpy(), stored_pixels(table, cache, self.cell)
        aim = table.column("target_label").to_numpy() if self.cell.targeted else None
        clean = cache.shard(self.cell.data, *self.cell.shard).pixels
        exact = pixels
        if self.crafting:
            exact = images_of(_exact(self.cell), store, cache, self.batch_size).pixels
        each = [
            _pairs(cache, name, (clean, pixels), (clean, exact), self.batch_size, self.crafting)
            for name in self.targets
        ]
        answers, weights = (np.concatenate(found, -1) for found in zip(*each, strict=True))
        label, aim = (None if a is None else np.resize(a, answers.shape[-1]) for a in (label, aim))
        right = answers[:, 0] == label
        won = answers[:, 1] == aim if aim is not None else right & (answers[:, 1] != label)
        counted = weights * (np.ones_like(right) if aim is not None else right)
        rates = (won * weights).sum(1) / np.maximum(counted.sum(1), 1e-12)
        low, high = wilson(float((won[1] * weights).sum()), float(counted[1].sum()))
        same = answers[0] == answers[1]  # (clean and adversarial, images)
        return Agreement(
            *self.what, self.cell.key, int(same.size), float(np.average(same.mean(0), weights=weights)),
            float(np.average(won[0] == won[1], weights=weights)), float(rates[0]), float(rates[1]), low, high,
        )  # fmt: skip


def _pairs(
    cache: WorkerCache, name: str, images: Sequence[Tensor], exact: Sequence[Tensor], size: int | None,
    crafting: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Predictions (precision, clean and adversarial, members x images), and the weight of each column."""
    found, weights = [], np.empty(0)
    for model, shown in ((name, images), (name if crafting else plain(name), exact)):
        members = members_of(cache.models.get([model])[0])
        found.append([
            np.concatenate([predict(cache, member.model, each, size) for member in members]) for each in shown
        ])
        weights = np.repeat([member.probability for member in members], len(images[0]))
    return np.array(found), weights


def _exact(cell: Cell) -> Cell:
    """The cell with its surrogates in float32."""
    specs = tuple(plain(name) for name in cell.specs)
    return replace(cell, specs=specs, digests=tuple(describe(name).digest for name in specs))


def agreements(
    directory: Path, suite: AnySuite, executor: Executor, progress: Progress
) -> list[Agreement]:
    """How a finished run agrees with float32, one cell for every target and attack in reduced precision.

    What was compared before is read from ``agreement.json``, and what is new is added to it.

    Raises:
        RunError: a comparison failed.
    """
    if not isinstance(suite, Suite):
        return []
    store, path = RunStore(directory), directory / FILE
    known = [Agreement(**each) for each in json.loads(path.read_text())] if path.is_file() else []
    done = {(each.what, each.of) for each in known}
    tasks = [task for task in _tasks(store, suite) if task.what not in done]
    if not tasks:
        return known
    with (
        progress.task("comparing with float32", len(tasks)) as advance,
        closing(executor.execute(tasks)) as found,
    ):
        for task, outcome in found:
            if isinstance(outcome, RunError):
                raise RunError(f"{task.title} was not compared with float32: {outcome}")
            known.append(outcome)
            advance(task.title)
    known.sort(key=lambda each: (each.what, each.of))
    write_bytes(path, (json.dumps([asdict(each) for each in known], indent=1) + "\n").encode())
    return known


def _tasks(store: RunStore, suite: Suite) -> Iterator[Compare]:
    targets = expanded(suite.targets)
    reduced = [name for name in targets if plain(name) != name]
    crafted = any("computed:" in str(each) for each in suite.surrogates.values())
    if not reduced and not crafted:
        return
    folder, seen = str(store.directory.absolute()), set[str]()
    for key in sorted(store.cells()):
        cell = Cell.from_json(read_cell(store.examples_path(key)))
        if not seen:
            yield from (Compare(folder, cell, (name,), False, suite.batch_size) for name in reduced)
        if cell.title not in seen and any(plain(name) != name for name in cell.specs):
            yield Compare(folder, cell, targets, True, suite.batch_size)
        seen.add(cell.title)
