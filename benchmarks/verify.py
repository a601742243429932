"""Checking a run from what it stored: the bytes, the ball, the clean images, every prediction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advens.attacks.expectation import is_randomized
from advens.benchmarks import tasks as work
from advens.benchmarks.plan import Cell
from advens.benchmarks.predictions import Voice, logits_of, sample_rows, voices
from advens.benchmarks.progress import Progress
from advens.benchmarks.worker_cache import Workshop
from advens.digest import value_digest
from advens.errors import InputError, RunError, first_line
from advens.models import known_card, origins
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.summary import load, matrix_table, to_table
from advens.results.store import RunStore, read_cell, read_table
from advens.threat import Threat

BORDERLINE = 1e-3
"""Two best logits this close may swap on another machine; such a prediction is no lie."""


@dataclass
class Audit:
    """What `verify` found.

    Args:
        cells, rows: how much was checked.
        borderline: predictions that differ where the two best logits nearly tie.
        lies: one line each.
    """

    cells: int = 0
    rows: int = 0
    borderline: int = 0
    lies: list[str] = field(default_factory=list)


def verify_run(store: RunStore, device: str, progress: Progress | None = None) -> Audit:
    """Re-check every stored example and every stored prediction.

    Raises:
        InputError: the run, its data or one of its models cannot be read.
    """
    audit, shop = Audit(), Workshop(device)
    with store.lock():
        pairs: dict[str, list[str]] = {cell: [] for cell in store.cells()}
        for cell, key in sorted(store.evaluated()):
            pairs.setdefault(cell, []).append(key)
        with (progress or Progress()).task("verifying", len(pairs)) as advance:
            clean = _Clean(shop)
            for name in sorted(pairs, key=lambda name: _shard(store, name)):
                try:
                    _cell(store, clean, name, pairs[name], audit)
                except RunError as error:
                    audit.lies.append(str(error))
                advance(name)
        audit.lies += [*_matrix(store), *_board(store)]
    if not pairs:
        raise InputError(f"{store.directory} holds no finished cells yet")
    return audit


class _Clean:
    """What targets say of the clean images of one shard at a time."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self._shard: tuple[str, tuple[int, int]] | None = None
        self._logits: dict[tuple[str, int | None], Tensor] = {}

    def logits(self, cell: Cell, target: str, voice: Voice) -> Tensor:
        """Logits (N, classes) on the clean images of the cell's shard."""
        if self._shard != (cell.data, cell.shard):
            self._shard, self._logits = (cell.data, cell.shard), {}
        key = target, voice.member
        if key not in self._logits:
            pixels = self.shop.shard(cell.data, *cell.shard).pixels
            self._logits[key] = logits_of(self.shop, voice.model, pixels, None)
        return self._logits[key]


def _shard(store: RunStore, name: str) -> list[int]:
    """The shard of a cell, to take cells of one shard together; what is broken comes first."""
    try:
        return list(read_cell(store.examples_path(name))["shard"])
    except (RunError, InputError, KeyError, TypeError):
        return []


