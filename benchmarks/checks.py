"""Checking cells of a run: their images, and the rows of every target, from stored bytes, data and models.

A task takes some cells of one shard and goes through their targets one after the other, so that a target is
loaded, and sees the clean images, once for all of them.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advens.attacks.expectation import is_randomized
from advens.benchmarks import tasks
from advens.benchmarks.cells import Cell
from advens.benchmarks.executors import Executor, create_executor
from advens.benchmarks.executors.base import T, resolve_device
from advens.benchmarks.goals import ATTACK_GOALS
from advens.benchmarks.plan import target_key
from advens.benchmarks.predictions import logits_of, members_of, sample_rows
from advens.benchmarks.progress import Progress
from advens.benchmarks.worker_cache import WorkerCache, cache_for
from advens.datasets import Batch
from advens.errors import InputError, RunError, first_line
from advens.models import known_card, origins
from advens.results.store import Piece, RunStore, rows_of
from advens.results.store.files import cell_of, read_sealed
from advens.results.store.images import changed, clean_digest, decoded, digests
from advens.threat import Threat

BORDERLINE = 1e-4
"""Two best logits may swap on another machine when they differ by less than this part of the spread of the
target's logits: of the median, over images, of their range. Such a prediction is no mismatch."""
IMAGES, ROWS = 1 << 30, 1 << 28
"""Bytes of adversarial images, and of files of rows, that a worker holds at once, at most."""


@dataclass(frozen=True)
class Work:
    """Who does the work of a verification.

    Args:
        executor: does the tasks.
        progress: what is told meanwhile.
        name: of this verification, as for `cache_for`.
    """

    executor: Executor = field(default_factory=create_executor)
    progress: Progress = field(default_factory=Progress)
    name: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def workers(self) -> int:
        """How many the user asked for; one where nobody did."""
        return getattr(self.executor, "workers", None) or 1

    @property
    def device(self) -> str:
        """The device for what is done in this process: the executor's, where this machine has it."""
        try:
            return resolve_device(self.executor.device)
        except InputError:
            if getattr(self.executor, "elsewhere", False):
                return "cpu"
            raise

    def outcomes(
        self, what: str, tasks: Sequence[T], size: Callable[[T], int] = lambda task: 1
    ) -> Iterator[tuple[T, Any]]:
        """Do tasks; each with what it returned.

        Args:
            size: how far a task brings the progress.

        Raises:
            RunError: some tasks could not be done, once all others are.
        """
        failed: list[str] = []
        with (
            self.progress.task(what, sum(map(size, tasks))) as advance,
            closing(self.executor.execute(tasks)) as done,
        ):
            for task, outcome in done:
                for _ in range(size(task)):
                    advance(task.title)
                if isinstance(outcome, RunError):
                    failed.append(f"{task.title}: {outcome}")
                else:
                    yield task, outcome
        if failed:
            raise RunError(f"{len(failed)} of {len(tasks)} tasks of '{what}' failed (first: {failed[0]})")


@dataclass(frozen=True)
class Checked:
    """What came of checking a cell.

    Args:
        cell: its name.
        sound: whether its images could be read and belong to the cell; nothing else was checked if not.
        rows: how many rows were checked.
        borderline: predictions that differ where the two best logits nearly tie.
        mismatches: a line each.
        seals: of the files that were read, by their place in the run.
    """

    cell: str
    sound: bool = False
    rows: int = 0
    borderline: int = 0
    mismatches: tuple[str, ...] = ()
    seals: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """Check some cells of one shard.

    Args:
        directory: of the run.
        cells: their names, each with the rows to be checked.
        work: names the verification, as for `cache_for`.
    """

    directory: str
    cells: tuple[tuple[str, tuple[Piece, ...]], ...]
    work: str

    @property
    def title(self) -> str:
        return f"{len(self.cells)} cells, from {self.cells[0][0]}"

    def do(self, device: str) -> list[Checked]:
        """Checks. Returns what came of every cell, in order.

        Raises:
            InputError: the data or one of the models cannot be read.
        """
        checker = _checker(device, self.work)
        store, found, held = RunStore(self.directory), [], []
        for name, pieces in self.cells:
            each = _Opened(store, name, pieces)
            each.read(checker)
            found.append(each)
            held.append(each)
            if sum(one.pixels.nbytes for one in held) >= IMAGES:
                _targets(checker, held)
                held = []
        _targets(checker, held)
        return [each.checked() for each in found]


def described(path: Path, said: dict[str, Any]) -> tuple[Cell, Threat]:
    """The cell that a file of images describes, and its ball. Raises RunError when its name is another's."""
    try:
        cell, threat = Cell.from_json(said), Threat(said["norm"], said["eps"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path.name}: its description is not that of a cell ({first_line(error)})"
        ) from error
    where = f"{path.name} ({cell.title})"
    if cell.key != path.stem:
        raise RunError(f"{where}: its description does not hash to its name")
    if cell.goal not in ATTACK_GOALS:
        raise RunError(f"{where}: no cell has the goal '{cell.goal}'")
    if cell.params.get("threat") != {"norm": threat.norm, "eps": threat.eps}:
        raise RunError(f"{where}: the ball it names is not the attack's")
    return cell, threat


