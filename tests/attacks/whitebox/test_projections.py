"""The shortest way to a hyperplane within the box, against solvers that know nothing of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from advens.attacks.whitebox.projections import to_plane
from advens.errors import InputError

every = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
Case = tuple[Tensor, Tensor, Tensor]


def size(d: Tensor, norm: str) -> Tensor:
    return d.norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[norm], dim=1)


def reach(x: Tensor, w: Tensor, gap: Tensor) -> Tensor:
    """How much of the gap the box allows to close, (N,)."""
    ahead = -gap.sign()[:, None] * w
    return (ahead * torch.where(ahead > 0, 1 - x, -x)).sum(1)


def cases(seed: int, n: int, count: int) -> Case:
    """Points inside, on the edge and in corners; zero weights; hyperplanes near, far and out of reach."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, n, generator=generator, dtype=torch.float64)
    w = torch.randn(count, n, generator=generator, dtype=torch.float64)
    kind = torch.rand(count, n, generator=generator)
    x = torch.where(kind < 0.15, 0.0, torch.where(kind > 0.85, 1.0, x))
    w = torch.where((kind * 10) % 1 < 0.2, 0.0, w)
    w = w * 10 ** (8 * torch.rand(count, 1, generator=generator, dtype=torch.float64) - 4)
    sign = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0).double()
    part = 1.3 * torch.rand(count, generator=generator, dtype=torch.float64)
    return x, w, sign * part * reach(x, w, sign)


def solved(x: Tensor, w: Tensor, gap: float, norm: str) -> float:
    """The length of the shortest step, by a solver, for one point (n,)."""
    n, scale = len(x), float(w.abs().max())
    w, gap = w / scale, gap / scale
    low, high = (-x).tolist(), (1 - x).tolist()
    if norm == "linf":
        eye, one = np.eye(n), np.ones((n, 1))
        found = linprog(
            [0.0] * n + [1.0], A_ub=np.block([[eye, -one], [-eye, -one]]), b_ub=np.zeros(2 * n),
            A_eq=[[*w.tolist(), 0.0]], b_eq=[-gap], bounds=[*zip(low, high, strict=True), (0, None)],
        )  # fmt: skip
        assert found.success
        return float(found.fun)
    if norm == "l1":  # d = up - down
        found = linprog(
            np.ones(2 * n), A_eq=[[*w.tolist(), *(-w).tolist()]], b_eq=[-gap],
            bounds=[*((0, h) for h in high), *((0, -h) for h in low)],
        )  # fmt: skip
        assert found.success
        return float(found.fun)
    weights = w.numpy()
    found = minimize(
        lambda d: d @ d, np.zeros(n), jac=lambda d: 2 * d, method="SLSQP",
        bounds=list(zip(low, high, strict=True)), options={"ftol": 1e-14, "maxiter": 500},
        constraints={"type": "eq", "fun": lambda d: weights @ d + gap, "jac": lambda d: weights},
    )  # fmt: skip
    assert found.success
    return float(found.fun) ** 0.5


@every
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_solver(n: int, norm: str) -> None:
    x, w, gap = cases(n, n, 60)
    d = to_plane(x, w, gap, norm)
    moved = x + d
    assert moved.min() >= -1e-15
    assert moved.max() <= 1 + 1e-15
    reached = reach(x, w, gap) >= gap.abs()
    assert reached.any()
    weight = w.abs().sum(1)
    left = (gap + (w * d).sum(1)).abs()
    assert (left[reached] <= 1e-12 * weight[reached]).all()
    compared = 0
    for i in reached.nonzero().flatten().tolist():
        if weight[i] > 0:
            expected = solved(x[i], w[i], float(gap[i]), norm)
            assert float(size(d, norm)[i]) == pytest.approx(expected, abs=2e-6)
            compared += 1
    assert compared >= 20


