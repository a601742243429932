"""GRA against its formulas, and the decay of steps alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.updates.decay import DecayMI
from advens.errors import InputError

EPS = 16 / 255


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / torch.sqrt((a**2).sum() * (b**2).sum())


def test_gra(at: Any, mi: Any) -> None:
    alpha, eta = EPS / 4, 0.8

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        g = at.g(i, x)
        near = [at.g(i, x + at.uniform(t, i, 3.5 * EPS, "gra", c)) for c in range(4)]
        mean = torch.stack(near).mean(0)
        s = cosine(g, mean)
        before = memory.get("m", torch.zeros_like(x)).clone()
        m = mi(s * g + (1 - s) * mean, memory, 0.5)
        decay = memory.get("D", torch.full_like(x, 1 / eta))
        memory["D"] = torch.where(m.sign() == before.sign(), decay, decay * eta)
        return alpha * memory["D"] * m.sign()

    at.same(step, "gra", 4, copies=4, eta=eta, mu=0.5)


@pytest.mark.parametrize(("against", "first"), [("momentum", 1.0), ("gradient", 1 / 0.5)])
def test_steps_shrink_where_signs_turn_and_never_grow(against: Any, first: float) -> None:
    """Gradients +, -, + with mu = 0: the momentum is the gradient itself."""
    update, memory = DecayMI(mu=0.0, eta=0.5, against=against), dict[str, Tensor]()
    sizes = []
    for sign in (1.0, 1.0, -1.0, -1.0, 1.0):
        ahead = update.direction(sign * torch.ones(1, 1, 1, 2, dtype=torch.float64), memory)
        moved = update.displacement(ahead, memory, None)  # type: ignore[arg-type]
        sizes.append(float(moved[0, 0, 0, 0]) * sign)
    turns = [1.0, 1.0, 0.5, 0.5, 0.25] if against == "momentum" else [1.0] * 5
    assert sizes == [first * size for size in turns]


def test_eta_shrinks() -> None:
    for eta in (0.0, 1.1):
        with pytest.raises(InputError, match="above 0 and at most 1"):
            create_attack("gra", eta=eta)
