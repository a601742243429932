"""The two tasks a worker does: craft a cell, and show a cell's images to a target.

Both write one file atomically and give back how long it took, so any executor can run them in any
order, in any process, and a crash costs at most the cell at hand.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import TypeAdapter
from torch import Tensor

import advens
from advens.benchmarks.plan import Cell, target_labels
from advens.benchmarks.predictions import clean_predictions, predict, sample_rows, voices
from advens.benchmarks.traces import trace_bytes, trace_path
from advens.benchmarks.worker_cache import default_batch, workshop
from advens.errors import InputError, RunError
from advens.results.store import (
    RunStore,
    read_table,
    schema,
    write_bytes,
    write_examples,
    write_table,
)
from advens.seeding import derive
from advens.threat import norms

AUDIT_TOLERANCE = 1e-9
_CELL = TypeAdapter(Cell)


@dataclass(frozen=True)
class Craft:
    """Craft the images of one cell into a run directory."""

    directory: str
    cell: Cell
    batch_size: int | None
    trace: bool = False

    @property
    def title(self) -> str:
        return f"{self.cell.attack} on {self.cell.surrogates}"

    def do(self, device: str) -> int:
        """Crafts, rounds to 8 bits inside the ball, audits the bytes, writes. Returns images."""
        cell, shop, store = self.cell, workshop(device), RunStore(self.directory)
        batch = shop.shard(cell.data, *cell.shard)
        models = shop.models.get(cell.specs)
        for model, digest in zip(models, cell.digests, strict=True):
            if model.digest != digest:
                raise InputError(f"the weights of {model.name} changed while the run was going on")
        target = wanted(cell, batch.labels, batch.target_labels, models[0].num_classes)
        attack = cell.build()
        started = time.perf_counter()
        result = attack.run(
            models,
            shop.images(batch.pixels),
            batch.labels,
            target,
            seed=cell_seed(cell),
            micro_batch=self.batch_size or default_batch(batch.pixels),
            trace=self.trace,
        )
        adversarial = attack.threat.quantise(result.x_adv.float().cpu(), batch.pixels.float() / 255)
        seconds = time.perf_counter() - started
        rows = example_rows(cell.key, batch.pixels, adversarial, attack.threat)
        rows |= {
            "sample_id": list(batch.sample_ids),
            "label": batch.labels.numpy(),
            "target_label": None if target is None else target.numpy(),
        }
        if target is None:
            rows["target_label"] = [None] * len(batch.labels)
        write_examples(
            store.examples_path(cell.key),
            rows,
            describe_cell(cell, device, attack, result.passes, seconds) | silence(result.silent),
        )
        if result.trace is not None:
            traced = trace_bytes(result.trace, batch.sample_ids, cell.specs)
            write_bytes(trace_path(store, cell.key), traced)
        return len(adversarial)


@dataclass(frozen=True)
class Evaluate:
    """Show the stored images of one cell to one target."""

    directory: str
    cell: Cell
    target: str
    target_key: str
    white_box: bool
    batch_size: int | None

    @property
    def title(self) -> str:
        return f"{self.target} looks at {self.cell.attack} on {self.cell.surrogates}"

    def do(self, device: str) -> int:
        """Predicts on clean and stored images, writes one row per image. Returns images."""
        cell, shop, store = self.cell, workshop(device), RunStore(self.directory)
        table = read_table(store.examples_path(cell.key), "examples")
        pixels, tables = stored_pixels(table), []
        target = shop.models.get([self.target])[0]
        for voice in voices(target):
            clean = clean_predictions(shop, cell, self.target, voice, self.batch_size)
            adversarial = predict(shop, voice.model, pixels, self.batch_size)
            rows = sample_rows(
                cell, table, self.target, voice, clean, adversarial, self.white_box, target.family
            )
            tables.append(schema.to_table("samples", rows))
        write_table(store.samples_path(cell.key, self.target_key), pa.concat_tables(tables))
        return len(pixels)


def cell_seed(cell: Cell) -> int:
    """What an attack's randomness in one cell is derived from."""
    attack = json.dumps(cell.params, sort_keys=True)
    return derive(cell.seed, attack, cell.shard[0] // cell.shard_size)


def wanted(cell: Cell, labels: Tensor, given: Tensor | None, classes: int) -> Tensor | None:
    """The classes the attacker wants: the data's, else drawn; None when untargeted."""
    if not cell.targeted:
        return None
    if given is not None:
        if int(given.max()) >= classes or int(given.min()) < 0:
            raise InputError(
                f"a target label in {cell.data} is out of range; there are {classes} classes"
            )
        return given
    return torch.from_numpy(target_labels(labels.numpy(), cell.shard[0], classes, cell.seed))


def example_rows(key: str, clean: Tensor, adversarial: Tensor, threat: Any) -> dict[str, Any]:
    """Columns of ``examples`` that come from the bytes; refuses images outside the ball.

    Raises:
        RunError: an image leaves the ball. Nothing is stored then.
    """
    excess = threat.excess(adversarial, clean)
    if bool((excess > AUDIT_TOLERANCE).any()):
        raise RunError(
            f"{int((excess > AUDIT_TOLERANCE).sum())} images leave the ball by up to {excess.max():.3g}"
        )
    n, _, height, width = adversarial.shape
    linf, l2 = measured(adversarial, clean)
    return {
        "cell": [key] * n,
        "image": [image.numpy().tobytes() for image in adversarial],
        "height": np.full(n, height, np.int32),
        "width": np.full(n, width, np.int32),
        "linf": linf,
        "l2": l2,
    }


def measured(adversarial: Tensor, clean: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """l_inf and l_2 norms (N,) of the difference of two stacks of bytes, images in [0, 1]."""
    delta = (adversarial.double() - clean.double()) / 255
    return norms(delta, "linf").flatten().numpy(), norms(delta, "l2").flatten().numpy()


def stored_pixels(table: Any) -> Tensor:
    """The images of an examples table, uint8 (N, 3, H, W)."""
    height, width = (int(table.column(name)[0].as_py()) for name in ("height", "width"))
    flat = np.frombuffer(b"".join(table.column("image").to_pylist()), np.uint8)
    if flat.size != table.num_rows * 3 * height * width:
        raise RunError("the stored images are not of the size the table says")
    return torch.from_numpy(flat.reshape(-1, 3, height, width).copy())


def describe_cell(
    cell: Cell, device: str, attack: Any, passes: Sequence[int], seconds: float
) -> dict[str, Any]:
    """What an examples file says of its cell."""
    return {
        "suite": cell.suite,
        "attack": cell.attack,
        "attack_params": cell.params,
        "family": cell.family,
        "surrogates": cell.surrogates,
        "surrogate_specs": list(cell.specs),
        "surrogate_digests": list(cell.digests),
        "seed": cell.seed,
        "shard": list(cell.shard),
        "shard_size": cell.shard_size,
        "targeted": cell.targeted,
        "norm": attack.threat.norm,
        "eps": attack.threat.eps,
        "forwards_per_sample": passes[0],
        "backwards_per_sample": passes[1],
        "seconds_per_image": seconds / (cell.shard[1] - cell.shard[0]),
        "data": cell.data,
        "data_fingerprint": cell.fingerprint,
        "device": device,
        "version": advens.__version__,
        "goal": cell.goal,
        "after": cell.after,
        "bases": list(cell.bases),
    }


def silence(silent: Tensor | None) -> dict[str, int]:
    """How many images had steps without any gradient, and how many such steps; nothing if not counted."""
    if silent is None:
        return {}
    return {"silent_images": int((silent > 0).sum()), "silent_steps": int(silent.sum())}


def cell_from(description: dict[str, Any]) -> Cell:
    """The cell an examples file describes. Raises ValueError when it describes none."""
    said = {"goal": "transfer", "after": "", "bases": [], **description}
    named = {"params": "attack_params", "specs": "surrogate_specs", "digests": "surrogate_digests",
             "fingerprint": "data_fingerprint"}  # fmt: skip
    cell = _CELL.validate_python({f.name: said.get(named.get(f.name, f.name)) for f in fields(Cell)})
    start, stop = cell.shard
    if not 0 <= start < stop or cell.shard_size < 1 or not cell.specs or len(cell.specs) != len(cell.digests):
        raise ValueError("its shard is empty, or its surrogates have not a digest each")
    return cell
