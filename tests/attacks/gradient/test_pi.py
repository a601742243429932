"""PI against its formulas, and against rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.interfaces import Context
from advens.attacks.updates.pi import PI
from advens.errors import InputError
from advens.seeding import Draws

EPS = 16 / 255


def around(cut: Tensor, size: int) -> Tensor:
    """The mean of the other pixels of a window, zeros beyond the border, pixel by pixel."""
    out, reach = torch.zeros_like(cut), size // 2
    channels, rows, columns = cut.shape
    for c in range(channels):
        for i in range(rows):
            for j in range(columns):
                for a in range(max(0, i - reach), min(rows, i + reach + 1)):
                    for b in range(max(0, j - reach), min(columns, j + reach + 1)):
                        if (a, b) != (i, j):
                            out[c, i, j] += cut[c, a, b] / (size**2 - 1)
    return out


@pytest.mark.parametrize(
    ("beta", "gamma", "size", "mu", "steps"), [(3.3, 0.7, 3, 0.0, 4), (4.0, 1.0, 5, 1.0, 3)]
)
def test_pi(at: Any, mi: Any, beta: float, gamma: float, size: int, mu: float, steps: int) -> None:
    alpha = EPS / 3.5

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        s = beta * alpha * mi(at.g(i, x), memory, mu).sign()
        total = memory.get("A", torch.zeros_like(x)) + s
        cut = torch.clamp(total.abs() - EPS, min=0) * total.sign()
        spread = around(cut, size)
        spread[spread.abs() < 1e-12] = 0  # pixels that cancel
        passed = gamma * EPS * spread.sign()
        memory["A"] = total + passed
        return s + passed

    at.same(step, "pifgsm", steps, beta=beta, gamma=gamma, size=size, mu=mu, step_size="eps/3.5")


def test_rounding_decides_nothing() -> None:
    """beta alpha is eps for the default: the first step leaves nothing to pass on, whatever eps is."""
    x = torch.full((1, 3, 4, 4), 0.5, dtype=torch.float64)
    for eps in (0.1, 0.3 / 7, "16/255", 1 / 49):
        one = create_attack("pifgsm", eps=eps, steps=10)
        context = Context(one.threat, Draws(0, 1), x, x, one.threat.radius / 10)
        g = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        moved = PI().displacement(g, {}, context)
        torch.testing.assert_close(moved, 10 * g.sign(), rtol=0, atol=1e-9)


def test_it_is_defined_for_linf_alone() -> None:
    with pytest.raises(InputError, match="'pifgsm' is not defined for l2"):
        create_attack("pifgsm", norm="l2")
    with pytest.raises(InputError, match="the step of 'pi' is its own, and defined for l_inf alone"):
        create_attack("mifgsm", norm="l2", update="pi")
    with pytest.raises(InputError, match="odd"):
        create_attack("pifgsm", size=4)
