"""Objectives against their formulas, in float64, and who learns from what."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.ascent import ascend
from advens.attacks.expectation import log_expected
from advens.classifier import borrowed
from advens.defenses import create_defense
from advens.defenses.diverse import adp_terms, repulsion
from advens.defenses.losses import margin_maximising
from advens.defenses.phases import Batch, Team
from advens.defenses.plain import comp_sum, distance, margins
from advens.seeding import Draws
from tests.defenses.conftest import random_batch

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
    return random_batch(N, SIDE, C)


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


def gal_by_hand(team: Any, x: Tensor, y: Tensor) -> float:
    total = 0.0
    for i in range(len(x)):
        g = [input_gradient(f, x[i], int(y[i])) for f in team.members]
        pairs = ((g[0], g[1]), (g[0], g[2]), (g[1], g[2]))
        cosines = [float((a @ b / a.norm() / b.norm()).detach()) for a, b in pairs]
        own = sum(float(ce(f(x[i : i + 1])[0].detach(), int(y[i]))) for f in team.members)
        total += own / 3 + 0.5 * math.log(sum(math.exp(c) for c in cosines))
    return total / len(x)


def test_gal(team: Any, batch: Batch) -> None:
    close(create_defense("gal", noise=0).loss(team, batch), gal_by_hand(team, batch.x, batch.y))


def test_gal_on_noisy_images(team: Any, batch: Batch) -> None:
    """Each image gets noise of its own, or none by a coin of its own; a batch gets it as a whole."""
    found: dict[str, list[int]] = {"image": [], "batch": []}
    for by, counts in found.items():
        defense = create_defense("gal", noise_by=by)
        for seed in range(25):
            at = replace(batch, draws=Draws(seed, N))
            moved = defense.noisy(at) - batch.x
            counts.append(int(moved.flatten(1).any(1).sum()))
            if counts[-1]:
                noises = moved[moved.flatten(1).any(1)].flatten(1).round(decimals=9)
                assert len(noises.unique(dim=0)) == counts[-1]
                assert 0.03 < float(moved[moved != 0].std()) < 0.06
        close(defense.loss(team, at), gal_by_hand(team, defense.noisy(at), batch.y))
    assert set(found["batch"]) == {0, N}
    assert set(found["image"]) >= {1, 2, 3}
    assert 0.35 < sum(found["image"]) / 25 / N < 0.65
    whole = create_defense("gal", noise_by="batch")
    still = [torch.equal(whole.noisy(replace(batch, draws=Draws(seed, N))), batch.x) for seed in range(200)]
    assert 80 < sum(still) < 120


@pytest.mark.parametrize("size", [N, 2 * N])
def test_trs_on_clean_images(size: int, team: Any, batch: Batch) -> None:
    """The gradient squared is that of the batch's mean loss, taken here of the whole batch at once."""
    x, y = batch.x.repeat(size // N, 1, 1, 1), batch.y.repeat(size // N)
    defense = create_defense("trs", steps=0, eps=0.0, eps_start=0.0)
    own = cos = smooth = 0.0
    for f in team.members:
        leaf = x.clone().requires_grad_()
        mean = sum(ce(f(leaf[i : i + 1])[0], int(y[i])) for i in range(size)) / size
        (g,) = torch.autograd.grad(mean, leaf)
        own += float(mean.detach())
        smooth += 2 / 3 * sum(float((row * row).sum()) for row in g) / size
    for i in range(size):
        g0, g1, g2 = (input_gradient(f, x[i], int(y[i])).detach() for f in team.members)
        for a, b in ((g0, g1), (g0, g2), (g1, g2)):
            cos += abs(float(a @ b / a.norm() / b.norm())) / 3 / size
    at = replace(batch, x=x, y=y, draws=Draws(3, size))
    close(defense.loss(team, at), own + 5 * (2 * cos + 2 * smooth))
    strong = create_defense("trs", steps=0, eps=0.0, eps_start=0.0, gradient_of="own")
    close(strong.loss(team, at), own + 5 * (2 * cos + 2 * smooth * size**2))


def test_trs_per_image_does_not_know_the_batch_size(team: Any, batch: Batch) -> None:
    """The same images twice: each image's own penalty is the same, that of the mean loss a quarter."""
    twice = replace(batch, x=batch.x.repeat(2, 1, 1, 1), y=batch.y.repeat(2), draws=Draws(3, 2 * N))
    for gradient_of, ratio in (("own", 1.0), ("mean", 0.25)):
        sizes = []
        for at in (batch, twice):
            with_it, without = (
                create_defense("trs", steps=0, eps=0.0, eps_start=0.0, smooth=smooth, gradient_of=gradient_of)
                for smooth in (2.0, 0.0)
            )
            sizes.append(float((with_it.loss(team, at) - without.loss(team, at)).detach()))
        assert sizes[1] / sizes[0] == pytest.approx(ratio)


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


def test_a_distance_of_nothing_has_a_gradient() -> None:
    """Zero, where the root of a square alone would give NaN."""
    here = torch.randn(N, C, dtype=torch.float64).requires_grad_()
    (g,) = torch.autograd.grad(distance(here, here.detach()).sum(), here)
    assert torch.equal(g, torch.zeros_like(g))


def comp_sum_by_hand(z: Tensor, y: Tensor, tau: float, rho: float) -> Tensor:
    """``d Phi(u) / dz_j = (1 + u)^-tau e_j / rho`` for j other than y, with ``e_j = exp((z_j - z_y) / rho)``;
    their sum with the other sign for y."""
    g = torch.zeros_like(z)
    for i in range(len(z)):
        others = [j for j in range(C) if j != y[i]]
        e = {j: math.exp(float(z[i, j] - z[i, y[i]]) / rho) for j in others}
        outer = (1 + sum(e.values())) ** -tau
        for j in others:
            g[i, j] = outer * e[j] / rho
            g[i, y[i]] -= outer * e[j] / rho
    return g


def distance_by_hand(z_adv: Tensor, z: Tensor, y: Tensor) -> Tensor:
    """The gradient over the logits at x' of ``||D(x') - D(x)||`` with ``D_j = z_y - z_j``."""
    g = torch.zeros_like(z)
    for i in range(len(z)):
        others = [j for j in range(C) if j != y[i]]
        v = {j: float(z_adv[i, y[i]] - z_adv[i, j] - z[i, y[i]] + z[i, j]) for j in others}
        length = math.sqrt(sum(d * d for d in v.values()) + 1e-12)
        for j in others:
            g[i, j] = -v[j] / length
            g[i, y[i]] += v[j] / length
    return g


@pytest.mark.parametrize(("tau", "rho", "nu"), [(1.0, 1.0, 1.0), (0.5, 2.0, 0.3), (2.0, 0.7, 5.0)])
def test_adv_comp_sum_gradient_by_hand(tau: float, rho: float, nu: float, batch: Batch) -> None:
    """Members ``z = W x``: two steps of the ascent, the loss and its gradient over W without autograd."""
    x, y, wide = batch.x.flatten(1), batch.y, 3 * SIDE * SIDE
    linear = [nn.Sequential(nn.Flatten(), nn.Linear(wide, C, bias=False)) for _ in range(2)]
    team = Team(linear, torch.empty(0))  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(0)
    weights = [torch.randn(C, wide, generator=g, dtype=torch.float64) / 5 for _ in range(2)]
    for member, w in zip(team.members, weights, strict=True):
        member.double()[1].weight.data.copy_(w)  # type: ignore[index]
    options = {"tau": tau, "rho": rho, "nu": nu, "eps": 0.1, "step_size": 0.06, "steps": 2}
    loss = create_defense("adv-comp-sum", members=2, **options).loss(team, batch)
    loss.backward()
    wanted = 0.0
    for k, w in enumerate(weights):
        z = x @ w.T
        at = (x + batch.draws.normal(batch.x, 0.001, "start", k).flatten(1)).clamp(0, 1)
        for _ in range(2):
            at = at + 0.06 * (distance_by_hand(at @ w.T, z, y) @ w).sign()
            at = torch.min(torch.max(at, x - 0.1), x + 0.1).clamp(0, 1)
        assert float((at - x).abs().max()) > 0.09
        z_adv = at @ w.T
        pull = distance_by_hand(z_adv, z, y)
        own = comp_sum_by_hand(z, y, tau, rho) - nu * pull
        found = team.members[k][1].weight.grad  # type: ignore[index]
        torch.testing.assert_close(found, (own.T @ x + nu * pull.T @ at) / N, rtol=1e-8, atol=1e-10)
        for i in range(N):
            u = sum(math.exp(float(z[i, j] - z[i, y[i]]) / rho) for j in range(C) if j != y[i])
            moved = [z_adv[i, y[i]] - z_adv[i, j] - z[i, y[i]] + z[i, j] for j in range(C) if j != y[i]]
            wanted += nu * math.sqrt(sum(float(d) ** 2 for d in moved)) / N
            wanted += (math.log1p(u) if tau == 1 else ((1 + u) ** (1 - tau) - 1) / (1 - tau)) / N
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-8)