@every
def test_out_of_reach(norm: str) -> None:
    """The corner nearest to the hyperplane; coordinates without weight stay."""
    x, w, gap = cases(3, 9, 80)
    gap = 1.01 * reach(x, w, gap) * gap.sign()
    moves = w.abs().amax(1) > 0
    d = to_plane(x, w, gap, norm)[moves]
    x, w, gap = x[moves], w[moves], gap[moves]
    corner = torch.where(-gap.sign()[:, None] * w > 0, 1.0, 0.0).double()
    assert (w == 0).any()
    torch.testing.assert_close(x + d, torch.where(w == 0, x, corner), rtol=0, atol=1e-15)


@every
def test_light_weights(norm: str) -> None:
    """Rounding of what is left, divided by weights next to nothing, must not turn a step round."""
    generator = torch.Generator().manual_seed(8)
    x = torch.rand(500, 40, generator=generator, dtype=torch.float64)
    w = torch.ones_like(x)
    w[:, 0], w[:, 1] = 1e-14, 1e-11
    full = (1 - x[:, 2:]).sum(1)  # what the heavy ones can do
    for part in (1 - 1e-7, 1 - 1e-15, 1.0, 1 + 1e-15):
        d = to_plane(x, w, -full * part, norm)
        assert (d >= 0).all()
        assert (d[:, 0] == 0).all(), "less than 1e-12 of the heaviest"
        torch.testing.assert_close((w * d).sum(1), full * part, rtol=1e-10, atol=0)


@every
def test_by_hand(norm: str) -> None:
    """x1 + 2 x2 = 1.8 from (0.5, 0.5): inside; and = 2.9, where x2 meets the box in l_2 and l_1."""
    x = torch.full((2, 2), 0.5, dtype=torch.float64)
    w = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    d = to_plane(x, w, torch.tensor([1.5 - 1.8, 1.5 - 2.9], dtype=torch.float64), norm)
    first = {"linf": [0.1, 0.1], "l2": [0.06, 0.12], "l1": [0.0, 0.15]}[norm]
    second = [1.4 / 3, 1.4 / 3] if norm == "linf" else [0.4, 0.5]
    torch.testing.assert_close(d, torch.tensor([first, second]).double())


@every
def test_nothing_to_do(norm: str) -> None:
    """On the hyperplane; no weights at all; on the edge with the way out barred."""
    x = torch.tensor([[0.2, 1.0], [0.2, 1.0], [0.0, 1.0], [0.0, 0.0]])
    w = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, -1.0], [0.0, 0.0]])
    d = to_plane(x, w, torch.tensor([0.0, 3.0, 0.5, 0.0]), norm)
    assert torch.equal(d, torch.zeros_like(d))


@every
def test_scale_of_the_weights_does_not_matter(norm: str) -> None:
    """A hyperplane is the same with its normal a billionth or a billion times as long, even in float32."""
    x, w, gap = cases(5, 50, 40)
    w = w / w.abs().amax(1, keepdim=True).clamp_min(1e-300)
    gap = 0.5 * reach(x, w, gap) * gap.sign()
    d = to_plane(x, w, gap, norm)
    for scale in (1e-30, 1e-9, 1e9, 1e30):
        single = to_plane(x.float(), (w * scale).float(), (gap * scale).float(), norm)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), d, rtol=0, atol=3e-6)
        moved = x.float() + single
        assert moved.min() >= 0
        assert moved.max() <= 1


@every
def test_rows_mind_no_others(norm: str) -> None:
    x, w, gap = cases(6, 30, 10)
    together = to_plane(x, w, gap, norm)
    for i in range(10):
        assert torch.equal(together[i], to_plane(x[[i]], w[[i]], gap[[i]], norm)[0])


def test_wrong_norm() -> None:
    x = torch.zeros(1, 2)
    with pytest.raises(InputError, match="unknown norm 'l3'; did you mean 'l2'"):
        to_plane(x, x, x[:, 0], "l3")
