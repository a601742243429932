"""I-FGS²M against its formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advens.attacks.updates.staircase import Staircase

EPS = 16 / 255


def weights(g: Tensor, groups: int) -> Tensor:
    """Between each two lower quantiles of a channel's |g|, one weight more."""
    out = torch.zeros_like(g)
    for c, channel in enumerate(g):
        size = np.abs(channel.numpy())
        edges = [np.quantile(size, (j + 1) / groups, method="lower") for j in range(groups)]
        for place, value in np.ndenumerate(size):
            j = next(j for j, edge in enumerate(edges) if value <= edge)
            out[(c, *place)] = (2 * j + 1) / groups
    return out


@pytest.mark.parametrize("groups", [64, 5])
def test_ifgs2m(at: Any, groups: int) -> None:
    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        g = at.g(i, x)
        return EPS / 3 * weights(g, groups) * g.sign()

    at.same(step, "ifgs2m", 3, groups=groups)


def test_weights_are_one_on_average_and_ties_go_to_the_lower_group() -> None:
    g = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = Staircase().displacement(g, {}, None)  # type: ignore[arg-type]
    assert moved.abs().mean().item() == pytest.approx(1, abs=0.01)
    assert moved.abs().max().item() == pytest.approx(127 / 64)
    tied = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(Staircase(groups=4).displacement(tied, {}, None), tied / 4)  # type: ignore[arg-type]
