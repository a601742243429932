"""Updates: the length of a look-ahead, and gradients of any size."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from advens.attacks.updates import MI, NI
from advens.threat import Threat

SHAPE = (1, 3, 32, 32)


def dense() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def one_pixel() -> Tensor:
    g = torch.zeros(SHAPE, dtype=torch.float64)
    g[0, 1, 2, 3] = -0.7
    return g


gradients = pytest.mark.parametrize("gradient", [dense, one_pixel])


@gradients
@pytest.mark.parametrize("mu", [1.0, 0.5])
def test_l2_look_ahead_has_a_length(gradient: Callable[[], Tensor], mu: float) -> None:
    """alpha mu along the momentum, after one gradient and after three."""
    update, threat, x = NI(mu=mu), Threat("l2", 1.0), torch.full(SHAPE, 0.5, dtype=torch.float64)
    memory: dict[str, Tensor] = {}
    assert torch.equal(update.look(x, memory, 0.2, threat), x)
    for count in range(1, 4):
        m = update.direction(gradient() + (count - 1) / 10, memory)
        ahead = update.look(x, memory, 0.2, threat) - x
        torch.testing.assert_close(ahead, 0.2 * mu * m / float((m**2).sum()) ** 0.5)


@gradients
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_momentum_of_tiny_and_huge_gradients(gradient: Callable[[], Tensor], size: float) -> None:
    """``m <- mu m + g / mean|g|`` in float32, and the unit step along it, as in float64 without the size."""
    memory, m = dict[str, Tensor](), torch.zeros(SHAPE, dtype=torch.float64)
    for sign in (1, -1, 1):
        g = sign * gradient() + (sign < 0)
        m = 0.9 * m + g / (float(g.abs().sum()) / (3 * 32 * 32))
        found = MI(mu=0.9).direction((g * size).float(), memory)
        torch.testing.assert_close(found.double(), m, rtol=1e-4, atol=1e-4)
        unit = Threat("l2", 1.0).steepest(found)
        torch.testing.assert_close(unit.double(), m / float((m**2).sum()) ** 0.5, rtol=1e-4, atol=1e-5)
