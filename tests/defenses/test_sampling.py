"""OSP against brute force, and what theory says of randomized ensembles, on tables of errors."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from advens.defenses.sampling import onto_simplex, optimal_sampling


def table(m: int, samples: int, seed: int) -> list[Tensor]:
    """For each sample the error patterns (P, M) its ball holds; the clean one, no error, among them."""
    g = torch.Generator().manual_seed(seed)
    return [
        torch.cat([torch.zeros(1, m), (torch.rand(3, m, generator=g) < 0.35).float()]).double()
        for _ in range(samples)
    ]


def worst(patterns: list[Tensor], a: Tensor) -> Tensor:
    """The pattern of each sample that costs most, (samples, M)."""
    return torch.stack([p[(p @ a).argmax()] for p in patterns])


def risk(patterns: list[Tensor], a: Tensor) -> float:
    return float((worst(patterns, a) @ a).mean())


def grid(m: int, parts: int) -> list[Tensor]:
    return [
        torch.tensor(c, dtype=torch.float64) / parts
        for c in product(range(parts + 1), repeat=m) if sum(c) == parts
    ]  # fmt: skip


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_osp_finds_the_lowest_risk(m: int, seed: int) -> None:
    patterns = table(m, 40, seed)
    lowest = min(risk(patterns, a) for a in grid(m, 60))
    start = torch.full((m,), 1 / m, dtype=torch.float64)
    best, found = optimal_sampling(lambda a: worst(patterns, a).mean(0), start, rounds=400)
    assert found == pytest.approx(risk(patterns, best))
    assert found <= lowest + 5e-3
    assert found <= risk(patterns, start)


@pytest.mark.parametrize("seed", range(20))
def test_two_members_are_best_alone_or_equal(seed: int) -> None:
    patterns = table(2, 25, seed)
    ends = [torch.tensor(p, dtype=torch.float64) for p in ((0, 1), (1, 0), (0.5, 0.5))]
    assert min(risk(patterns, a) for a in ends) <= min(risk(patterns, a) for a in grid(2, 200)) + 1e-12


@pytest.mark.parametrize("seed", range(20))
def test_bounds(seed: int) -> None:
    """``max a_i r_i <= r(a) <= sum a_i r_i``; convex; not below a k-th of the k-th best member."""
    patterns = table(3, 25, seed)
    alone = torch.tensor([risk(patterns, e) for e in torch.eye(3).double()], dtype=torch.float64)
    g = torch.Generator().manual_seed(seed)
    points = [onto_simplex(torch.rand(3, generator=g, dtype=torch.float64) * 2) for _ in range(10)]
    for a in points:
        r = risk(patterns, a)
        assert float((a * alone).max()) - 1e-12 <= r <= float(a @ alone) + 1e-12
        for b in points:
            assert risk(patterns, (a + b) / 2) <= (r + risk(patterns, b)) / 2 + 1e-12
    lowest = min(risk(patterns, a) for a in grid(3, 30))
    ranked = alone.sort().values
    assert min(float(ranked[k]) / (k + 1) for k in range(3)) <= lowest + 1e-12
    assert lowest <= float(ranked[0]) + 1e-12


def test_projection() -> None:
    g = torch.Generator().manual_seed(0)
    for m in (1, 2, 5):
        for _ in range(20):
            v = 3 * torch.randn(m, generator=g, dtype=torch.float64)
            p = onto_simplex(v)
            assert (p >= 0).all()
            assert float(p.sum()) == pytest.approx(1)
            nearest = min(float((v - q).square().sum()) for q in grid(m, 12))
            assert float((v - p).square().sum()) <= nearest + 1e-12
