"""Auto-PGD against a plain transcription: one sample, one run, python numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.whitebox.apgd import AutoPGD
from advens.attacks.whitebox.oracle import RowOracle
from advens.classifier import borrowed
from advens.seeding import RowDraws
from tests.attacks.whitebox.conftest import SEED, Scene, maker

norms = pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.8)])
made = maker(AutoPGD)


@dataclass
class Run:
    """Every point that is looked at, and the step that leaves it; nothing leaves the last one."""

    points: list[Tensor] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)


def plain_loss(name: str, z: Tensor, y: int, target: int | None) -> Tensor:
    """Of logits (classes,)."""
    if name == "ce":
        return F.cross_entropy(z[None], torch.tensor([y]))
    down = z.sort(descending=True).values
    if target is not None:
        return -(z[y] - z[target]) / (down[0] - (down[2] + down[3]) / 2 + 1e-12)
    other = max(z[i] for i in range(len(z)) if i != y)
    return -(z[y] - other) / (down[0] - down[2] + 1e-12)


def plain_run(
    model: nn.Module, x: Tensor, y: int, target: int | None, loss: str, noise: Tensor, norm: str,
    eps: float, steps: int, rho: float,
) -> Run:  # fmt: skip
    """One run for one image (C, H, W), all as the formulas stand."""

    def project(p: Tensor) -> Tensor:
        if norm == "linf":
            return torch.minimum(torch.maximum(p, x - eps), x + eps).clamp(0, 1)
        length = float((p - x).view(1, -1).norm(dim=1))
        return (x + (p - x) * min(eps / length, 1.0)).clamp(0, 1)

    def at(p: Tensor) -> tuple[float, Tensor]:
        p = p.clone().requires_grad_()
        f = plain_loss(loss, model(p[None])[0], y, target)
        (g,) = torch.autograd.grad(f.sum(), p)
        return float(f.detach()), g

    def unit(g: Tensor) -> Tensor:
        if norm == "linf":
            return g.sign()
        g = g / g.abs().max()
        return g / g.square().sum().sqrt()

    size = noise.abs().max() if norm == "linf" else noise.norm()
    found, now = Run(), project(x + eps * noise / size)
    f, g = at(now)
    best, best_f, best_g, before = now, f, g, now
    losses, alpha, gap, since = [f], 2 * eps, max(int(0.22 * steps), 1), 0
    halved, best_then = True, f
    found.points.append(now)
    for i in range(steps):
        found.alphas.append(alpha)
        z = project(now + alpha * unit(g))
        a = 0.75 if i else 1.0
        now, before = project(now + a * (z - now) + (1 - a) * (now - before)), now
        found.points.append(now)
        if i == steps - 1:
            break
        f, g = at(now)
        losses.append(f)
        if f > best_f:
            best, best_f, best_g = now, f, g
        since += 1
        if since == gap:
            rises = sum(losses[-j] > losses[-j - 1] for j in range(1, gap + 1))
            halve = rises <= rho * gap or (not halved and best_then >= best_f)
            halved, best_then = halve, best_f
            if halve:
                alpha, now, g = alpha / 2, best, best_g
            since, gap = 0, max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found


def stepwise(attack: AutoPGD, oracle: RowOracle, n: int) -> tuple[list[Tensor], list[Tensor]]:
    """The steps (N,) behind, and the points (N, C, H, W) after, every iteration."""
    rows = oracle.rows(torch.arange(n))
    attack.begin(oracle, rows)
    alphas, points = [], []
    for t in range(attack.iterations):
        attack.advance(oracle, rows)
        alphas.append(rows.memory["alpha"].clone())
        points.append(rows.memory["x"].clone())
        rows.t = torch.full_like(rows.t, t + 1)
    return alphas, points


PLAIN = [
    ("apgd-ce", "ce", {}),
    ("apgd-ce", "ce", {"rho": 0.2, "restarts": 3, "steps": 60}),
    ("apgd-dlr", "dlr", {"restarts": 2}),
    ("apgd-t", "dlr", {"targets": 2, "restarts": 2, "steps": 60}),
    ("apgd-dlr", "wanted", {}),
    ("apgd-ce", "ce", {"steps": 7}),
    ("apgd-ce", "ce", {"steps": 1}),
]


@norms
@pytest.mark.parametrize(("name", "loss", "options"), PLAIN)
def test_plain_transcription(
    name: str, loss: str, options: dict[str, Any], norm: str, eps: float, scene: Scene
) -> None:
    """Steps exactly, iterates to rounding, over all steps of every run.

    Rounding grows over a run in l_2; in l_inf the sign swallows it.
    """
    model, x, y, wanted = scene
    x, y, wanted = x[:4], y[:4], wanted[:4]
    attack = made(name, norm=norm, eps=eps, **options)
    with borrowed([model]):
        target = wanted if loss == "wanted" else None
        oracle = RowOracle([model], attack.threat, x, y, target, seed=SEED)
        alphas, points = stepwise(attack, oracle, len(x))
        likely = model(x).detach().argsort(1, descending=True)
        halvings: set[float] = set()
        for i in range(len(x)):
            for run in range(attack.runs):
                first = run * attack.steps
                draw = RowDraws(SEED).uniform if norm == "linf" else RowDraws(SEED).normal
                noise = draw(torch.tensor([i]), torch.tensor([first]), (3, 8, 8), "apgd")[0]
                noise = 2 * noise - 1 if norm == "linf" else noise
                towards = int(wanted[i]) if loss == "wanted" else None
                if attack.targets:
                    towards = int(likely[i, 1 + run // attack.restarts])
                expected = plain_run(
                    model, x[i], int(y[i]), towards, loss if loss == "ce" else "dlr", noise, norm, eps,
                    attack.steps, attack.rho,
                )  # fmt: skip
                shown = [float(a[i]) for a in alphas[first : first + attack.steps]]
                assert shown == expected.alphas
                halvings.update(shown)
                for k in range(attack.steps):
                    ours = points[first + k][i]
                    atol = 1e-12 if norm == "linf" else 1e-7
                    torch.testing.assert_close(ours, expected.points[k + 1], rtol=0, atol=atol)
    assert max(halvings) == 2 * attack.threat.radius
    if attack.steps >= 60:
        assert len(halvings) > 2, "no step was ever halved twice"


def test_checkpoints() -> None:
    """The published ones of 100 steps: where a step that never helps is halved."""

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] * 0 + torch.tensor([3.0, 2.0, 1.0, 0.0])

    x = torch.full((1, 1, 2, 2), 0.5)
    attack = made("apgd", eps=0.1)
    oracle = RowOracle([Flat()], attack.threat, x, torch.tensor([0]))
    alphas, _ = stepwise(attack, oracle, 1)
    values = [float(a) for a in alphas]
    at = [t for t in range(1, 100) if values[t] < values[t - 1]]
    assert at == [22, 41, 57, 70, 80, 87, 93, 99]
    assert values[-1] == pytest.approx(0.2 / 2**8)