@pytest.mark.parametrize("beta", [6.0, 1.5])
def test_trades(beta: float, team: Any, batch: Batch) -> None:
    """As in the authors' code, with the start inside [0, 1]: steps up the divergence, then both terms."""
    eps, step, total = 0.05, 0.02, 0.0
    for k, f in enumerate(team.members):
        here = torch.softmax(f(batch.x).detach(), 1)
        at = (batch.x + batch.draws.normal(batch.x, 0.001, "start", k)).clamp(0, 1)
        for _ in range(3):
            leaf = at.clone().requires_grad_()
            apart = (here * (here.log() - torch.log_softmax(f(leaf), 1))).sum()
            at = at + step * torch.autograd.grad(apart, leaf)[0].sign()
            at = torch.minimum(torch.maximum(at, batch.x - eps), batch.x + eps).clamp(0, 1)
        there = torch.log_softmax(f(at).detach(), 1)
        total += float(sum(ce(f(batch.x)[i].detach(), int(batch.y[i])) for i in range(N))) / N
        total += beta * float((here * (here.log() - there)).sum()) / N
    defense = create_defense("trades", members=3, beta=beta, eps=eps, step_size=step, steps=3)
    close(defense.loss(team, batch), total)


def own_pgd_by_hand(team: Any, batch: Batch, draws: str, eps: float, step: float) -> float:
    """The members' summed cross-entropies at the end of three steps of each one's own PGD."""
    total = 0.0
    for k, f in enumerate(team.members):
        at = (batch.x + batch.draws.uniform(batch.x, -eps, eps, draws, k)).clamp(0, 1)
        for _ in range(3):
            g = torch.stack([input_gradient(f, at[i], int(batch.y[i])).detach() for i in range(N)])
            at = at + step * g.view_as(at).sign()
            at = torch.minimum(torch.maximum(at, batch.x - eps), batch.x + eps).clamp(0, 1)
        total += float(sum(ce(f(at)[i].detach(), int(batch.y[i])) for i in range(N))) / N
    return total


