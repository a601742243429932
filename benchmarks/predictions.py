"""What a target says of images, and the rows of ``samples`` that follow from it.

A randomized ensemble answers once for every member it may draw; a row counts as often as the member is
drawn, so expectations are computed and nothing is sampled.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from advens.attacks.expectation import is_randomized
from advens.benchmarks.plan import Cell
from advens.benchmarks.worker_cache import Workshop, default_batch
from advens.classifier import Classifier, warn_of_probabilities
from advens.errors import InputError, RunError, first_line


class Voice(NamedTuple):
    """One that may answer for a target.

    Args:
        member: of a randomized ensemble; None for a target that answers for itself.
        weight: how often it does.
        model: it.
    """

    member: int | None
    weight: float
    model: Classifier


def voices(model: Any) -> list[Voice]:
    """Who answers for a target: itself, or every member of a randomized ensemble that is ever drawn."""
    if not is_randomized(model):
        return [Voice(None, 1.0, model)]
    drawn = zip(model.members, model.probabilities.tolist(), strict=True)
    return [Voice(k, weight, member) for k, (member, weight) in enumerate(drawn) if weight > 0]


@torch.inference_mode()
def logits_of(shop: Workshop, model: Classifier, pixels: Tensor, batch_size: int | None) -> Tensor:
    """Logits (N, classes) on the CPU, in batches of one size whatever the shard."""
    from advens.attacks.running import out_of_memory

    size, start, parts = batch_size or default_batch(pixels), 0, []
    while start < len(pixels):
        try:
            out = model(shop.images(pixels[start : start + size]))
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
    shop: Workshop, model: Classifier, pixels: Tensor, batch_size: int | None
) -> np.ndarray:
    """Predicted classes (N,) int64."""
    return logits_of(shop, model, pixels, batch_size).argmax(1).numpy()


def clean_predictions(
    shop: Workshop, cell: Cell, target: str, voice: Voice, batch_size: int | None
) -> np.ndarray:
    """Predictions on the clean shard of a cell, computed once per process."""
    key = (cell.data, cell.shard, target, voice.member)
    if key not in shop.clean:
        pixels = shop.shard(cell.data, *cell.shard).pixels
        shop.clean[key] = predict(shop, voice.model, pixels, batch_size)
    return shop.clean[key]


def sample_rows(
    cell: Cell,
    table: Any,
    target: str,
    voice: Voice,
    clean: np.ndarray,
    adv: np.ndarray,
    white_box: bool,
    family: str,
) -> dict[str, Any]:
    """Columns of ``samples`` for one cell and one voice of a target of that architecture."""
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
        "member": voice.member,
        "weight": voice.weight,
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
    }
