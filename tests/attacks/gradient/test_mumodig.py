"""MuMoDIG against its formulas, and its pieces against loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from advens.attacks import create_attack
from advens.attacks.estimators.mumodig import view
from advens.errors import InputError
from advens.seeding import Draws

EPS = 16 / 255


def lower_ends(w: Tensor, cuts: list[Tensor]) -> Tensor:
    """Each pixel of a channel becomes the largest of its channel's ends that is not above it."""
    out = torch.zeros_like(w)
    for c, channel in enumerate(w):
        low, high = float(channel.min()), float(channel.max())
        ends = sorted([low, *(low + float(cut[c]) * (high - low) for cut in cuts)])
        for i, row in enumerate(channel):
            for j, value in enumerate(row):
                out[c, i, j] = max(end for end in ends if end <= float(value))
    return out


def seen(x: Tensor, i: int, draws: Draws, n: int) -> Tensor:
    """T_j of one image, by the draws of its view."""
    rows, columns = x.shape[1:]
    if draws.integers(2, 1, "kind")[0] == 0:
        large = max(rows + 1, rows * 245 // 224)
        inner = rows + draws.integers(large - rows, 1, "side")[0]
        top, left = (draws.integers(large - inner, 1, "place", axis)[0] for axis in (0, 1))
        small = interpolate(x[None], size=(inner, inner), mode="bilinear")
        padded = pad(small, [left, large - inner - left, top, large - inner - top])
        return interpolate(padded, size=(rows, columns), mode="bilinear")[0]
    which = draws.integers(5, 1, "which")[0]
    if which < 2:
        return torch.roll(x, draws.integers((rows, columns)[which], 1, "shift")[0], 1 + which)
    if which < 4:
        return torch.flip(x, [which - 1])
    angle = float(draws.uniform(torch.empty(n, dtype=x.dtype), -math.pi / 4, math.pi / 4, "angle")[i])
    out = torch.zeros_like(x)
    for r in range(rows):
        for c in range(columns):
            v, h = r - (rows - 1) / 2, c - (columns - 1) / 2
            across = math.cos(angle) * h - math.sin(angle) * v + (columns - 1) / 2
            down = math.sin(angle) * h + math.cos(angle) * v + (rows - 1) / 2
            for a in range(rows):
                for b in range(columns):
                    weight = max(0.0, 1 - abs(a - down)) * max(0.0, 1 - abs(b - across))
                    if weight:
                        out[:, r, c] = out[:, r, c] + weight * x[:, a, b]
    return out


@pytest.mark.parametrize("aligned", [False, True])
def test_mumodig(at: Any, mi: Any, aligned: bool) -> None:
    alpha, points, position, n = EPS / 2, 2, 0.65, len(at.x)

    def path(t: int, i: int, x: Tensor, draws: Draws, copy: int | None) -> Tensor:
        leaf = x.clone().requires_grad_()
        w = leaf if copy is None else seen(leaf, i, draws, n)
        here, total = w.detach(), torch.zeros_like(x)
        for base in range(2):
            shape = torch.empty(n, 3, 1, 1, dtype=x.dtype)
            cuts = [draws.uniform(shape, 0.0, 1.0, "threshold", base, c)[i, :, 0, 0] for c in range(2)]
            b = lower_ends(here, cuts)
            for k in range(points):
                share = (k + position) / points
                g = share * at.g(i, b + share * (here - b))
                if aligned:
                    total += torch.autograd.grad(w, leaf, (here - b) * g, retain_graph=True)[0]
                else:
                    total += (here - b) * torch.autograd.grad(w, leaf, g, retain_graph=True)[0]
        return total

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        total = path(t, i, x, at.draws(t).fork("mumodig"), None)
        for copy in range(5):
            total = total + path(t, i, x, at.draws(t).fork("mumodig", copy), copy)
        return alpha * mi(total, memory).sign()

    at.same(step, "mumodig", 2, copies=5, regions=3, bases=2, points=points, aligned=aligned)


def test_every_view_is_tried(at: Any) -> None:
    """The resize, the rolls, the flips and the rotation, each against loops."""
    kinds = set()
    for seed in range(40):
        draws = Draws(seed, len(at.x))
        kind = draws.integers(2, 1, "kind")[0]
        kinds.add((kind, draws.integers(5, 1, "which")[0] if kind else 0))
        if seed < 14:
            wanted = torch.stack([seen(x, i, draws, len(at.x)) for i, x in enumerate(at.x)])
            torch.testing.assert_close(view(at.x, draws), wanted, rtol=0, atol=1e-9)
    assert len(kinds) == 6


def test_passes_and_other_shapes() -> None:
    assert create_attack("mumodig").passes(2) == (140, 140)
    assert create_attack("mumodig", bases=2, points=3).passes(1) == (420, 420)
    x = torch.rand(2, 3, 9, 14, dtype=torch.float64)
    for seed in range(12):
        assert view(x, Draws(seed, 2)).shape == x.shape
    with pytest.raises(InputError, match="at least 1"):
        create_attack("mumodig", regions=0)
