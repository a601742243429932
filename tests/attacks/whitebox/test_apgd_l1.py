"""Auto-PGD in l_1: against a plain transcription, and beside its authors' code from the same starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import ceil
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import advens
from advens.attacks.whitebox.apgd import AutoPGD
from advens.attacks.whitebox.apgd_l1 import stages
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.rows import Rows
from advens.classifier import borrowed
from advens.seeding import RowDraws
from advens.threat import project_l1
from tests.attacks.whitebox.conftest import SEED, GivenStarts, Scene, maker

EPS = 4.0
made = partial(maker(AutoPGD), norm="l1", eps=EPS)


def test_schedule_of_balls() -> None:
    """30, 30 and 40 % of the steps; always some in eps."""
    assert stages(100) == [(30, 3), (30, 2), (40, 1)]
    assert stages(5) == [(2, 3), (2, 2), (1, 1)]
    assert stages(4) == [(1, 3), (1, 2), (2, 1)]
    assert stages(2) == [(2, 1)]
    for steps in range(1, 300):
        found = stages(steps)
        assert sum(count for count, _ in found) == steps
        assert found[-1][1] == 1
        if steps >= 10:
            assert found[0][0] == found[1][0] == ceil(3 * steps / 10)


def plain_run(
    model: nn.Module, x: Tensor, noise: Tensor, steps: int, loss: Callable[[Tensor], Tensor]
) -> list[tuple[Tensor, float, int]]:
    """One run for one image (C, H, W): every point, with the step and the sparsity that lead on from it."""

    def project(p: Tensor, radius: float) -> Tensor:
        """The level is found by halving an interval."""
        w, low, high = p - x, 0.0, float((p - x).abs().max())
        room = torch.where(w > 0, 1 - x, x)

        def cut(level: float) -> Tensor:
            return torch.minimum((w.abs() - level).clamp(min=0), room)

        if float(cut(0.0).sum()) <= radius:
            return x + w.sign() * cut(0.0)
        for _ in range(200):
            level = (low + high) / 2
            low, high = (level, high) if float(cut(level).sum()) > radius else (low, level)
        step = cut(high)
        return x + w.sign() * torch.where(step < 1e-10, 0.0, step)

    def at(p: Tensor) -> tuple[float, Tensor]:
        p = p.clone().requires_grad_()
        f = loss(model(p[None]))
        (g,) = torch.autograd.grad(f.sum(), p)
        return float(f.detach()), g

    def changed(p: Tensor) -> int:
        return int((p != x).sum())

    found, best = [], x + noise
    parts = [(ceil(0.3 * steps), 3 * EPS), (ceil(0.3 * steps), 2 * EPS)]
    for count, radius in [*parts, (steps - 2 * ceil(0.3 * steps), EPS)]:
        now = looked = project(best, radius)
        f, g = at(now)
        best, best_f, best_g = now, f, g
        k, before, eta = changed(now) / 1.5, changed(now), radius
        for i in range(count):
            chosen = max(1, ceil(round(k, 9)))
            found.append((looked, eta, chosen))
            least = g.abs().flatten().sort(descending=True).values[chosen - 1]
            sparse = torch.where(g.abs() >= least, g.sign(), 0.0)
            now = looked = project(now + eta * sparse / sparse.abs().sum(), radius)
            f, g = at(now)
            if f > best_f:
                best, best_f, best_g = now, f, g
            if (i + 1) % max(1, int(0.04 * count)) == 0:
                fell = changed(best) / before < 0.95
                k, before = changed(best) / 1.5, changed(best)
                eta = radius if fell else max(eta / 1.5, radius / 10)
                if fell:
                    now, g = best, best_g
    return found


@pytest.mark.parametrize(
    ("name", "options"),
    [("apgd-ce", {}), ("apgd-ce", {"steps": 130, "restarts": 2}),
     ("apgd-t", {"targets": 2, "steps": 30}), ("apgd-ce", {"steps": 5})],
)  # fmt: skip
def test_plain_transcription(name: str, options: dict[str, Any], batched_scene: Scene) -> None:
    """Every point, step and sparsity of every run."""
    model, x, y, _ = batched_scene
    x, y = x[:3], y[:3]
    attack, seen = made(name, **options), []

    class Watched(RowOracle):
        """Remembers points whose gradients are asked for."""

        def gradient(self, x: Tensor, rows: Rows, loss: Any) -> Any:
            seen.append(x.clone())
            return super().gradient(x, rows, loss)

    with borrowed([model]):
        oracle = Watched([model], attack.threat, x, y, seed=SEED)
        rows, alphas, sparsities = oracle.rows(torch.arange(3)), [], []
        attack.begin(oracle, rows)
        for t in range(attack.iterations):
            attack.advance(oracle, rows)
            alphas.append(rows.memory["alpha"].clone())
            sparsities.append(rows.memory["sparsity"].clone())
            rows.t = torch.full_like(rows.t, t + 1)
        likely = model(x).detach().argsort(1, descending=True)
        steps = set()
        for i in range(3):
            for run in range(attack.runs):
                first = run * attack.steps
                noise = RowDraws(SEED).normal(torch.tensor([i]), torch.tensor([first]), (3, 8, 8), "apgd")[0]

                def loss(z: Tensor, i: int = i, run: int = run) -> Tensor:
                    if not attack.targets:
                        return F.cross_entropy(z, y[i : i + 1])
                    down, aim = z[0].sort(descending=True).values, likely[i, 1 + run // attack.restarts]
                    return -(z[0, y[i]] - z[0, aim]) / (down[0] - (down[2] + down[3]) / 2 + 1e-12)

                for k, (point, eta, chosen) in enumerate(plain_run(model, x[i], noise, attack.steps, loss)):
                    torch.testing.assert_close(seen[first + k][i], point, rtol=0, atol=1e-9)
                    assert float(alphas[first + k][i]) == pytest.approx(eta)
                    assert int(sparsities[first + k][i]) == chosen
                    steps.add(round(eta, 6))
    assert max(steps) == 3 * EPS
    assert min(steps) <= EPS


def test_only_points_within_eps_count(batched_scene: Scene) -> None:
    """In the larger balls no sample counts as broken; returned images are inside the smallest one."""
    model, x, y, _ = batched_scene
    attack = made("apgd-ce", eps=0.05, steps=20)
    with borrowed([model]):
        oracle = RowOracle([model], attack.threat, x, y, seed=SEED)
        search(attack, oracle, oracle.begin(torch.arange(len(x))), batch=4)
        assert (oracle.x_adv - x).abs().flatten(1).sum(1).max() <= 0.05 * (1 + 1e-9)
        broken = oracle.correct == 0
        assert bool((oracle.broken_at[broken] >= 12).all())
        assert torch.equal(model(oracle.x_adv).argmax(1) != y, broken)


class Single(nn.Module):
    """A model of single precision, for images of double precision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.model(x.float()).double()
        return z


