"""RPA, FMAA and NAA against their formulas; the share of patches; passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


def patches(at: Any, m: int, i: int, size: int, share: float) -> Any:
    """Mask m of image i: ones, and noise where a pixel or a patch of a channel is drawn."""
    draws, (c, h, w) = at.once(), at.x.shape[1:]
    noise = draws.uniform(at.x, 0, 1, "rpa", "noise", m)[i]
    mask = torch.ones_like(noise)
    if size == 1:
        drawn = draws.uniform(at.x, 0, 1, "rpa", m)[i] < share
        return torch.where(drawn, noise, mask)
    rows, columns = -(-h // size), -(-w // size)
    order = draws.uniform(at.x.new_empty(len(at.x), c, rows, columns), 0, 1, "rpa", m)[i]
    chosen = order.flatten().sort().indices[: round(share * c * rows * columns)].tolist()
    for pair in chosen:
        channel, rest = divmod(pair, rows * columns)
        row, column = divmod(rest, columns)
        for y in range(row * size, min(h, (row + 1) * size)):
            for z in range(column * size, min(w, (column + 1) * size)):
                mask[channel, y, z] = noise[channel, y, z]
    return mask


def test_rpa(at: Any, mi: Any, n2: Any) -> None:
    copies, share, sizes = 4, 0.4, (1, 2, 4)

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        if t == 0:
            points = [at.x[i] * patches(at, m, i, sizes[m % 3], share) for m in range(copies)]
            memory["A"] = [
                n2(sum(at.importance(i, k, p, 1, "logit") for p in points)) for k in range(at.k)
            ]
        return EPS / 2 * mi(at.guided(memory["A"], x, 1), memory).sign()

    at.same(step, "rpa", 2, copies=copies, share=share, sizes=sizes)


def test_fmaa(at: Any, n2: Any) -> None:
    copies, alpha = 3, EPS / 3

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        keep, before = (0.9, memory["B"]) if t else (0.6, None)
        memory["B"] = []
        for k in range(at.k):
            total: Any = 0
            for m in range(copies):
                mask = at.at_step(t).uniform(at.x, 0, 1, "fmaa", m)[i] < keep
                total = total + at.importance(i, k, x * mask, 2, "probability")
            unit = total / total.abs().mean()
            memory["B"].append(unit + 1.1 * before[k] if before else unit)
        return alpha * at.guided([n2(b) for b in memory["B"]], x, 2).sign()

    at.same(step, "fmaa", 3, copies=copies)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_naa(at: Any, mi: Any, n2: Any, gamma: float) -> None:
    copies = 3

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        points = [m / copies * at.x[i] for m in range(copies)]
        guides = [n2(sum(at.importance(i, k, p, 2, "probability") for p in points)) for k in range(at.k)]

        def loss(leaf: Any) -> Any:
            total: Any = 0
            for k, a in enumerate(guides):
                part = a * (at.features(k, leaf, 2) - at.features(k, torch.zeros_like(leaf), 2))
                total = total - part[part > 0].sum() - gamma * part[part < 0].sum()
            return total / at.k

        return EPS / 2 * mi(at.input_gradient(loss, x), memory).sign()

    at.same(step, "naa", 2, copies=copies, gamma=gamma)


def test_passes() -> None:
    assert create_attack("rpa").passes(1) == (70, 70)
    assert create_attack("fmaa").passes(2) == (620, 620)
    assert create_attack("fmaa", warm_up=2, steps=3).passes(1) == (155, 155)
    assert create_attack("naa").passes(1) == (40, 40)
    assert create_attack("naa", gamma=0.5).passes(1) == (41, 40)


def test_patches_need_a_size() -> None:
    with pytest.raises(InputError, match="'rpa': sizes"):
        create_attack("rpa", sizes=())
