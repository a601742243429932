"""BFA against its formulas; its points; its passes."""

from __future__ import annotations

import math
from typing import Any

import torch

from advens.attacks import create_attack

EPS = 16 / 255


def guidance(at: Any, n2: Any, i: int, k: int, x: Any, copies: int, eta: float, stage: int) -> Any:
    """n_2 of the sum of dz_y/dF over points eta from x, each along the gradient at the one before."""
    total, v = 0, x
    for _ in range(copies):
        d = n2(at.input_gradient(lambda leaf: at.ce(at.logits(k, leaf), i), v))
        v = x + eta * math.sqrt(x.numel()) / math.sqrt(3 * 224 * 224) * d
        total = total + at.importance(i, k, v, stage, "logit")
    return n2(total)


def test_bfa(at: Any, mi: Any, n2: Any) -> None:
    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        if t == 0:
            memory["A"] = [guidance(at, n2, i, k, at.x[i], 3, 20.0, 2) for k in range(at.k)]
        return EPS / 3 * mi(at.guided(memory["A"], x, 2), memory).sign()

    at.same(step, "bfa", 3, copies=3, eta=20.0)


def test_points_move_as_far_per_pixel_at_every_size(at: Any) -> None:
    seen: list[Any] = []
    model = at.models[0]
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    create_attack("bfa", copies=3, steps=1, eps=EPS)([model], at.x, at.y)
    handle.remove()
    assert torch.equal(seen[0], at.x)
    for v in seen[1:4]:
        size = (v - at.x).flatten(1).square().mean(1).sqrt()
        torch.testing.assert_close(size, torch.full_like(size, 28 / math.sqrt(3 * 224 * 224)))


def test_passes() -> None:
    assert create_attack("bfa").passes(1) == (31 + 10, 60 + 10)
    assert create_attack("bfa", steps=2, copies=4).passes(3) == (21, 30)
