"""Objectives against their formulas, in float64, and who learns from what."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.defenses import create_defense
from advens.defenses.adversaries import ascend, standing
from advens.defenses.diverse import adp_terms, repulsion
from advens.defenses.dverge import features, layers
from advens.defenses.losses import margin_maximising, mixed_log_probs
from advens.defenses.plain import comp_sum, margins
from advens.defenses.training import Batch, Team
from advens.seeding import Draws

C, SIDE, N = 5, 6, 4


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(4 * SIDE * SIDE, 8), nn.Tanh(),
            nn.Linear(8, C),
        )  # fmt: skip
        return made.double()


@pytest.fixture
def team() -> Any:
    made = Team([net(k) for k in range(3)], torch.empty(0))  # type: ignore[list-item]
    made.uniform(3)
    return made


@pytest.fixture
def batch() -> Batch:
    g = torch.Generator().manual_seed(1)
    x, x_t = (torch.rand(N, 3, SIDE, SIDE, generator=g, dtype=torch.float64) for _ in range(2))
    y, y_t = (torch.randint(C, (N,), generator=g) for _ in range(2))
    return Batch(x, y, lambda: (x_t, y_t), Draws(3, N), Draws(4, N), 0.5)


def ce(z: Tensor, y: int) -> Tensor:
    return torch.log(torch.exp(z).sum()) - z[y]


def input_gradient(f: nn.Module, x: Tensor, y: int) -> Tensor:
    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(ce(f(leaf[None])[0], y), leaf, create_graph=True)
    return g.flatten()


def close(a: Tensor, b: Tensor | float) -> None:
    found, wanted = (float(v.detach()) if isinstance(v, Tensor) else v for v in (a, b))
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-11)


def test_adp(team: Any, batch: Batch) -> None:
    total = 0.0
    for i in range(N):
        p = [torch.softmax(f(batch.x[i : i + 1])[0].detach(), 0) for f in team.members]
        mean = sum(p) / 3
        entropy = -sum(float(q) * math.log(float(q)) for q in mean)
        m = torch.stack([torch.stack([q[c] for c in range(C) if c != batch.y[i]]) for q in p], 1)
        m = m / m.norm(dim=0)
        volume = math.log(float(torch.det(m.T @ m + 1e-6 * torch.eye(3))))
        own = sum(-math.log(float(q[batch.y[i]])) for q in p)
        total += own - 2.0 * entropy - 0.5 * volume
    close(create_defense("adp").loss(team, batch), total / N)


def test_adp_of_equal_members_is_low() -> None:
    p = torch.softmax(torch.randn(1, N, C, dtype=torch.float64), -1).expand(3, -1, -1)
    assert (adp_terms(p, torch.zeros(N, dtype=torch.long))[1] < -20).all()


def test_gal(team: Any, batch: Batch) -> None:
    total = 0.0
    for i in range(N):
        g = [input_gradient(f, batch.x[i], int(batch.y[i])) for f in team.members]
        pairs = ((g[0], g[1]), (g[0], g[2]), (g[1], g[2]))
        cosines = [float((a @ b / a.norm() / b.norm()).detach()) for a, b in pairs]
        own = sum(float(ce(f(batch.x[i : i + 1])[0].detach(), int(batch.y[i]))) for f in team.members)
        total += own / 3 + 0.5 * math.log(sum(math.exp(c) for c in cosines))
    close(create_defense("gal", noise=0).loss(team, batch), total / N)


def test_trs_on_clean_images(team: Any, batch: Batch) -> None:
    defense = create_defense("trs", steps=0, eps=0.0, eps_start=0.0)
    own = cos = smooth = 0.0
    for i in range(N):
        g = [input_gradient(f, batch.x[i], int(batch.y[i])) for f in team.members]
        pairs = ((g[0], g[1]), (g[0], g[2]), (g[1], g[2]))
        cos += sum(abs(float((a @ b / a.norm() / b.norm()).detach())) for a, b in pairs) / 3
        smooth += 2 / 3 * sum(float((a @ a).detach()) for a in g)
        own += sum(float(ce(f(batch.x[i : i + 1])[0].detach(), int(batch.y[i]))) for f in team.members)
    close(defense.loss(team, batch), (own + 5 * (2 * cos + 2 * smooth)) / N)


def test_trs_moves_half_of_the_batch_to_rough_places(team: Any, batch: Batch) -> None:
    defense = create_defense("trs")
    near = defense.rough(team.members, batch)
    assert torch.equal(near[: N // 2], batch.x[: N // 2])
    moved = near[N // 2 :] - batch.x[N // 2 :]
    assert 0.05 < moved.abs().max() <= 0.15 + 1e-12  # half way from 0.1 to 0.2
    rough = [
        sum(input_gradient(f, x[i], int(batch.y[i])).detach().norm() for f in team.members for i in (2, 3))
        for x in (batch.x, near)
    ]
    assert rough[1] > rough[0]


def test_forde(batch: Batch) -> None:
    s = F.normalize(torch.randn(3, N, 7, dtype=torch.float64), dim=-1)
    wanted = 0.0
    for i in range(3):
        inside = 0.0
        for b in range(N):
            for j in range(3):
                d = sorted(float((s[k, b] - s[j, b]).square().sum()) for k in range(3))
                h = d[1] / math.log(3) + 1e-12
                inside += math.exp(-float((s[i, b] - s[j, b]).square().sum()) / h)
        wanted += math.log(inside / N)
    close(repulsion(s), wanted)


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 1.7, 2.0])
def test_comp_sum(tau: float) -> None:
    z, y = torch.randn(N, C, dtype=torch.float64), torch.randint(C, (N,))
    for i, found in enumerate(comp_sum(margins(z, y), tau, 1.0)):
        u = sum(math.exp(float(z[i, j] - z[i, y[i]])) for j in range(C) if j != y[i])
        close(found, math.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau))
    if tau == 1:
        torch.testing.assert_close(comp_sum(margins(z, y), 1.0, 1.0), F.cross_entropy(z, y, reduction="none"))
    if tau == 2:
        p = z.softmax(1).gather(1, y[:, None])[:, 0]
        torch.testing.assert_close(comp_sum(margins(z, y), 2.0, 1.0), 1 - p)


def test_margin_term() -> None:
    z, y = torch.randn(N, C, dtype=torch.float64), torch.randint(C, (N,))
    for i, found in enumerate(margin_maximising(z, y)):
        p = torch.exp(-z[i]) / torch.exp(-z[i]).sum()
        close(found, sum(-math.log(float(p[j])) for j in range(C) if j != y[i]) / (C - 1))


def test_mixture_far_into_saturation() -> None:
    z = torch.tensor([[[2000.0, 0.0]], [[0.0, 2000.0]]], dtype=torch.float64)
    found = mixed_log_probs(list(z), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.25, 0.75]], dtype=torch.float64))


# DVERGE


def test_distilled_images_by_the_algorithm(team: Any, batch: Batch) -> None:
    """Ten momentum-sign steps of 0.007 around the source, features of a layer before its nonlinearity."""
    f, x_t = team.members[0], batch.other()[0]
    for layer in layers(f):
        found = create_defense("dverge").distil(f, layer, batch.x, x_t)
        part = f[0] if layer == "0" else f[:4] if layer == "3" else f
        z, v = batch.x.clone(), torch.zeros_like(batch.x)
        for _ in range(10):
            leaf = z.clone().requires_grad_()
            gap = ((part(leaf) - part(x_t).detach()) ** 2).flatten(1).sum(1)
            (g,) = torch.autograd.grad(gap.sum(), leaf)
            v = v + g / g.abs().mean((1, 2, 3), keepdim=True)
            z = torch.clamp(z - 0.007 * v.sign(), batch.x - 0.07, batch.x + 0.07).clamp(0, 1)
        torch.testing.assert_close(found, z, rtol=0, atol=1e-12)
        before, after = (((part(at) - part(x_t)) ** 2).sum() for at in (batch.x, found))
        assert after < before
    assert layers(f) == ["0", "3", ""]
    assert torch.equal(features(f, x_t, ""), f(x_t))


def test_dverge_loss(team: Any, batch: Batch) -> None:
    defense = create_defense("dverge", steps=2)
    names = layers(team.members[0])
    layer = names[batch.epoch_draws.integers(len(names), 1, "layer")[0]]
    felt = [defense.distil(f, layer, batch.x, batch.other()[0]) for f in team.members]
    wanted = sum(
        F.cross_entropy(team.members[i](felt[j]), batch.y) for i in range(3) for j in range(3) if i != j
    )
    close(defense.loss(team, batch), wanted)
    both = create_defense("dverge", steps=2, adversarial=0.5).loss(team, batch)
    assert float(both.detach()) > float(wanted.detach())


def gradients_of(loss: Tensor, team: Any) -> list[bool]:
    """Which members a loss teaches."""
    for member in team.members:
        member.zero_grad()
    loss.backward()
    return [any(p.grad is not None and bool(p.grad.any()) for p in m.parameters()) for m in team.members]


def test_members_learn_only_from_their_own_graph(team: Any, batch: Batch) -> None:
    """A member's gradient under DVERGE is that of its own terms: images of the others are constants."""
    defense = create_defense("dverge", steps=2)
    for member in team.members:
        member.zero_grad()
    defense.loss(team, batch).backward()
    found = [p.grad.clone() for p in team.members[0].parameters()]
    names = layers(team.members[0])
    layer = names[batch.epoch_draws.integers(len(names), 1, "layer")[0]]
    felt = [defense.distil(f, layer, batch.x, batch.other()[0]) for f in team.members]
    own = sum(F.cross_entropy(team.members[0](felt[j]), batch.y) for j in (1, 2))
    for a, b in zip(found, torch.autograd.grad(own, list(team.members[0].parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["barre", "mrboost"])
def test_only_the_newest_member_learns(name: str, team: Any, batch: Batch) -> None:
    defense = create_defense(name, members=3, steps=2)
    phases = defense.phases()
    assert [list(phase.learners) for phase in phases] == [[0], [1], [2]]
    for m, phase in enumerate(phases):
        phase.before(team)
        if m:
            for a, b in zip(team.members[m].parameters(), team.members[m - 1].parameters(), strict=True):
                assert torch.equal(a, b)
        assert team.probabilities.tolist() == [1 / (m + 1)] * (m + 1) + [0] * (2 - m)
        assert gradients_of(phase.objective(team, batch), team) == [k == m for k in range(3)]


def test_ascend_stays_in_the_ball_and_rises(team: Any, batch: Batch) -> None:
    f = team.members[0]

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(f(z), batch.y, reduction="none")

    modes = [m.training for m in f.modules()]
    with standing([f]):
        assert not f.training
        found = ascend(loss, batch.x, batch.x, eps=0.1, steps=5, step_size=0.05)
    assert [m.training for m in f.modules()] == modes
    assert all(p.requires_grad for p in f.parameters())
    assert (found - batch.x).abs().max() <= 0.1 + 1e-12
    assert ((found >= 0) & (found <= 1)).all()
    assert (loss(found) > loss(batch.x)).all()


