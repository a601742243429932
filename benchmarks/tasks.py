"""The tasks of a worker: build surrogates, train, craft a cell, evaluate a target on it, measure a defense.

Every task writes its result atomically, so any executor can do tasks in any order, in any process, and a
crash costs at most the task at hand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

import advens
from advens.benchmarks.cells import Cell
from advens.benchmarks.environment import arithmetic
from advens.benchmarks.goals import ATTACK_GOALS, Crafted, Work
from advens.benchmarks.histories import History, history_of
from advens.benchmarks.predictions import clean_predictions, members_of, predict, sample_rows
from advens.benchmarks.progress import tick
from advens.benchmarks.suites import BuiltSet
from advens.benchmarks.worker_cache import WorkerCache, worker_cache
from advens.classifier import Classifier
from advens.datasets import Dataset, find_data
from advens.errors import InputError, RunError, failure
from advens.files import new_folder
from advens.models import ModelCard, find_model
from advens.results.store import (
    RunStore,
    is_whole,
    read_table,
    schema,
    write_examples,
    write_table,
)
from advens.results.store.images import clean_digest, image_columns, whole_images
from advens.threat import NORMS, Threat, norms

AUDIT_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Build:
    """One surrogate set for one seed of a suite; what the cache holds is not built again."""

    name: str
    wanted: BuiltSet
    seed: int

    @property
    def title(self) -> str:
        return f"{self.name}, seed {self.seed}"

    def do(self, device: str) -> tuple[tuple[str, ...], History]:
        """Builds. Returns the names of the models, and how they came about."""
        models = [find_model(name).to(device) for name in self.wanted.models]
        builder, data = self.wanted.builder(), opened(self.wanted.source)
        made = builder.build(
            models, data, seed=self.seed,
            progress=lambda done, total: tick(f"{self.title}: {done}/{total}"),
        )  # fmt: skip
        return tuple(model.name for model in made), history_of(builder, models, data, self.seed)


@dataclass(frozen=True)
class Train:
    """One training of a defense: into the cache, which may hold it already, or into a folder.

    Args:
        name, options: of the defense.
        arch: architecture of the members.
        data: training images.
        seed: of the training.
        out: a folder to save the ensemble in; the cache without one.
    """

    name: str
    options: tuple[tuple[str, Any], ...]
    arch: str
    data: str
    seed: int
    out: str | None = None

    @property
    def title(self) -> str:
        return f"{self.name} of {self.defense.members}, seed {self.seed}"

    @property
    def defense(self) -> Any:
        """The defense. Raises InputError for an unknown one or a bad option."""
        from advens.defenses import create_defense

        return create_defense(self.name, **dict(self.options))

    def trained_name(self) -> str:
        """The name that the ensemble has in the cache, whether or not it is there."""
        from advens.defenses.trained import name_of

        return name_of(self.defense, self.arch, opened(self.data), self.seed)

    def do(self, device: str) -> str:
        """Trains. Returns the name of the ensemble."""
        from advens.defenses.trained import trained
        from advens.defenses.training import train

        defense = self.defense
        total = len(defense.phases()) * defense.training.epochs
        done = 0

        def say(row: Mapping[str, Any]) -> None:
            nonlocal done
            done += 1
            tick(f"{self.title}: {row['phase']}, epoch {done}/{total}, loss {row['loss']:.3f}")

        how: dict[str, Any] = {"seed": self.seed, "device": device, "on_epoch": say}
        if self.out is None:
            return trained(defense, self.arch, opened(self.data), **how)
        train(defense, self.arch, opened(self.data), Path(self.out), **how)
        return f"defense:{self.out}"


@dataclass(frozen=True)
class Sample:
    """The members of an ensemble, saved again with the probabilities of the lowest adversarial risk.

    Args:
        name: of the ensemble.
        data: images that no member was trained on; of these the first ``limit``.
        eps, steps, rounds, lr: see `advens.defenses.resample.resampled`.
        out: a folder to save the randomized ensemble in, with ``sampling.json``.
    """

    name: str
    data: str
    limit: int | None
    eps: float
    steps: int
    rounds: int
    lr: float
    out: str

    @property
    def title(self) -> str:
        return self.name

    def do(self, device: str) -> dict[str, Any]:
        """Searches and saves. Returns what ``sampling.json`` says."""
        from advens.defenses.resample import resampled

        out = Path(self.out)
        if out.exists():
            raise InputError(f"{out} is there already; give another --out")
        data = opened(self.data)
        batch = next(data.batches([slice(0, min(len(data), self.limit or len(data)))]))
        x, y = (batch.pixels.float() / 255).to(device), batch.labels.to(device)
        ensemble, found = resampled(
            find_model(self.name).to(device), x, y, eps=self.eps, steps=self.steps, rounds=self.rounds,
            lr=self.lr,
        )  # fmt: skip
        found |= {
            "ensemble": self.name, "data": self.data, "eps": self.eps, "steps": self.steps,
            "rounds": self.rounds, "lr": self.lr,
        }  # fmt: skip
        with new_folder(out) as folder:
            ensemble.cpu().write(folder)
            (folder / "sampling.json").write_text(json.dumps(found, indent=1) + "\n")
        return found


@lru_cache(maxsize=4)
def opened(source: str) -> Dataset:
    """A data source, opened once in a process: its digest is needed by every training."""
    return find_data(source)


@dataclass(frozen=True)
class Craft:
    """Craft the images of one cell into a run's directory, rounded to 8 bits inside the ball.

    Args:
        directory: of the run.
        shared: whether other parts of the run may be at the same cell.
    """

    directory: str
    cell: Cell
    batch_size: int | None
    trace: bool = False
    store: str = "differences"
    shared: bool = False

    @property
    def title(self) -> str:
        return self.cell.title

    def do(self, device: str) -> int | None:
        """Crafts, unless another part of the run is at it or has done it. Returns images."""
        store = RunStore(self.directory)
        with store.claim(self.cell.key) if self.shared else nullcontext(True) as mine:
            return self._done(store, device) if mine and not (self.shared and self.there(store)) else None

    def there(self, store: RunStore) -> bool:
        """Whether the images are there."""
        return is_whole(store.examples_path(self.cell.key), "examples") and (
            not self.trace or trace_path(store, self.cell.key).is_file()
        )

    def _done(self, store: RunStore, device: str) -> int:
        """Crafts, rounds to 8 bits inside the ball, audits the bytes, writes. Returns images."""
        cell, cache = self.cell, worker_cache(device)
        batch = cache.shard(cell.data, *cell.shard)
        made = images_of(cell, store, cache, self.batch_size, self.trace)
        target, threat = made.target, made.threat
        n = len(batch.labels)
        whole = self.store == "images" or not cache.reproducible(cell.data, *cell.shard)
        rows = example_rows(cell.key, batch.pixels, made.pixels, threat, whole) | {
            "sample_id": list(batch.sample_ids),
            "label": batch.labels.numpy(),
            "target_label": [None] * n if target is None else target.numpy(),
        }
        about = cell.to_json() | {
            "norm": threat.norm,
            "eps": threat.eps,
            "seconds_per_image": made.seconds / n,
            "device": device,
            "threads": torch.get_num_threads(),
            "arithmetic": arithmetic(device),
            "version": advens.__version__,
            "clean_sha256": clean_digest(batch.pixels.numpy()),
            **made.about(),
        }
        if cache.gpu:  # found by a probe, where nobody said
            about["batch"] = made.batch
        write_examples(store.examples_path(cell.key), rows, about)
        if self.trace:
            write_trace(trace_path(store, cell.key), made.crafted, batch.sample_ids, cell.specs)
        return n


@dataclass(frozen=True)
class Images:
    """The images of a cell, and what came of crafting them.

    Args:
        pixels: (N, 3, H, W) uint8, inside the ball.
        target: wanted classes (N,), or None when untargeted.
        threat: the ball.
        crafted: what the goal of the cell gives.
        seconds: that it took.
        batch: images at once, as far as memory allowed.
    """

    pixels: Tensor
    target: Tensor | None
    threat: Threat
    crafted: Crafted
    seconds: float
    batch: int

    def about(self) -> dict[str, Any]:
        """What the description of a cell says of its images that follows from its attack."""
        forwards, backwards = self.crafted.passes
        found = {"forwards_per_sample": forwards, "backwards_per_sample": backwards, **self.crafted.about}
        if self.crafted.silent is not None:
            found["silent_images"] = int((self.crafted.silent > 0).sum())
            found["silent_steps"] = int(self.crafted.silent.sum())
        return found


def images_of(
    cell: Cell, store: RunStore, cache: WorkerCache, batch_size: int | None, trace: bool = False
) -> Images:
    """Craft a cell: from its models, data and seed, in a sequence from the images that the stage before left.

    Raises:
        InputError: the weights of its models are not those it names.
    """
    batch = cache.shard(cell.data, *cell.shard)
    models = cache.models.get(cell.specs, spread=True)
    for model, digest in zip(models, cell.digests, strict=True):
        if model.digest != digest:
            raise InputError(f"the weights of {model.name} changed while the run was going on")
    target = cell.wanted(batch.labels, batch.target_labels, models[0].num_classes)
    attack: Any = cell.build()
    before = None
    if cell.after:
        before = stored_pixels(read_table(store.examples_path(cell.after), "examples"), cache, cell)
    size = batch_size or cache.batch(models, batch.pixels, gradient=True)
    started = time.perf_counter()
    crafted = ATTACK_GOALS[cell.goal].craft(
        Work(cell, attack, models, batch, target, size, trace, before, cache)
    )
    pixels = attack.threat.quantise(crafted.x_adv.float().cpu(), batch.pixels.float() / 255)
    return Images(pixels, target, attack.threat, crafted, time.perf_counter() - started, size)


class Target(NamedTuple):
    """A target by its name, its key in names of files, and what the plan knows of it."""

    name: str
    key: str
    card: ModelCard


class Pair(NamedTuple):
    """What came of a target on a cell, both by their keys: why it failed, or None."""

    cell: str
    key: str
    failure: str | None


@dataclass(frozen=True)
class Evaluate:
    """Evaluate targets on the stored images of cells: every image is read once, and every model had once.

    Args:
        directory: of the run.
        cells, targets: each of the targets is evaluated on each of the cells.
        shared: whether other parts of the run may be at the same.
    """

    directory: str
    cells: tuple[Cell, ...]
    targets: tuple[Target, ...]
    batch_size: int | None
    shared: bool = False

    @property
    def title(self) -> str:
        """What people call it."""
        more = len(self.cells) * len(self.targets) - 1
        return self.title_of(self.cells[0], self.targets[0]) + (f" and {more} more" if more else "")

    @staticmethod
    def title_of(cell: Cell, target: Target) -> str:
        """What people call a target on a cell."""
        return f"{target.name} on {cell.title}"

    @property
    def pairs(self) -> Iterator[tuple[Cell, Target]]:
        """All that is evaluated."""
        return product(self.cells, self.targets)

    def do(self, device: str) -> list[Pair]:
        """Predicts on clean and stored images, writes one row per image. Returns what was done here."""
        store, cache = RunStore(self.directory), worker_cache(device)
        images: dict[str, tuple[pa.Table, Tensor]] = {}
        found = []
        for target in sorted(self.targets, key=lambda target: target.name not in cache.models):
            for cell in self.cells:
                name = f"{cell.key}.{target.key}"
                with store.claim(name) if self.shared else nullcontext(True) as mine:
                    path = store.samples_path(cell.key, target.key)
                    if mine and not (self.shared and is_whole(path, "samples")):
                        failed = self._failure(store, cache, images, cell, target)
                        found.append(Pair(cell.key, target.key, failed))
            tick(f"{target.name} on {len(self.cells)} cells")
        return found

    def _failure(
        self, store: RunStore, cache: WorkerCache, images: dict[str, tuple[pa.Table, Tensor]], cell: Cell,
        target: Target,
    ) -> str | None:  # fmt: skip
        """Write the rows of a target on a cell; why that failed, or None. Bad input is raised.

        Args:
            images: of cells that were read before, by key.
        """
        try:
            if cell.key not in images:
                table = read_table(store.examples_path(cell.key), "examples")
                images[cell.key] = table, stored_pixels(table, cache, cell)
            rows = evaluated(cache, cell, *images[cell.key], target, self.batch_size)
            store.write_samples({(cell.key, target.key): rows})
        except InputError:
            raise
        except Exception as error:  # of a model: other pairs go on
            return str(failure(error))
        return None


def evaluated(
    cache: WorkerCache, cell: Cell, table: pa.Table, pixels: Tensor, target: Target, batch_size: int | None
) -> pa.Table:
    """The rows of a target on the images of a cell."""
    model, tables, white_box = cache.models.get([target.name])[0], [], cell.knows(target.card)
    for member in members_of(model):
        clean = clean_predictions(cache, cell, target.name, member, batch_size)
        adversarial = predict(cache, member.model, pixels, batch_size)
        rows = sample_rows(
            cell, table, target.name, member, clean, adversarial, white_box, model.family
        )
        tables.append(schema.to_table("samples", rows))
    return pa.concat_tables(tables)


@dataclass(frozen=True)
class Measure:
    """Measure a defense: its cost, and for ensembles diversity and transfer between members.

    Args:
        name: of the model.
        source: images, of which the first ``images`` are taken.
        images, eps, seed: of diversity and transfer.
    """

    name: str
    source: str
    images: int
    eps: float
    seed: int

    @property
    def title(self) -> str:
        return self.name

    def do(self, device: str) -> dict[str, Any]:
        """Measures. Returns a row of ``models``, without what a suite says of the model."""
        from advens.attacks.expectation import is_randomized
        from advens.defenses.measures import cost

        model, data = find_model(self.name).to(device), opened(self.source)
        members = list(getattr(model, "members", ()))
        kind = "randomized" if is_randomized(model) else "mean" if members else "single"
        row: dict[str, Any] = {
            "defense": model.name, "digest": model.digest, "kind": kind, "members": max(1, len(members)),
            "mflops": cost(model, model.input_size or data.size) / 1e6,
            "measured": self.images, "eps": self.eps, "measure_seed": self.seed,
        }  # fmt: skip
        if len(members) > 1:
            try:
                row |= between_members(members, data, self)
            except InputError as error:  # members that are hardly ever all right
                row |= {"why": str(error)}
        return row


def between_members(members: Sequence[Classifier], data: Dataset, how: Measure) -> dict[str, Any]:
    """Diversity of members and how many adversarial images they share."""
    from advens.defenses.measures import diversity, transfer_between

    batch = next(data.batches([slice(0, min(len(data), how.images))]))
    device = members[0].mean.device
    x, y = (batch.pixels.float() / 255).to(device), batch.labels.to(device)
    apart = diversity(members, x, y, eps=how.eps, seed=how.seed)
    pairs = transfer_between(members, x, y, Threat("linf", how.eps), restarts=1, seed=how.seed)
    rates, k = pairs.rates, len(members)
    return {
        "diversity": apart.value,
        "shared": float((rates.sum() - rates.diagonal().sum()) / (k * (k - 1))),
        "pairs": json.dumps(apart.pairs.tolist()),
        "rates": json.dumps(rates.tolist()),
        "counted": json.dumps(pairs.counted.tolist()),
    }


def example_rows(
    key: str, clean: Tensor, adversarial: Tensor, threat: Threat, whole: bool
) -> dict[str, Any]:
    """Columns of ``examples`` that come from the bytes; refuses images outside the ball.

    Args:
        whole: whether images are stored whole, or else as differences from the clean ones.

    Raises:
        RunError: an image leaves the ball. Nothing is stored then.
    """
    excess = threat.excess(adversarial, clean)
    if bool((excess > AUDIT_TOLERANCE).any()):
        raise RunError(
            f"{int((excess > AUDIT_TOLERANCE).sum())} images leave the ball by up to {excess.max():.3g}"
        )
    return {
        "cell": [key] * len(adversarial),
        **image_columns(adversarial.numpy(), None if whole else clean.numpy()),
        **measured(adversarial, clean),
    }


def measured(adversarial: Tensor, clean: Tensor) -> dict[str, np.ndarray]:
    """Each norm (N,) of the difference of two stacks of bytes, images in [0, 1]."""
    delta = (adversarial.double() - clean.double()) / 255
    return {norm: norms(delta, norm).flatten().numpy() for norm in NORMS}


def stored_pixels(table: Any, cache: WorkerCache, cell: Cell) -> Tensor:
    """The images of an examples table of the shard of a cell, uint8 (N, 3, H, W).

    Raises:
        InputError: the data are not those that differences were stored from.
        RunError: a damaged table.
    """
    return torch.from_numpy(whole_images(table, lambda: cache.shard(cell.data, *cell.shard).pixels.numpy()))


def trace_path(store: RunStore, cell: str) -> Path:
    """Where the trace of a cell lies."""
    return store.path("traces", f"{cell}.parquet")


def write_trace(
    path: Path, crafted: Crafted, sample_ids: Sequence[str], surrogates: Sequence[str]
) -> None:
    """A trace as a table of the run, one row per observation.

    Of an attack that notes nothing the table is empty, so that the cell is not crafted for it again.
    """
    frames = []
    for what, values in (crafted.trace or {}).items():
        each = surrogates if values.dim() == 3 else [None]
        steps = crafted.recorded if len(crafted.recorded) == len(values) else range(len(values))
        index = pd.MultiIndex.from_product([steps, sample_ids, each])
        frame = index.to_frame(index=False, name=["step", "sample_id", "surrogate"])
        frame = frame.assign(what=what, value=values.flatten().double().numpy())
        frames.append(frame[frame["value"].notna()])
    empty = schema.SCHEMAS["traces"].empty_table()
    rows = pd.concat(frames, ignore_index=True) if frames else empty
    write_table(path, schema.to_table("traces", rows))