@dataclass(frozen=True)
class _Surrogate:
    """What the cells of a surrogate must agree with."""

    digest: str
    bases: tuple[str, ...]
    members: int
    num_classes: int


class _Checker:
    """What a process keeps from one task of a verification to the next."""

    def __init__(self, cache: WorkerCache) -> None:
        self.cache = cache
        self._surrogates: dict[str, _Surrogate] = {}
        self._files: OrderedDict[Path, tuple[Any, str]] = OrderedDict()
        self._clean: dict[tuple[str, int | None], Tensor] = {}
        self._shard: tuple[str, tuple[int, int]] | None = None
        self.recent: list[str] = []  # targets, the last one last

    def surrogate(self, name: str) -> _Surrogate:
        """Loads a model that no cell has named yet."""
        if name not in self._surrogates:
            model: Any = self.cache.models.get([name])[0]
            members = len(model.members) if is_randomized(model) else 1
            bases = tuple(dict.fromkeys(origins(model)))
            self._surrogates[name] = _Surrogate(model.digest, bases, members, model.num_classes)
        return self._surrogates[name]

    def rows(self, store: RunStore, name: str) -> tuple[Any, str]:
        """A file of rows and its seal; those used last are kept. Raises RunError when it is damaged."""
        path = _inside(store, "samples", name)
        if path not in self._files:
            self._files[path] = _read(path, "samples")
        self._files.move_to_end(path)
        while len(self._files) > 1 and sum(table.nbytes for table, _ in self._files.values()) > ROWS:
            self._files.popitem(last=False)
        return self._files[path]

    def clean(self, cell: Cell, key: str, model: Any, place: int | None) -> Tensor:
        """Logits (N, classes) of a target on the clean images of a cell; those on one shard are kept."""
        if self._shard != (cell.data, cell.shard):
            self._shard, self._clean = (cell.data, cell.shard), {}
        if (key, place) not in self._clean:
            pixels = self.cache.shard(cell.data, *cell.shard).pixels
            self._clean[key, place] = logits_of(self.cache, model, pixels, None)
        return self._clean[key, place]


@lru_cache(maxsize=1)
def _checker(device: str, work: str) -> _Checker:
    return _Checker(cache_for(device, work))


def forget() -> None:
    """Free what this process keeps of a verification."""
    _checker.cache_clear()
    cache_for.cache_clear()


def _inside(store: RunStore, *parts: str) -> Path:
    """`RunStore.path`; a link that leads out is a mismatch."""
    try:
        return store.path(*parts)
    except InputError as error:
        raise RunError(str(error)) from error


def _read(path: Path, kind: str) -> tuple[Any, str]:
    """A file of the run and its seal; one that cannot be read is a mismatch."""
    try:
        return read_sealed(path, kind)
    except InputError as error:
        raise RunError(str(error)) from error


