"""SMI-FGRM against its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks.updates.fgrm import FGRM

EPS = 16 / 255


def rescaled(m: Tensor, c: float) -> Tensor:
    size = torch.log2(m.abs())
    n = size.numel()
    mean = size.sum() / n
    spread = torch.sqrt(((size - mean) ** 2).sum() / (n - 1))
    return c * m.sign() / (1 + torch.exp(-(size - mean) / spread))


@pytest.mark.parametrize("published", [False, True])
def test_smi_fgrm(at: Any, mi: Any, published: bool) -> None:
    alpha, c = EPS / 3, 1.7

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        s, total = x, torch.zeros_like(x)
        for k in range(4):
            total += at.g(i, s) / 4
            s = s + at.uniform(t, i, 1.5 * EPS, "walk", k)
        m = rescaled(mi(total, memory, 0.9), c)
        if published:
            memory["m"] = m
            return alpha * m.sign()
        return alpha * m

    at.same(step, "smi-fgrm", 3, copies=4, c=c, mu=0.9, published=published)


def test_zeros_are_finite() -> None:
    for m in (torch.zeros(1, 3, 2, 2), torch.eye(4).view(1, 1, 4, 4), torch.ones(1, 3, 2, 2)):
        moved = FGRM().displacement(m, {}, None)  # type: ignore[arg-type]
        assert torch.isfinite(moved).all()
        assert torch.equal(moved.sign(), m.sign())
