"""MIG and TAIG against their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.losses import Probability

EPS = 16 / 255


@pytest.mark.parametrize("published", [False, True])
def test_mig(at: Any, mi: Any, published: bool) -> None:
    alpha, count = EPS / 3, 4

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        points = [k / count for k in range(1, count + 1)]
        each = [at.g(i, p * x, at.probability) * (p if published else 1) for p in points]
        return alpha * mi(x * torch.stack(each).mean(0), memory).sign()

    at.same(step, "mig", 3, copies=count, published=published)


@pytest.mark.parametrize("random", [False, True])
def test_taig(at: Any, random: bool) -> None:
    alpha, count = EPS / 3, 3

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        total = torch.zeros_like(x)
        for k in range(count + 1):
            noise = at.uniform(t, i, EPS, "integrated", k) if random else 0
            total += at.g(i, k / count * x + noise, at.logit) / (count + 1)
        return alpha * (x * total).sign()

    at.same(step, "taig-r" if random else "taig-s", 3, copies=count)


def test_passes() -> None:
    assert create_attack("mig").passes(1) == (500, 500)
    assert create_attack("taig-s").passes(2) == (420, 420)


@pytest.mark.parametrize("name", ["mig", "taig-s"])
def test_a_black_pixel_never_moves(at: Any, name: str) -> None:
    found, black = at.run(name, steps=4, copies=3), at.x == 0
    assert black.any()
    assert torch.equal(found[black], at.x[black])


@pytest.mark.parametrize("targeted", [False, True])
def test_the_probability_of_a_sure_model_has_a_gradient(targeted: bool) -> None:
    """Value and slope at any confidence, as the two factors."""
    loss, y, target = Probability(), torch.tensor([0]), torch.tensor([1]) if targeted else None
    for size in (0.0, 3.0, -20.0, 200.0):
        z = torch.tensor([[size, -size, 0.1]], dtype=torch.float64, requires_grad=True)
        (wanted,) = torch.autograd.grad(loss(z, y, target).sum(), z)
        odds = loss.odds(z, y, target)
        value, log_slope = loss.at(odds.detach(), targeted)
        (along,) = torch.autograd.grad(odds.sum(), z)
        torch.testing.assert_close(value, loss(z, y, target).detach())
        torch.testing.assert_close(log_slope.exp() * along, wanted, atol=1e-12, rtol=1e-9)
        assert torch.isfinite(log_slope).all()