@pytest.mark.parametrize("name", ["at", "iat"])
def test_adversarial_training(name: str, team: Any, batch: Batch) -> None:
    """Cross-entropy at the end of PGD from a uniform point of the ball, every member at its own."""
    eps, step = 0.05, 0.02
    total = own_pgd_by_hand(team, batch, "start", eps, step)
    close(create_defense(name, members=3, eps=eps, step_size=step, steps=3).loss(team, batch), total)


@pytest.mark.parametrize("name", ["at", "iat", "trades", "adv-comp-sum"])
def test_members_start_elsewhere(name: str, batch: Batch) -> None:
    """Equal members see unequal adversarial images: each one's ascent starts from a point of its own."""
    team = Team([net(0), net(0)], torch.empty(0))  # type: ignore[list-item]
    seen: list[list[Tensor]] = [[], []]
    for member, inputs in zip(team.members, seen, strict=True):
        member.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0].detach()))
    create_defense(name, members=2, steps=1).loss(team, batch).backward()
    first, second = ([z for z in inputs if not torch.equal(z, batch.x)] for inputs in seen)
    assert len(first) == len(second) == 2, "the start, and where it led"
    assert not torch.equal(first[0], second[0])
    assert float((first[0] - second[0]).abs().max()) > 1e-4
    if name in ("at", "iat"):  # a uniform point of the ball
        for inputs in (first, second):
            moved = (inputs[0] - batch.x).abs()
            assert 0.9 * 8 / 255 < float(moved.max()) <= 8 / 255 + 1e-12
            assert 0.4 * 8 / 255 < float(moved.mean()) < 0.6 * 8 / 255