def _cell(store: RunStore, clean: _Clean, name: str, keys: list[str], audit: Audit) -> None:
    shop, path = clean.shop, store.examples_path(name)
    if not path.is_file():
        raise RunError(f"{store.samples}/{name}.*: rows of a cell whose examples are missing")
    said = read_cell(path)
    try:
        cell, threat = work.cell_from(said), Threat(said["norm"], said["eps"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path.name}: its description is not that of a cell ({first_line(error)})") from error
    where = f"{path.name} ({cell.attack} on {cell.surrogates})"
    if cell.key != name:
        raise RunError(f"{where}: its description does not hash to its name")
    if cell.params.get("threat") != {"norm": threat.norm, "eps": threat.eps}:
        raise RunError(f"{where}: the ball it names is not the attack's")
    if shop.data(cell.data).fingerprint(slice(*cell.shard)) != cell.fingerprint:
        raise RunError(f"{where}: the data are not those it was crafted on")
    spent = (said.get("forwards_per_sample"), said.get("backwards_per_sample"))
    for spec, digest in zip(cell.specs, cell.digests, strict=True):
        known = known_card(spec)
        if known is not None and known.digest != digest:
            raise RunError(f"{where}: the weights of its surrogates are not those it was crafted with")
    models = shop.models.get(cell.specs)
    members = sum(_members(model) for model in models)
    if not _possible(spent, cell, members):
        raise RunError(f"{where}: the passes it claims are not those of the attack")
    if [model.digest for model in models] != list(cell.digests):
        raise RunError(f"{where}: the weights of its surrogates are not those it was crafted with")
    if dict.fromkeys(base for model in models for base in origins(model)) != dict.fromkeys(cell.bases):
        raise RunError(f"{where}: its surrogates were not built from the models it names")
    table, shard = read_table(path, "examples"), shop.shard(cell.data, *cell.shard)
    if table.num_rows != len(shard.labels):
        raise RunError(f"{where}: its samples are not those of the shard")
    pixels = work.stored_pixels(table)
    audit.lies += [f"{where}: {lie}" for lie in _examples(table, pixels, shard, threat, cell, shop)]
    audit.cells += 1
    for key in keys:
        audit.lies += [
            f"{where}: {lie}" for lie in _rows(store, clean, cell, key, table, pixels, audit)
        ]


def _members(model: Any) -> int:
    return len(model.members) if is_randomized(model) else 1


def _possible(spent: tuple[float | None, float | None], cell: Cell, members: int) -> bool:
    """Whether passes are the attack's; under ``robustness`` samples leave early, so at most those.

    Args:
        members: of randomized ensembles; attacks in the open count each one's passes.
    """
    attack = cell.build()
    if cell.goal == "transfer":
        return spent == tuple(attack.passes(len(cell.specs)))
    formula = attack.passes(members)
    return spent[1] is not None and 0 <= spent[1] <= formula.backward + 1e-6


def _examples(
    table: object, pixels: Tensor, clean: object, threat: Threat, cell: Cell, shop: Workshop
) -> Iterator[str]:
    """What is wrong with the stored images of one cell."""
    column = {name: table.column(name).to_pylist() for name in table.column_names}  # type: ignore[attr-defined]
    if column["sample_id"] != list(clean.sample_ids):  # type: ignore[attr-defined]
        yield "its samples are not those of the shard"
        return
    if column["label"] != clean.labels.tolist():  # type: ignore[attr-defined]
        yield "labels differ from the data's"
    if set(column["cell"]) != {cell.key}:
        yield "rows of another cell"
    digests = [hashlib.sha256(image).hexdigest() for image in column["image"]]
    for row in np.flatnonzero(np.array(digests) != np.array(column["sha256"])):
        yield f"the image of {column['sample_id'][row]} was changed after it was written"
    excess = threat.excess(pixels, clean.pixels).numpy()  # type: ignore[attr-defined]
    for row in np.flatnonzero(excess > work.AUDIT_TOLERANCE):
        yield f"the image of {column['sample_id'][row]} leaves the ball by {excess[row]:.3g}"
    for norm, measured in zip(("linf", "l2"), work.measured(pixels, clean.pixels), strict=True):  # type: ignore[attr-defined]
        if not np.allclose(measured, column[norm], rtol=0, atol=1e-9):
            yield f"stored {norm} norms are not those of the images"
    classes = shop.models.get(cell.specs[:1])[0].num_classes
    aim = work.wanted(cell, clean.labels, clean.target_labels, classes)  # type: ignore[attr-defined]
    if column["target_label"] != (aim.tolist() if aim is not None else [None] * len(digests)):
        yield "wanted classes are not those of the data and seed"


def _rows(
    store: RunStore,
    clean: _Clean,
    cell: Cell,
    key: str,
    table: object,
    pixels: Tensor,
    audit: Audit,
) -> Iterator[str]:
    """What is wrong with the stored rows of one cell and target."""
    stored, n = read_table(store.samples_path(cell.key, key), "samples"), len(pixels)
    if stored.num_rows == 0:
        yield f"no rows in {cell.key}.{key}"
        return
    target = stored.column("target")[0].as_py()
    known = known_card(target)
    if known is not None and value_digest([target, known.digest], 16) != key:
        yield f"the weights of {target} are not those that were evaluated"
        return
    model = clean.shop.models.get([target])[0]
    answering = voices(model)
    if stored.num_rows != n * len(answering):
        yield f"{stored.num_rows} rows in {cell.key}.{key}, not {len(answering)} for every image"
        return
    if value_digest([target, model.digest], 16) != key:
        yield f"the weights of {target} are not those that were evaluated"
        return
    audit.rows += stored.num_rows
    for k, voice in enumerate(answering):
        found = {
            "clean_pred": clean.logits(cell, target, voice),
            "adv_pred": logits_of(clean.shop, voice.model, pixels, None),
        }
        white = cell.knows(model)
        rows = stored.slice(k * n, n)
        yield from _voice(cell, table, target, voice, rows, found, white, model.family, audit)


def _voice(
    cell: Cell,
    table: object,
    target: str,
    voice: Voice,
    stored: Any,
    found: dict[str, Tensor],
    white_box: bool,
    family: str,
    audit: Audit,
) -> Iterator[str]:
    """What is wrong with the stored rows of one voice, whose logits were found to be these."""
    predictions = []
    for what, logits in found.items():
        given = torch.from_numpy(stored.column(what).to_numpy().copy())
        says = logits.argmax(1)
        gap = logits.amax(1) - logits.gather(1, given.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        near = (says != given) & (gap < BORDERLINE)
        audit.borderline += int(near.sum())
        wrong = int(((says != given) & ~near).sum())
        if wrong:
            yield f"{wrong} stored {what} of {target} are not what the model says"
        predictions.append(given.numpy())
    clean, adversarial = predictions
    expected = sample_rows(cell, table, target, voice, clean, adversarial, white_box, family)
    for name, values in expected.items():
        if name not in stored.column_names:  # a run older than the column
            continue
        given_values = stored.column(name).to_pylist()
        if given_values != (values.tolist() if isinstance(values, np.ndarray) else _plain(values)):
            yield f"column '{name}' for {target} does not follow from the predictions"


def _matrix(store: RunStore) -> Iterator[str]:
    """What is wrong with the stored matrix: it must be what the samples give."""
    if not store.matrix.is_file() or not store.evaluated():
        return
    try:
        stored, found = read_table(store.matrix, "matrix"), matrix_table(store.directory)
    except RunError as error:
        yield str(error)
        return
    if not stored.equals(found):
        yield f"{store.matrix.name} is not what the samples give"


def _board(store: RunStore) -> Iterator[str]:
    """What is wrong with the stored board: it must be what samples and cells give."""
    if not store.leaderboard.is_file() or not store.evaluated():
        return
    try:
        stored = read_table(store.leaderboard, "leaderboard").to_pandas(ignore_metadata=True)
        board = leaderboard(*load([store.directory]))
    except RunError as error:
        yield str(error)
        return
    found = to_table("leaderboard", board).to_pandas(ignore_metadata=True)
    same = stored.shape == found.shape and all(
        np.allclose(stored[name], found[name], rtol=1e-9, atol=0, equal_nan=True)
        if found[name].dtype.kind == "f"
        else stored[name].tolist() == found[name].tolist()
        for name in found
    )
    if not same:
        yield f"{store.leaderboard.name} is not what the samples and cells give"


def _plain(values: object) -> list[object]:
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)  # type: ignore[call-overload, no-any-return]
