"""IE against its formulas."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = 16 / 255


def test_ie(at: Any, u: Any) -> None:
    alpha = EPS / 4

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        a = u(at.g(i, x))
        b = u(at.g(i, x + alpha * a))
        memory["m"] = 0.9 * memory.get("m", torch.zeros_like(x)) + (a + b) / 2
        return alpha * memory["m"].sign()

    at.same(step, "iefgsm", 4, mu=0.9)


def test_normalised_again_it_is_another_attack_of_nearly_the_same_directions(at: Any) -> None:
    """(a + b) / 2 has a mean size of nearly 1: MI's own division changes each step's weight a little."""
    again, published = at.run("iefgsm", update="mi"), at.run("iefgsm")
    assert ((again - published).abs() > EPS / 10).double().mean() < 0.1
