"""Crafting a sample of a run's cells again: whether stored images are those that their attacks make.

Which cells are drawn follows from a *challenge*, a text that is chosen after the run was handed in, so that
nobody knows beforehand which cells will be looked at. A cell is crafted from the spec that the run's suite
gives, its models, its data and its seed, by the code that crafted it in the first place.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from advens.benchmarks.cells import Cell
from advens.benchmarks.checks import Work
from advens.benchmarks.environment import arithmetic
from advens.benchmarks.plan import Plan
from advens.benchmarks.predictions import members_of, predict
from advens.benchmarks.tasks import Images, images_of, stored_pixels
from advens.benchmarks.worker_cache import WorkerCache, cache_for
from advens.errors import InputError, RunError
from advens.results.store import Piece, RunStore, read_cell, read_table
from advens.threads import threads

EQUAL_PIXELS = 0.9
"""Least fraction of equal bytes in a cell that was crafted elsewhere.

By `advens.benchmarks.studies.recraft`: 0.992 at least are equal between honest runs, 0.663 at most when an
attack has another seed, other steps or another radius.
"""
EQUAL_OUTCOMES = 0.98
"""Least fraction of equal outcomes on the targets of such a cell: 1.0 and at most 0.975 in the same study."""


@dataclass(frozen=True)
class Sample:
    """Which cells are crafted again.

    Args:
        share: of the cells of a run, at least one and at most this part of them.
        challenge: the text that they are drawn with.

    Raises:
        InputError: no share between 0 and 1.
    """

    share: float
    challenge: str

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"recraft = {self.share}: a share of the cells, above 0 and at most 1")

    def of(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that are drawn, in the order of the plan."""
        ranked = sorted(cells, key=lambda cell: _rank(self.challenge, cell.key))
        chosen = {cell.key for cell in ranked[: max(1, math.floor(self.share * len(cells) + 1e-9))]}
        return [cell for cell in cells if cell.key in chosen]


def _rank(challenge: str, key: str) -> bytes:
    return hashlib.sha256(f"{challenge}\0{key}".encode()).digest()


@dataclass
class Recrafted:
    """What came of it.

    Args:
        cells: how many were crafted again.
        of: how many the run holds.
        images, identical: images of these cells, and those that are the same byte for byte.
        elsewhere: cells that are not identical and may differ, as the run crafted them on another device,
            with several threads or with other arithmetic.
        pixels, outcomes: the least fractions of equal bytes and of equal outcomes among these cells.
        mismatches: a line each.
    """

    cells: int = 0
    of: int = 0
    images: int = 0
    identical: int = 0
    elsewhere: int = 0
    pixels: float = 1.0
    outcomes: float = 1.0
    mismatches: list[str] = field(default_factory=list)

    def add(self, other: Recrafted) -> None:
        """Add what came of another cell."""
        self.cells += other.cells
        self.images += other.images
        self.identical += other.identical
        self.elsewhere += other.elsewhere
        self.pixels = min(self.pixels, other.pixels)
        self.outcomes = min(self.outcomes, other.outcomes)
        self.mismatches += other.mismatches

    def line(self) -> str:
        """One line for people."""
        share = self.cells / self.of if self.of else 0.0
        text = (
            f"{self.cells} of {self.of} cells ({share:.0%}) crafted again: "
            f"{self.identical} of {self.images} images identical"
        )
        if self.elsewhere:
            text += (
                f"; {self.elsewhere} cells compared by the tolerance, at least {self.pixels:.2%} of their "
                f"bytes and {self.outcomes:.2%} of their outcomes equal"
            )
        return text


@dataclass(frozen=True)
class CraftAgain:
    """Craft a cell again and compare its images with those that are stored.

    Args:
        directory: of the run.
        cell: as it stands in the plan, whatever its file says.
        rows: those of its targets.
        batch_size: of the suite.
        work: names the verification, as for `cache_for`.
    """

    directory: str
    cell: Cell
    rows: tuple[tuple[str, Piece], ...]
    batch_size: int | None
    work: str

    @property
    def title(self) -> str:
        return self.cell.title

    def do(self, device: str) -> Recrafted:
        """Crafts. Returns what came of this cell.

        Raises:
            InputError: a model or the data cannot be used.
        """
        cell, cache, store = self.cell, cache_for(device, self.work), RunStore(self.directory)
        found = Recrafted()
        try:
            path = store.examples_path(cell.key)
            said, stored = read_cell(path), _stored(store, cell, cache)
            with threads(_threads(said)):
                again = images_of(cell, store, cache, self.batch_size)
            found.cells = 1
            wrong = _compared(store, self.rows, cell, stored, said, again, cache, found)
        except RunError as error:
            wrong = [str(error)]
        found.mismatches = [f"{cell.key}.parquet ({cell.title}): {line}" for line in wrong]
        return found


