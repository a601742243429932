"""AI-FGTM against its formulas, and its schedule by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks.steps import Adam
from advens.attacks.updates.aifgtm import AIFGTM
from advens.threat import Threat

EPS = 16 / 255


def test_ai_fgtm(at: Any) -> None:
    steps = 4
    w = [(1 - 0.9 ** (t + 1)) / math.sqrt(1 - 0.99 ** (t + 1)) for t in range(steps)]

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        g = at.g(i, x)
        memory["m"] = memory.get("m", torch.zeros_like(x)) + 1.5 * g
        memory["v"] = memory.get("v", torch.zeros_like(x)) + 1.9 * g**2
        return EPS * w[t] / sum(w) * torch.tanh(1.3 * memory["m"] / torch.sqrt(memory["v"]))

    at.same(step, "ai-fgtm", steps)


def test_the_schedule() -> None:
    """Of ten steps, relative to eps/10; all of them make eps."""
    alphas = [Adam().at(t, 10, Threat(eps=1.0)) for t in range(10)]
    wanted = [0.57, 0.76, 0.89, 0.98, 1.05, 1.10, 1.13, 1.16, 1.18, 1.19]
    assert [10 * alpha for alpha in alphas] == pytest.approx(wanted, abs=0.005)
    assert sum(alphas) == pytest.approx(1)
    assert sum(Adam("2eps/T").at(t, 7, Threat(eps=1.0)) for t in range(7)) == pytest.approx(2)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e30])
def test_squares_of_gradients_neither_vanish_nor_overflow(size: float) -> None:
    """In float32; a sample without any gradient in its first step, and a pixel without any."""
    g = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    g[:, 0, 0, 0] = 0
    memory: dict[str, Tensor] = {}
    update, m, v = AIFGTM(), torch.zeros_like(g).double(), torch.zeros_like(g).double()
    for t in range(3):
        now = g.roll(t, 0) * torch.tensor([1.0, float(t > 0)]).view(2, 1, 1, 1)
        m, v = m + 1.5 * now.double(), v + 1.9 * now.double() ** 2
        found = update.direction(now * size, memory).double()
        wanted = torch.where(v > 0, m / v.sqrt().clamp_min(1e-30), 0.0)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