def test_beside_autoattack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of 40 images break, from the same starts, with our projection in the place of its own.

    AutoAttack's projection leaves rounding errors in pixels that are to stay, and counts these pixels among
    those that are changed. Apart from that the two do the same.
    """
    peer = pytest.importorskip("autoattack.autopgd_base")
    model = Single(advens.load_model("digits:resnet-at"))
    batch = next(advens.load_data("digits:test").batches([slice(0, 40)]))
    x, y = batch.pixels.double() / 255, batch.labels
    table = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def exact(x2: Tensor, y2: Tensor, radius: float) -> Tensor:
        return project_l1(x2 + y2, x2, radius) - (x2 + y2)

    monkeypatch.setattr(peer, "L1_projection", exact)
    attack = made("apgd-ce", eps=30.0, steps=30)
    with borrowed([model]):
        theirs = peer.APGDAttack(model, norm="L1", eps=30.0, device="cpu")
        theirs.init_hyperparam(x)
        at, robust = x + table, torch.ones(0)
        for count, radius in stages(30):
            theirs.eps, theirs.n_iter = 30.0 * radius, count
            start = project_l1(at, x, theirs.eps)
            at, robust, _, _ = theirs.attack_single_run(x, y, x_init=start)
        oracle = GivenStarts([model], attack.threat, x, y)
        oracle.table, oracle.steps = table[None], attack.steps
        right = oracle.begin(torch.arange(40))
        search(attack, oracle, right, batch=40)
    ours = oracle.correct > 0
    assert 4 < int(ours.sum()) < len(right) - 4
    assert int((ours != robust.bool())[right].sum()) <= 1