def craft_again(store: RunStore, plan: Plan, sample: Sample, work: Work) -> Recrafted:
    """Craft the drawn cells of a run again and compare their images with those that are stored.

    Args:
        plan: of the run's suite; a cell is crafted as it stands there, whatever its file says.

    Raises:
        InputError: a model or the data cannot be used.
        RunError: a cell could not be crafted.
    """
    there = set(store.cells())
    cells = [cell for cell in plan.cells if cell.key in there]
    found = Recrafted(of=len(cells))
    if not cells:
        return found
    rows, tasks = store.listing(index=False).rows, []
    for cell in sample.of(cells):
        known = rows.get(cell.key, {})
        keys = [(target, plan.keys[target]) for target in plan.targets_of(cell)]
        own = tuple((target, known[key]) for target, key in keys if key in known)
        tasks.append(CraftAgain(str(store.directory), cell, own, plan.suite.batch_size, work.name))
    done = {task.cell.key: each for task, each in work.outcomes("crafting again", tasks)}
    for task in tasks:
        found.add(done[task.cell.key])
    return found


def _stored(store: RunStore, cell: Cell, cache: WorkerCache) -> Tensor:
    """The stored images of a cell. Raises RunError when they do not follow from its file and the data."""
    try:
        return stored_pixels(read_table(store.examples_path(cell.key), "examples"), cache, cell)
    except InputError as error:
        raise RunError(str(error)) from error


def _threads(said: dict[str, Any]) -> int:
    """As many threads as crafted a cell, as far as there are cores; one where nothing is recorded."""
    return min(max(1, said.get("threads") or 1), os.cpu_count() or 1)


def _exact(said: dict[str, Any], cache: WorkerCache) -> bool:
    """Whether images must be the same byte for byte: crafted by one thread of a CPU, with this arithmetic."""
    device = str(cache.device)
    return (said["device"], said.get("threads"), said.get("arithmetic")) == ("cpu", 1, arithmetic(device))


def _compared(
    store: RunStore, rows: Sequence[tuple[str, Piece]], cell: Cell, stored: Tensor, said: dict[str, Any],
    again: Images, cache: WorkerCache, found: Recrafted,
) -> list[str]:  # fmt: skip
    """What is wrong with the images of a cell, given those that its attack makes here."""
    if stored.shape != again.pixels.shape:
        return ["its images are not of the size that its attack makes"]
    equal = stored == again.pixels
    same = int(equal.flatten(1).all(1).sum())
    found.images += len(stored)
    found.identical += same
    if _exact(said, cache):
        wrong = []
        if same < len(stored):
            wrong.append(f"{len(stored) - same} of {len(stored)} images are not those that its attack makes")
        wrong += [
            f"'{name}' is {said.get(name)}, and {value} when crafted again"
            for name, value in again.about().items() if said.get(name) != value
        ]  # fmt: skip
        return wrong
    if same == len(stored):
        return []
    found.elsewhere += 1
    pixels = float(equal.double().mean())
    outcomes = _equal_outcomes(store, rows, cell, again.pixels, cache)
    found.pixels, found.outcomes = min(found.pixels, pixels), min(found.outcomes, outcomes)
    if pixels >= EQUAL_PIXELS and outcomes >= EQUAL_OUTCOMES:
        return []
    return [
        f"its images are not those that its attack makes: {pixels:.2%} of their bytes and {outcomes:.2%} "
        f"of their outcomes are equal; at least {EQUAL_PIXELS:.2%} and {EQUAL_OUTCOMES:.2%} are when honest "
        "runs are repeated elsewhere"
    ]


def _equal_outcomes(
    store: RunStore, pieces: Sequence[tuple[str, Piece]], cell: Cell, pixels: Tensor, cache: WorkerCache
) -> float:
    """The fraction of the stored outcomes of a cell that its images have when they are crafted again."""
    same = total = 0
    for target, piece in pieces:  # of what is missing it is said elsewhere
        rows, model = store.read_rows(piece), cache.models.get([target])[0]
        predicted = np.concatenate(
            [predict(cache, member.model, pixels, None) for member in members_of(model)]
        )
        if len(predicted) != rows.num_rows:
            continue
        if cell.targeted:
            success = predicted == rows.column("target_label").to_numpy()
        else:
            success = rows.column("clean_correct").to_numpy() & (predicted != rows.column("label").to_numpy())
        same += int((success == rows.column("success").to_numpy()).sum())
        total += rows.num_rows
    return same / total if total else 1.0
