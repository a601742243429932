"""The task of a worker under ``robustness``: attack a model in the open, on what still stands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from advens.attacks.running import AttackResult
from advens.attacks.whitebox.checks import inspect
from advens.attacks.whitebox.engine import WhiteBox, search
from advens.attacks.whitebox.oracle import RowOracle
from advens.benchmarks.plan import Cell
from advens.benchmarks.tasks import (
    cell_seed,
    describe_cell,
    example_rows,
    silence,
    stored_pixels,
    wanted,
)
from advens.benchmarks.worker_cache import default_batch, workshop
from advens.classifier import Classifier, borrowed
from advens.datasets import Batch
from advens.errors import InputError
from advens.results.store import RunStore, read_table, write_examples

INSPECTED = 64
"""Images of the first shard that the checks look at."""
LATE = 0.1
"""The last part of the iterations, in which few samples should still break."""


@dataclass(frozen=True)
class Break:
    """Attack one shard of one model and store the worst image of every sample so far."""

    directory: str
    cell: Cell
    batch_size: int | None

    @property
    def title(self) -> str:
        return f"{self.cell.attack} on {self.cell.surrogates}"

    def do(self, device: str) -> int:
        """Attacks, audits the bytes, writes. Returns images."""
        cell, shop, store = self.cell, workshop(device), RunStore(self.directory)
        batch = shop.shard(cell.data, *cell.shard)
        (model,) = shop.models.get(cell.specs)
        if model.digest != cell.digests[0]:
            raise InputError(f"the weights of {model.name} changed while the run was going on")
        attack: Any = cell.build()
        x, y = shop.images(batch.pixels), batch.labels.to(shop.device)
        target = wanted(cell, batch.labels, batch.target_labels, model.num_classes)
        oracle = RowOracle(
            [model], attack.threat, x, y, None if target is None else target.to(shop.device),
            seed=cell_seed(cell), eot=getattr(attack, "eot", 1), eight_bit=True,
        )  # fmt: skip
        started = time.perf_counter()
        size = self.batch_size or default_batch(batch.pixels)
        with borrowed([model]):
            places = self._standing(oracle, store, batch, size)
            stood = len(places)
            silent = self._attack(attack, model, oracle, places, size)
        adversarial = attack.threat.quantise(oracle.x_adv.float().cpu(), batch.pixels.float() / 255)
        seconds = time.perf_counter() - started
        rows = example_rows(cell.key, batch.pixels, adversarial, attack.threat) | {
            "sample_id": list(batch.sample_ids),
            "label": batch.labels.numpy(),
            "target_label": [None] * len(batch.labels) if target is None else target.numpy(),
        }
        n = len(batch.labels)
        spent = (float(oracle.forwards.sum()) / n, float(oracle.backwards.sum()) / n)
        about = describe_cell(cell, device, attack, spent, seconds)  # type: ignore[arg-type]
        about |= {"stood": stood, "notes": self._notes(attack, model, oracle, x, y)} | silence(silent)
        write_examples(store.examples_path(cell.key), rows, about)
        return n

    def _standing(self, oracle: RowOracle, store: RunStore, batch: Batch, size: int) -> Tensor:
        """The samples to attack: right on the clean image, and on the worst image found before."""
        places = torch.arange(len(batch.labels), device=oracle.x.device)
        if self.cell.after:
            before = stored_pixels(read_table(store.examples_path(self.cell.after), "examples"))
            oracle.x_adv = workshop(str(oracle.x.device)).images(before)
        alive = []
        for part in places.split(size):
            rows = oracle.rows(part)
            oracle.correct[part] = oracle.accuracy(oracle.x_adv[part], rows)
            alive.append(part[oracle.correct[part] > 0])
        return torch.cat(alive)

    def _attack(
        self, attack: Any, model: Classifier, oracle: RowOracle, places: Tensor, size: int
    ) -> Tensor | None:
        """Attacks the samples at ``places``; the steps each had no gradient in, where these are counted."""
        if isinstance(attack, WhiteBox):
            search(attack, oracle, places, batch=size)  # type: ignore[arg-type]
            return None
        if not len(places):
            return None
        target = None if oracle.target is None else oracle.target[places]
        result: AttackResult = attack.run(
            [model], oracle.x[places], oracle.y[places], target, seed=cell_seed(self.cell), micro_batch=size
        )  # fmt: skip
        oracle.forwards[places] += result.passes.forward
        oracle.backwards[places] += result.passes.backward
        for part, images in zip(places.split(size), result.x_adv.split(size), strict=True):
            oracle.accuracy(images, oracle.rows(part))
        return result.silent

    def _notes(
        self, attack: Any, model: Classifier, oracle: RowOracle, x: Tensor, y: Tensor
    ) -> list[str]:
        """What a careful evaluator would say of this cell."""
        notes = []
        if self.cell.shard[0] == 0 and not self.cell.after:
            notes += inspect(model, x[:INSPECTED], y[:INSPECTED], attack.threat, eot=oracle.eot)
        steps = getattr(attack, "iterations", 0)
        broken = oracle.broken_at[oracle.broken_at >= 0]
        late = int((broken >= (1 - LATE) * steps).sum()) if steps >= 20 else 0
        if late >= 3 and late > 2 * LATE * len(broken):
            notes.append(
                f"{late} of {len(broken)} broken samples broke in the last tenth of the iterations; "
                "more iterations may break more"
            )
        return notes
