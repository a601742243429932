"""DTA against its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


@pytest.mark.parametrize(("mu1", "mu2"), [(1.0, 0.8), (0.7, 0.0)])
def test_dta(at: Any, u: Any, mu1: float, mu2: float) -> None:
    alpha, inner = EPS / 3, 4

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        outer = memory.get("m", torch.zeros_like(x))
        place, m, total = x, outer, torch.zeros_like(x)
        for _ in range(inner):
            m = mu2 * m + u(at.g(i, place + alpha * mu1 * m))
            place = at.project(place + alpha / inner * m.sign(), i)
            total += m
        memory["m"] = mu1 * outer + total / inner
        return alpha * memory["m"].sign()

    at.same(step, "dta", 3, inner=inner, mu1=mu1, mu2=mu2, mu=mu1)


def test_a_single_inner_step_is_refused_as_it_is_ni() -> None:
    with pytest.raises(InputError, match="at least 2; a single step is the update 'ni'"):
        create_attack("dta", inner=1)