class _Opened:
    """A cell that is being checked."""

    def __init__(self, store: RunStore, name: str, pieces: Sequence[Piece]) -> None:
        self.store, self.name, self.pieces = store, name, pieces
        self.pixels = torch.empty(0, dtype=torch.uint8)
        self.sound, self.rows, self.borderline = False, 0, 0
        self.own: list[str] = []  # what is wrong with its images
        self.others: dict[Piece, list[str]] = {}  # and with the rows of its targets
        self.seals: dict[str, str] = {}

    def checked(self) -> Checked:
        """What came of it: mismatches by target, in whatever order these were looked at."""
        lines = [*self.own, *(line for piece in self.pieces for line in self.others.get(piece, ()))]
        return Checked(
            self.name, self.sound, self.rows, self.borderline, tuple(lines), dict(sorted(self.seals.items()))
        )

    def read(self, checker: _Checker) -> None:
        """Check its description and its images."""
        try:
            self._read(checker)
        except RunError as error:
            self.own.append(str(error))

    def _read(self, checker: _Checker) -> None:
        cache, name = checker.cache, f"{self.name}.parquet"
        path = _inside(self.store, "examples", name)
        table, self.seals[f"examples/{name}"] = _read(path, "examples")
        said = cell_of(path, table.schema.metadata)
        cell, threat = described(path, said)
        where = f"{path.name} ({cell.title})"
        if cache.data(cell.data).fingerprint(slice(*cell.shard)) != cell.fingerprint:
            raise RunError(f"{where}: the data are not those it was crafted on")
        other = f"{where}: the weights of its surrogates are not those it was crafted with"
        for spec, digest in zip(cell.specs, cell.digests, strict=True):
            known = known_card(spec)
            if known is not None and known.digest != digest:
                raise RunError(other)
        models = [checker.surrogate(spec) for spec in cell.specs]
        spent = (said.get("forwards_per_sample"), said.get("backwards_per_sample"))
        if not ATTACK_GOALS[cell.goal].possible(spent, cell, sum(model.members for model in models)):
            raise RunError(f"{where}: the passes it claims are not those of the attack")
        if [model.digest for model in models] != list(cell.digests):
            raise RunError(other)
        if dict.fromkeys(base for model in models for base in model.bases) != dict.fromkeys(cell.bases):
            raise RunError(f"{where}: its surrogates were not built from the models it names")
        batch = cache.shard(cell.data, *cell.shard)
        if table.num_rows != len(batch.labels):
            raise RunError(f"{where}: its samples are not those of the shard")
        if said.get("clean_sha256") not in (None, clean_digest(batch.pixels.numpy())):
            raise RunError(
                f"{where}: the clean images decode to other pixels here than where it was crafted"
            )
        try:
            self.pixels = torch.from_numpy(decoded(table, batch.pixels.numpy))
        except (InputError, RunError) as error:
            raise RunError(f"{where}: {error}") from error
        wanted = cell.wanted(batch.labels, batch.target_labels, models[0].num_classes)
        found = digests(self.pixels.numpy())
        self.own += [
            f"{where}: {what}" for what in _examples(table, self.pixels, found, batch, threat, cell, wanted)
        ]
        bytes_ = [each for each in ("image", "difference") if each in table.column_names]
        self.cell, self.table, self.where, self.sound = cell, table.drop_columns(bytes_), where, True

    def against(self, checker: _Checker, piece: Piece) -> None:
        """Check its rows for a target."""
        try:
            table, self.seals[f"samples/{piece.file}"] = checker.rows(self.store, piece.file)
            stored = rows_of(table, piece)
            self.others[piece] = [f"{self.where}: {what}" for what in self._rows(checker, piece.key, stored)]
        except RunError as error:
            self.others[piece] = [str(error)]

    def _rows(self, checker: _Checker, key: str, stored: Any) -> Iterator[str]:
        cell, n, cache = self.cell, len(self.pixels), checker.cache
        if stored.num_rows == 0:
            yield f"no rows in {cell.key}.{key}"
            return
        target = stored.column("target")[0].as_py()
        known = known_card(target)
        if known is not None and target_key(target, known.digest) != key:
            yield f"the weights of {target} are not those that were evaluated"
            return
        model = cache.models.get([target])[0]
        members = members_of(model)
        if stored.num_rows != n * len(members):
            yield f"{stored.num_rows} rows in {cell.key}.{key}, not {len(members)} for every image"
            return
        if target_key(target, model.digest) != key:
            yield f"the weights of {target} are not those that were evaluated"
            return
        self.rows += stored.num_rows
        for k, member in enumerate(members):
            found = {
                "clean_pred": checker.clean(cell, key, member.model, member.place),
                "adv_pred": logits_of(cache, member.model, self.pixels, None),
            }
            rows = stored.slice(k * n, n)
            said = {what: rows.column(what).to_numpy() for what in found}
            for what, logits in found.items():
                wrong, near = _predictions(said[what], logits)
                self.borderline += near
                if wrong:
                    yield f"{wrong} stored {what} of {target} are not what the model says"
            expected = sample_rows(
                cell, self.table, target, member, said["clean_pred"], said["adv_pred"], cell.knows(model),
                model.family,
            )  # fmt: skip
            for name, values in expected.items():
                if name in rows.column_names and rows.column(name).to_pylist() != _plain(values):
                    yield f"column '{name}' for {target} does not follow from the predictions"


def _targets(checker: _Checker, cells: Sequence[_Opened]) -> None:
    """Check the rows of cells that are read, target by target: first those that may still be loaded."""
    pairs: dict[str, list[tuple[_Opened, Piece]]] = {}
    for each in cells:
        for piece in each.pieces if each.sound else ():
            pairs.setdefault(piece.key, []).append((each, piece))
    last = [key for key in reversed(checker.recent) if key in pairs]
    for key in [*last, *sorted(set(pairs).difference(last))]:
        for each, piece in pairs[key]:
            each.against(checker, piece)
        checker.recent = [other for other in checker.recent if other != key] + [key]
    for each in cells:
        each.pixels = torch.empty(0, dtype=torch.uint8)


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


def _predictions(given: np.ndarray, logits: Tensor) -> tuple[int, int]:
    """How many stored predictions are not those of the logits that the model has, and how many nearly are."""
    claimed, best = torch.from_numpy(given.copy()), logits.argmax(1)
    gap = logits.amax(1) - logits.gather(1, claimed.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
    spread = (logits.amax(1) - logits.amin(1)).median()
    near = (best != claimed) & (gap < BORDERLINE * spread)
    return int(((best != claimed) & ~near).sum()), int(near.sum())


def _plain(values: Any) -> list[Any]:
    if isinstance(values, np.ndarray):
        return values.tolist()  # type: ignore[no-any-return]
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)
