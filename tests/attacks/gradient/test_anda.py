"""ANDA against its formulas, and its shifts against pixels moved by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from advens.attacks.transforms.shifts import Shifts

EPS = 16 / 255


def moved(x: Tensor, i: float, j: float) -> Tensor:
    """Bilinear: output pixel (r, c) shows the image j half sides further down and i to the right."""
    _, rows, columns = x.shape
    out = torch.zeros_like(x)
    for r in range(rows):
        for c in range(columns):
            down, right = r + j * rows / 2, c + i * columns / 2
            for a in range(rows):
                for b in range(columns):
                    weight = max(0.0, 1 - abs(a - down)) * max(0.0, 1 - abs(b - right))
                    if weight:
                        out[:, r, c] = out[:, r, c] + weight * x[:, a, b]
    return out


def test_anda(at: Any) -> None:
    alpha, places = EPS / 3, [-0.3, 0.0, 0.3]

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        total = torch.zeros_like(x)
        for a in places:
            for b in places:
                leaf = x.clone().requires_grad_()
                z = sum(model(moved(leaf, a, b)[None])[0] for model in at.models) / len(at.models)
                (g,) = torch.autograd.grad(at.loss(z, i), leaf)
                total = total + g / 9
        memory["S"] = memory.get("S", torch.zeros_like(x)) + total
        return alpha * memory["S"].sign()

    at.same(step, "anda", 3, grid=3)


def test_shifts_have_the_image_itself_in_the_middle(at: Any) -> None:
    shifts = Shifts()
    assert shifts.copies == 25
    context: Any = None
    torch.testing.assert_close(shifts(at.x, 12, context), at.x)
    torch.testing.assert_close(Shifts(grid=1)(at.x, 0, context), at.x)
    for copy in (0, 7, 24):
        i, j = (0.15 * (place - 2) for place in divmod(copy, 5))
        wanted = torch.stack([moved(x, i, j) for x in at.x])
        torch.testing.assert_close(shifts(at.x, copy, context), wanted, rtol=0, atol=1e-12)
