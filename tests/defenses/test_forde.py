"""FoRDE's kernel: principal components as lengthscales, and what its bandwidth is for few members."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import advens
from advens.defenses import create_defense
from advens.defenses.diverse import principal_axes, repulsion
from advens.defenses.phases import Batch, Team
from advens.defenses.registry import describe
from advens.errors import InputError
from advens.seeding import Draws

C, SIDE, N = 4, 3, 5
WIDE = 3 * SIDE * SIDE


def images(n: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, SIDE, SIDE, generator=g, dtype=torch.float64)


def net(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made = nn.Sequential(nn.Flatten(), nn.Linear(WIDE, 6), nn.Tanh(), nn.Linear(6, C))
    return made.double()


def batch() -> Batch:
    x, y = images(N, 1), torch.randint(C, (N,), generator=torch.Generator().manual_seed(2))
    return Batch(x, y, lambda: (x, y), Draws(0, N), Draws(0, N))


def covariance(x: Tensor, centre: str) -> Tensor:
    flat = x.flatten(1)
    mean = flat.sum(0) / len(flat)
    if centre == "channel":
        side = SIDE * SIDE
        mean = torch.cat([mean[c * side : (c + 1) * side].sum().expand(side) / side for c in range(3)])
    return torch.stack([torch.outer(row - mean, row - mean) for row in flat]).sum(0) / (len(flat) - 1)


@pytest.mark.parametrize("centre", ["channel", "pixel"])
@pytest.mark.parametrize("count", [10, 200])
def test_axes(count: int, centre: Any) -> None:
    """Fewer and more images than dimensions; an inverse squared lengthscale is a variance."""
    x = images(count, 0) ** 2 + torch.linspace(0, 1, SIDE * SIDE).view(SIDE, SIDE)  # pixels differ
    axes, wanted = principal_axes(x, centre), covariance(x, centre)
    torch.testing.assert_close(axes @ axes.T, wanted, rtol=0, atol=1e-12)
    apart = (axes.T @ axes).fill_diagonal_(0)
    assert float(apart.abs().max()) < 1e-12, "components are orthogonal"
    g = torch.randn(2, WIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ((g[0] - g[1]) @ axes).square().sum()
    torch.testing.assert_close(found, (g[0] - g[1]) @ wanted @ (g[0] - g[1]))


@pytest.mark.parametrize("members", [2, 3, 4])
@pytest.mark.parametrize("pca", [False, True])
def test_loss(members: int, pca: bool) -> None:
    """As published: rotated, of length one, stretched by deviations; the median may be the mean of two."""
    team = Team([net(k) for k in range(members)], torch.empty(0))  # type: ignore[list-item]
    at, x = batch(), images(50, 0) ** 2
    if pca:
        values, rotation = torch.linalg.eigh(covariance(x, "channel"))
        stretch = values.sqrt()
    else:
        rotation, stretch = torch.eye(WIDE, dtype=torch.float64), torch.ones(WIDE, dtype=torch.float64)
    s: list[list[Tensor]] = []
    wanted = 0.0
    for f in team.members:
        rows = []
        for b in range(N):
            leaf = at.x[b].clone().requires_grad_()
            z = f(leaf[None])[0]
            (g,) = torch.autograd.grad(z[at.y[b]], leaf)
            u = rotation.T @ g.flatten()
            rows.append(u / u.norm() * stretch)
            wanted -= math.log(float(torch.softmax(z.detach(), 0)[at.y[b]])) / N
        s.append(rows)
    for i in range(members):
        inside = 0.0
        for b in range(N):
            for j in range(members):
                d = sorted(float((s[k][b] - s[j][b]).square().sum()) for k in range(members))
                middle = (d[(members - 1) // 2] + d[members // 2]) / 2
                h = middle / math.log(members) + 1e-12
                inside += math.exp(-float((s[i][b] - s[j][b]).square().sum()) / h)
        wanted += math.log(inside / N) / N
    defense = create_defense("forde", members=members)
    loss = defense.loss(team, at, principal_axes(x) if pca else None)
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-8)
    loss.backward()
    learned = [p for f in team.members for p in (f[1].weight, f[3].weight)]
    assert all(p.grad is not None and bool(p.grad.any()) for p in learned)


def test_two_members_repel() -> None:
    """A member's distance to itself is 0; half of the other's is the median, and it pushes."""
    g = torch.Generator().manual_seed(0)
    units = F.normalize(torch.randn(2, N, 7, dtype=torch.float64, generator=g), dim=-1).requires_grad_()
    loss = repulsion(units)
    (found,) = torch.autograd.grad(loss, units)
    # exp(-d / (d / 2 / log 2)) = 1/4 at any distance
    assert float(loss.detach()) == pytest.approx(2 * math.log(1.25), rel=1e-9)
    apart = (units[0] - units[1]).detach()
    width = apart.square().sum(-1, keepdim=True) / 2 / math.log(2)
    push = -(1 / 4) / 1.25 / N * 2 * apart / width  # of a member's own term alone: the other stands still
    torch.testing.assert_close(found, torch.stack([push, -push]), rtol=1e-9, atol=1e-12)


def test_equal_members_among_others() -> None:
    """Two equal members and one apart: for the two the median is 0, and the third has no share in theirs.

    For the third it is the distance d, and ``exp(-d / (d / log 3)) = 1/3``.
    """
    g = torch.Generator().manual_seed(0)
    one, other = F.normalize(torch.randn(2, 1, 7, dtype=torch.float64, generator=g), dim=-1)
    found = repulsion(torch.stack([one, one, other]))
    assert float(found) == pytest.approx(2 * math.log(1 + 1 + 1 / 3) + math.log(0 + 0 + 1))


def test_all_members_learn_at_once() -> None:
    for pca in (None, "digits:train?limit=8&size=4"):
        (phase,) = create_defense("forde", members=4, pca=pca).phases()
        assert (phase.name, list(phase.learners)) == ("together", [0, 1, 2, 3])
        assert phase.before is phase.after_epoch is None


def test_option() -> None:
    """A data source's components are those of its images, on the type of the batch."""
    spec = "digits:train?limit=32&size=3"
    data: Any = advens.load_data(spec)
    x = next(data.batches([slice(0, len(data))])).pixels.float() / 255
    how = create_defense("forde", members=3, pca=spec)
    assert describe(how)["pca"] == spec
    team, at = Team([net(k).float() for k in range(3)], torch.empty(0)), batch()  # type: ignore[list-item]
    at.x = at.x.float()
    (phase,) = how.phases()
    wanted = how.loss(team, at, principal_axes(x).float())
    for _ in range(2):
        assert torch.equal(phase.objective(team, at), wanted)
    assert not torch.equal(how.loss(team, at), wanted)
    (other,) = create_defense("forde", members=3, pca=spec, centre="pixel").phases()
    pixel = how.loss(team, at, principal_axes(x, "pixel").float())
    assert torch.equal(other.objective(team, at), pixel)
    assert not torch.equal(pixel, wanted)
    (other,) = create_defense("forde", pca="digits:train?limit=8&size=4").phases()
    with pytest.raises(InputError, match="pca: images of 48 numbers, and 27 are learned from"):
        other.objective(team, at)
    with pytest.raises(InputError, match="did you mean"):
        create_defense("forde", pca="digits:trian").phases()
