"""What a target predicts on images, and the rows of ``samples`` that follow from it.

A randomized ensemble has one row for every member that it may draw, weighted by the member's probability, so
that rates are expectations and nothing is sampled.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advens.attacks.expectation import is_randomized
from advens.benchmarks.cells import Cell
from advens.benchmarks.worker_cache import WorkerCache
from advens.classifier import Classifier, warn_of_probabilities
from advens.errors import InputError, RunError, first_line


class Member(NamedTuple):
    """A model whose answers count for a target.

    Args:
        place: its place in a randomized ensemble; None for a target that is no such ensemble.
        probability: the probability with which the ensemble draws it; 1 for a target that is none.
        model: the model.
    """

    place: int | None
    probability: float
    model: Classifier


def members_of(target: Any) -> list[Member]:
    """The target itself, or every member that a randomized ensemble draws with a positive probability."""
    if not is_randomized(target):
        return [Member(None, 1.0, target)]
    drawn = zip(target.members, target.probabilities.tolist(), strict=True)
    return [Member(k, share, model) for k, (model, share) in enumerate(drawn) if share > 0]


@torch.inference_mode()
def logits_of(cache: WorkerCache, model: Classifier, pixels: Tensor, batch_size: int | None) -> Tensor:
    """Logits (N, classes) on the CPU, in batches of one size whatever the shard."""
    from advens.attacks.running import out_of_memory

    size, start, parts = batch_size or cache.batch([model], pixels), 0, []
    while start < len(pixels):
        try:
            out = model(cache.images(pixels[start : start + size]))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise InputError(f"{model.name} cannot be run: {first_line(error)}") from error
            if size == 1:
                raise RunError(f"{model.name}: out of memory with a single image") from error
            size = (size + 1) // 2
            continue
        if out.dim() != 2 or out.shape[1] != model.num_classes:
            raise InputError(
                f"{model.name} returned {tuple(out.shape)}, not (N, {model.num_classes}) logits"
            )
        parts.append(out.float().cpu())
        start += size
    logits = torch.cat(parts)
    if not torch.isfinite(logits).all():
        raise InputError(f"{model.name} returned logits that are NaN or infinite")
    warn_of_probabilities(f"'{model.name}'", logits)
    return logits


def predict(
    cache: WorkerCache, model: Classifier, pixels: Tensor, batch_size: int | None
) -> np.ndarray:
    """Predicted classes (N,) int64."""
    return logits_of(cache, model, pixels, batch_size).argmax(1).numpy()


def clean_predictions(
    cache: WorkerCache, cell: Cell, target: str, member: Member, batch_size: int | None
) -> np.ndarray:
    """Predictions on the clean shard of a cell, computed once per process."""
    key = (cell.data, cell.shard, target, member.place)
    if key not in cache.clean:
        pixels = cache.shard(cell.data, *cell.shard).pixels
        cache.clean[key] = predict(cache, member.model, pixels, batch_size)
    return cache.clean[key]


def sample_rows(
    cell: Cell,
    table: Any,
    target: str,
    member: Member,
    clean: np.ndarray,
    adv: np.ndarray,
    white_box: bool,
    family: str,
) -> dict[str, Any]:
    """Columns of ``samples`` for one cell and one member of a target of that architecture."""
    n = table.num_rows
    label = table.column("label").to_numpy()
    clean_correct = clean == label
    aim = table.column("target_label")
    success = adv == aim.to_numpy() if cell.targeted else clean_correct & (adv != label)
    constant = {
        "suite": cell.suite,
        "attack": cell.attack,
        "attack_params": json.dumps(cell.params, sort_keys=True),
        "surrogates": cell.surrogates,
        "seed": cell.seed,
        "target": target,
        "cell": cell.key,
        "white_box": white_box,
        "member": member.place,
        "weight": member.probability,
        "target_family": family,
    }
    return {name: [value] * n for name, value in constant.items()} | {
        "sample_id": table.column("sample_id").combine_chunks(),
        "label": label,
        "target_label": aim.combine_chunks(),
        "clean_pred": clean,
        "adv_pred": adv,
        "clean_correct": clean_correct,
        "success": success,
        "linf": table.column("linf").to_numpy(),
        "l2": table.column("l2").to_numpy(),
        "l1": table.column("l1").to_numpy() if "l1" in table.column_names else [None] * n,
    }
