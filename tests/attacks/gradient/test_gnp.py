"""GNP against its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

EPS = 16 / 255


@pytest.mark.parametrize("published", [False, True])
def test_gnp(at: Any, u: Any, mi: Any, published: bool) -> None:
    alpha, r, beta = EPS / 3, 0.3, 0.6

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        g1 = at.g(i, x)
        along = u(g1) if published else g1 / torch.sqrt((g1**2).sum())
        g2 = at.g(i, x + r * EPS * along)
        return alpha * mi((1 + beta) * g1 + (beta if published else -beta) * g2, memory).sign()

    at.same(step, "gnp", 3, r=r, beta=beta, published=published)


def test_the_second_point_is_a_hundredth_away_in_length_at_the_papers_eps(at: Any) -> None:
    found = at.run("gnp", steps=1)
    g1 = torch.stack([at.g(i, x) for i, x in enumerate(at.x)])
    along = g1 / torch.sqrt((g1**2).sum((1, 2, 3), keepdim=True))
    g2 = torch.stack([at.g(i, x + 0.01 * a) for i, (x, a) in enumerate(zip(at.x, along, strict=True))])
    wanted = torch.clamp(at.x + EPS * (1.8 * g1 - 0.8 * g2).sign(), 0, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
