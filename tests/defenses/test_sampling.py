"""OSP against brute force, and what theory says of randomized ensembles, on tables of errors."""

from __future__ import annotations

from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.defenses import create_defense
from advens.defenses.boosting import arc_error_rates
from advens.defenses.phases import Team
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
    """As published: at most ten rounds from 2, from equal probabilities."""
    patterns = table(m, 40, seed)
    lowest = min(risk(patterns, a) for a in grid(m, 60))
    start = torch.full((m,), 1 / m, dtype=torch.float64)
    best, found = optimal_sampling(lambda a: worst(patterns, a).mean(0), start, patience=10)
    assert found == pytest.approx(risk(patterns, best))
    assert found <= lowest + 5e-3
    assert found <= risk(patterns, start)


@pytest.mark.parametrize("patience", [2, 4])
def test_osp_ends_when_the_risk_no_longer_falls(patience: int) -> None:
    """After as many rounds as it was told, with the best it saw, and not before."""
    ended = []
    for seed in range(8):
        patterns = table(3, 40, seed)
        risks: list[float] = []

        def rates(a: Tensor, patterns: list[Tensor] = patterns, risks: list[float] = risks) -> Tensor:
            g = worst(patterns, a).mean(0)
            risks.append(float(a @ g))
            return g

        start = torch.full((3,), 1 / 3, dtype=torch.float64)
        best, found = optimal_sampling(rates, start, rounds=30, patience=patience)
        assert min(risks) == found == pytest.approx(risk(patterns, best))
        records = [t for t in range(len(risks)) if t == 0 or risks[t] < min(risks[:t])]
        assert all(b - a <= patience for a, b in pairwise(records))
        assert len(risks) == min(30, records[-1] + 1 + patience)
        ended.append(len(risks))
    assert 1 + patience < max(ended)
    assert min(ended) < 30


def test_osp_steps_get_shorter() -> None:
    """Step t is ``lr / (t + 1)`` down the error rates; on the simplex of two, half of it each way."""
    seen: list[float] = []

    def rates(a: Tensor) -> Tensor:
        seen.append(float(a[0]))
        return torch.tensor([0.1, 0.0], dtype=torch.float64)

    optimal_sampling(rates, torch.tensor([0.9, 0.1], dtype=torch.float64), rounds=4, lr=2.0)
    assert seen == pytest.approx([0.9, 0.8, 0.75, 0.75 - 0.1 / 3])


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
@pytest.mark.parametrize("m", [2, 3])
def test_barre_reaches_the_value_of_the_game(m: int, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last epoch, whatever is left of the learning rate then, as a search of a grid finds it."""
    patterns = table(m, 60, 3)
    for row in patterns:  # the first member errs more often than the others
        row[1, 0] = 1
    monkeypatch.setattr(
        "advens.defenses.boosting.arc_error_rates", lambda members, a, *_, **__: worst(patterns, a).mean(0)
    )
    team = Team([nn.Linear(1, 1) for _ in range(m)], torch.empty(0))  # type: ignore[misc]
    team.uniform(m)
    equal = risk(patterns, team.probabilities)
    defense = create_defense("barre", members=m, epochs=20, schedule=schedule, lr=0.003)
    nothing = torch.zeros(1, 3, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)
    defense.after_epoch(team, 20, *nothing, m=m - 1)
    lowest = min(risk(patterns, a) for a in grid(m, 60))
    assert equal > lowest + 0.01
    assert risk(patterns, team.probabilities) <= lowest + 5e-3
    assert float(team.probabilities.sum()) == pytest.approx(1)


def test_error_rates_of_linear_members() -> None:
    """With one member drawn always, ARC finds what a linear boundary's distance says, member by member."""
    g = torch.Generator().manual_seed(0)
    x = 0.3 + 0.4 * torch.rand(60, 3, 2, 2, generator=g, dtype=torch.float64)
    y = torch.randint(2, (60,), generator=g)
    members = []
    for _ in range(3):
        f: Any = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).double()
        w = torch.randn(2, 12, generator=g, dtype=torch.float64)
        f[1].weight.data, f[1].bias.data = w, -w.sum(1) / 2
        members.append(f.train())
    for m, f in enumerate(members):
        normal = (f[1].weight[0] - f[1].weight[1]).detach()
        gap = (f(x)[:, 0] - f(x)[:, 1]).detach() * (1 - 2 * y)
        errs = (gap < 0.02 * normal.abs().sum()).double().mean()
        clean = (gap < 0).double().mean()
        a = torch.eye(3, dtype=torch.float64)[m]
        found = arc_error_rates(members, a, x, y, eps=0.02, steps=10)
        assert clean + 0.05 < errs < 0.95
        assert float(found[m]) == pytest.approx(float(errs))
        assert all(module.training for module in f.modules())


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
