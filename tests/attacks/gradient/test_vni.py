"""VNI against its formulas: neighbours lie around the look-ahead point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EPS = 16 / 255


def test_vni(at: Any, mi: Any) -> None:
    alpha = EPS / 3

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        ahead = x + alpha * memory.get("m", torch.zeros_like(x))
        g = at.g(i, ahead)
        near = [at.g(i, ahead + at.uniform(t, i, 1.5 * EPS, "vmi", c)) for c in range(4)]
        tuned = g + memory.get("v", torch.zeros_like(x))
        memory["v"] = torch.stack(near).mean(0) - g
        return alpha * mi(tuned, memory).sign()

    at.same(step, "vnifgsm", 3, copies=4)
