"""Reweighting: the weights and the gradient by the formula, and its two ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from advens.attacks import create_attack
from advens.errors import InputError


def transcribed(at: Any, temperature: float) -> Any:
    """w = softmax(-J / T), direction sum w_k grad J_k, J what is ascended; momentum outside."""

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        losses = [float(at.j(at.logits(k, x), i).detach()) for k in range(at.k)]
        sizes = [math.exp(-(loss - min(losses)) / temperature) for loss in losses]
        total = torch.zeros_like(x)
        for k, size in enumerate(sizes):
            total += size / sum(sizes) * at.own(i, k, x)
        return total

    return at.alone(direction)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_formula(at: Any, same: Any, temperature: float) -> None:
    found = at.run("vit-ensemble", temperature=temperature)
    same(found, transcribed(at, temperature))


def test_hot_is_the_mean_of_losses_and_cold_the_least_fooled(setting: Any) -> None:
    at = setting(k=3)
    options = {"eps": at.eps, "steps": 1, "step_size": 0.01}
    hot = create_attack("vit-ensemble", temperature=1e6, **options)
    mean = create_attack("mi-ens-loss", **options)
    torch.testing.assert_close(hot(at.models, at.x, at.y), mean(at.models, at.x, at.y), rtol=0, atol=1e-9)
    cold = create_attack("vit-ensemble", temperature=1e-3, **options)(at.models, at.x, at.y)
    each = torch.stack([cross_entropy(m(at.x), at.y, reduction="none") for m in at.models])
    for i, k in enumerate(each.argmin(0).tolist()):
        alone = create_attack("mifgsm", **options)(at.models[k], at.x[i : i + 1], at.y[i : i + 1])
        torch.testing.assert_close(cold[i : i + 1], alone, rtol=0, atol=1e-9)


def test_temperature_is_positive() -> None:
    with pytest.raises(InputError, match="above 0"):
        create_attack("vit-ensemble", temperature=0)
