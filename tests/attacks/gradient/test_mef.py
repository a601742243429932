"""MEF against its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


def test_mef(at: Any, u: Any, mi: Any) -> None:
    alpha, copies, xi, inner = EPS / 10, 3, 0.6, 0.7

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        p = memory.setdefault("p", [torch.zeros_like(x) for _ in range(copies)])
        gradients = []
        for c in range(copies):
            g = at.g(i, x + at.uniform(t, i, 2.0 * EPS, "mef", c) + xi * EPS * p[c])
            p[c] = u(g) - inner * p[c]
            gradients.append(g)
        return alpha * mi(torch.stack(gradients).mean(0), memory, 0.5).sign()

    at.same(
        step, "mef", 8, copies=copies, xi=xi,
        estimator={"name": "mef", "copies": copies, "xi": xi, "mu": inner},
    )  # fmt: skip


def test_neighbours_move_uphill_from_the_second_step_on(at: Any) -> None:
    """Without the move it is the mean over a neighbourhood; one step has no move yet."""
    for steps, equal in ((1, True), (3, False)):
        plain, far = (at.run("mef", steps=steps, copies=3, xi=xi, step_size="eps/2") for xi in (0.0, 5.0))
        assert torch.equal(far, plain) == equal


def test_a_single_neighbour_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 neighbours"):
        create_attack("mef", copies=1)