def test_margin_term() -> None:
    z, y = torch.randn(N, C, dtype=torch.float64), torch.randint(C, (N,))
    for i, found in enumerate(margin_maximising(z, y)):
        p = torch.exp(-z[i]) / torch.exp(-z[i]).sum()
        close(found, sum(-math.log(float(p[j])) for j in range(C) if j != y[i]) / (C - 1))


def test_mixture_far_into_saturation() -> None:
    z = torch.tensor([[[2000.0, 0.0]], [[0.0, 2000.0]]], dtype=torch.float64)
    found = log_expected(z, torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(found.exp(), torch.tensor([[0.25, 0.75]], dtype=torch.float64))


def gradients_of(loss: Tensor, team: Any) -> list[bool]:
    """Which members a loss teaches."""
    for member in team.members:
        member.zero_grad()
    loss.backward()
    return [any(p.grad is not None and bool(p.grad.any()) for p in m.parameters()) for m in team.members]


@pytest.mark.parametrize("name", ["barre", "mrboost"])
def test_only_the_newest_member_learns(name: str, team: Any, batch: Batch) -> None:
    defense = create_defense(name, members=3, steps=2)
    phases = defense.phases()
    assert [list(phase.learners) for phase in phases] == [[0], [1], [2]]
    for m, phase in enumerate(phases):
        phase.before(team)
        assert team.probabilities.tolist() == [1 / (m + 1)] * (m + 1) + [0] * (2 - m)
        assert gradients_of(phase.objective(team, batch), team) == [k == m for k in range(3)]


@pytest.mark.parametrize(("name", "warm"), [("barre", True), ("mrboost", False)])
def test_where_members_start(name: str, warm: bool, team: Any) -> None:
    """From the last one's weights with a warm start, which is the default where it is published."""
    assert create_defense(name).warm_start is warm
    for asked in (True, False):
        members = [net(k) for k in range(3)]
        before = [[p.clone() for p in f.parameters()] for f in members]
        team.members = members
        create_defense(name, members=3, warm_start=asked).phases()[1].before(team)
        source = 0 if asked else 1
        for p, q in zip(members[1].parameters(), before[source], strict=True):
            assert torch.equal(p, q)
        for k in (0, 2):
            for p, q in zip(members[k].parameters(), before[k], strict=True):
                assert torch.equal(p, q)


def test_ascend_stays_in_the_ball_and_rises(team: Any, batch: Batch) -> None:
    f = team.members[0]

    def loss(z: Tensor) -> Tensor:
        return F.cross_entropy(f(z), batch.y, reduction="none")

    modes = [m.training for m in f.modules()]
    with borrowed([f]):
        assert not f.training
        found = ascend(loss, batch.x, batch.x, eps=0.1, steps=5, step_size=0.05)
    assert [m.training for m in f.modules()] == modes
    assert all(p.requires_grad for p in f.parameters())
    assert (found - batch.x).abs().max() <= 0.1 + 1e-12
    assert ((found >= 0) & (found <= 1)).all()
    assert (loss(found) > loss(batch.x)).all()




@pytest.mark.parametrize("name", ["adp", "gal", "trs"])
def test_adversarial_training_beside(name: str, team: Any, batch: Batch) -> None:
    """What `adversarial` adds: its weight times the cross-entropies at the end of each member's own PGD."""
    eps, step = 0.05, 0.02
    added = own_pgd_by_hand(team, batch, "adversarial", eps, step)
    how = {"adversarial_eps": eps, "adversarial_step_size": step, "adversarial_steps": 3}
    with_it, without = (create_defense(name, adversarial=w, **how).loss(team, batch) for w in (0.7, 0.0))
    close(with_it - without, 0.7 * added)
