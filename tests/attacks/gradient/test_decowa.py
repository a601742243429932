"""DeCoWA: a spline solved for every warp and pixels looked up in loops, one image at a time."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.estimators.decowa import warped
from advens.errors import InputError
from tests.attacks.fusions.conftest import make

RHO, ALPHA = 0.7, 8 / 255


def kernel(a: Tensor, b: Tensor) -> Tensor:
    r2 = ((a - b) ** 2).sum()
    return r2 * torch.log(r2 + 1e-9)


@cache
def points(m: int) -> list[Tensor]:
    axis = [2 * i / (m - 1) - 1 for i in range(m)]
    return [torch.tensor([h, v], dtype=torch.float64) for v in axis for h in axis]


@cache
def near(q: tuple[float, float], m: int) -> Tensor:
    at = torch.tensor(q, dtype=torch.float64)
    return torch.stack([kernel(at, b) for b in points(m)])


@cache
def system(m: int) -> Tensor:
    k = torch.stack([torch.stack([kernel(a, b) for b in points(m)]) for a in points(m)])
    p = torch.stack([torch.cat([torch.ones(1, dtype=a.dtype), a]) for a in points(m)])
    return torch.cat([torch.cat([k, p], 1), torch.cat([p.T, torch.zeros(3, 3, dtype=p.dtype)], 1)])


def warp(x: Tensor, xi: Tensor, m: int) -> Tensor:
    """One image under the spline through the moved mesh; xi ((m - 2)^2, 2), rows of points from the top."""
    mesh = points(m)
    inside = [n for n in range(m * m) if 0 < n // m < m - 1 and 0 < n % m < m - 1]
    goals = [p + (xi[inside.index(n)] if n in inside else 0) for n, p in enumerate(mesh)]
    solved = torch.linalg.solve(system(m), torch.cat([torch.stack(goals), torch.zeros(3, 2, dtype=x.dtype)]))
    w, a = solved[: m * m], solved[m * m :]
    height, width = x.shape[1:]
    rows = []
    for r in range(height):
        row = []
        for c in range(width):
            q = (2 * c / (width - 1) - 1, 2 * r / (height - 1) - 1)
            to = a[0] + q[0] * a[1] + q[1] * a[2] + near(q, m) @ w
            h, v = (to[0] + 1) / 2 * (width - 1), (to[1] + 1) / 2 * (height - 1)
            pixel = torch.zeros(3, dtype=x.dtype)
            left, top = int(torch.floor(h)), int(torch.floor(v))
            for i in (top, top + 1):
                for j in (left, left + 1):
                    if 0 <= i < height and 0 <= j < width:
                        pixel = pixel + (1 - (v - i).abs()) * (1 - (h - j).abs()) * x[:, i, j]
            row.append(pixel)
        rows.append(torch.stack(row, 1))
    return torch.stack(rows, 1)


@pytest.mark.parametrize("mesh", [3, 4])
def test_the_warp_is_the_spline(mesh: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 6, 5, generator=generator, dtype=torch.float64)
    xi = torch.rand(2, (mesh - 2) ** 2, 2, generator=generator, dtype=torch.float64) * 2 - 1
    wanted = torch.stack([warp(image, move, mesh) for image, move in zip(x, xi, strict=True)])
    torch.testing.assert_close(warped(x, xi), wanted, rtol=0, atol=1e-9)
    torch.testing.assert_close(warped(x, torch.zeros_like(xi)), x, rtol=0, atol=1e-9)


def test_decowa(at: Any, mi: Any) -> None:
    """Two copies: xi goes down what is ascended, then the gradient of the image behind that warp."""

    def step(t: int, i: int, x: Tensor, memory: Any) -> Tensor:
        total = torch.zeros_like(x)
        for copy in range(2):
            like = torch.empty(len(at.x), 1, 2, dtype=x.dtype)
            xi = at.draws(t).uniform(like, -1, 1, "decowa", copy)[i].clone().requires_grad_()
            view = warp(x, xi, 3)
            (down,) = torch.autograd.grad(view, xi, at.g(i, view.detach()))
            leaf = x.clone().requires_grad_()
            view = warp(leaf, xi.detach() - RHO * down, 3)
            total += torch.autograd.grad(view, leaf, at.g(i, view.detach()))[0] / 2
        return ALPHA * torch.sign(mi(total, memory))

    at.same(step, "decowa", 2, step_size=ALPHA, copies=2, rho=RHO)


def test_a_step_of_the_warp_hides_the_attack() -> None:
    """What is ascended is smaller behind the moved warps, also with a target, on average."""
    for targeted in (False, True):
        at = make(1, 7, targeted=targeted)
        oracle = at.oracle(at.attack("decowa"))
        seen: list[Tensor] = []

        def plain(view: Tensor, oracle: Any = oracle, seen: list[Tensor] = seen) -> Tensor:
            z = [oracle.forward(view, 0)]
            seen.append(oracle.fused(z, None, "logits").value.mean())
            found: Tensor = oracle.gradient(view)
            return found

        part = at.attack("decowa", copies=12, rho=0.05).estimator
        oracle.estimator = at.attack("mifgsm").estimator
        part.estimate(plain, at.x, {}, oracle.context)
        before, after = torch.stack(seen[::2]), torch.stack(seen[1::2])
        assert after.mean() < before.mean()
        assert (after < before).double().mean() > 0.9


def test_one_warp_for_the_batch_on_request() -> None:
    """Published: the same warp for all, moved by the mean; otherwise a sample's own."""
    at = make(1, 4)
    found = {}
    for coupled in (False, True):
        attack = at.attack("decowa", copies=2, rho=0.5, batch_coupled=coupled)
        whole, alone = (attack.run(at.models, at.x, at.y, micro_batch=n).x_adv for n in (4, 1))
        assert torch.allclose(whole, alone, rtol=0, atol=1e-12) != coupled
        found[coupled] = whole
        context = at.oracle(attack).context
        xi = attack.estimator._drawn(at.x, context, 0)  # type: ignore[attr-defined]
        assert xi.shape == (4, 1, 2)
        assert torch.equal(xi[0], xi[1]) == coupled
        assert xi.abs().max() <= 1
    assert not torch.equal(found[False], found[True])


def test_a_mesh_has_inner_points() -> None:
    with pytest.raises(InputError, match="at least 3"):
        create_attack("decowa", mesh=2)
