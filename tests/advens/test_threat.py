"""The ball: projection, steps, 8-bit rounding and the audit, against brute force."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from advens.errors import InputError
from advens.seeding import Draws
from advens.threat import Threat, norms, parse_eps, project_l1, sparse_signs


def noise(seed: int, *shape: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def clean_bytes(seed: int, *shape: int) -> Tensor:
    """8-bit values with many at the borders."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-60, 316, shape, generator=generator).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize(
    ("eps", "value"),
    [("8/255", 8 / 255), ("16 / 255", 16 / 255), ("0.03", 0.03), (0.2, 0.2), ("1e-2", 0.01), (1, 1)],
)  # fmt: skip
def test_eps_as_written(eps: float | str, value: float) -> None:
    threat = Threat(eps=eps)
    assert threat.eps == eps, "kept as written"
    assert threat.radius == pytest.approx(value, rel=1e-15)
    assert json.loads(json.dumps(threat.eps)) == eps
    assert hash(threat) == hash(Threat("linf", eps))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": "eight"}, "eps = 'eight' is not a number; write 0.03 or \"8/255\""),
        ({"eps": "8/0"}, "eps = '8/0' is not a number"),
        ({"eps": ""}, "eps = '' is not a number"),
        ({"eps": 0}, "eps = 0 is out of range; it must be above 0"),
        ({"eps": "-8/255"}, "eps = -8/255 is out of range; it must be above 0"),
        ({"eps": -0.1, "norm": "l2"}, "eps = -0.1 is out of range; it must be above 0"),
        ({"eps": math.nan}, "eps = nan is not finite"),
        ({"eps": math.inf}, "eps = inf is not finite"),
        ({"eps": True}, "eps = True is out of range"),
        ({"eps": 8}, 'eps = 8 is out of range; images lie in [0, 1], so an l_inf budget is at most 1 '
                     '(did you mean "8/255"?)'),
        ({"eps": "256/255"}, "eps = 256/255 is out of range"),
        ({"norm": "linff"}, "unknown norm 'linff'; did you mean 'linf'?"),
        ({"norm": ""}, "unknown norm ''; one of: l1, l2, linf"),
    ],
)  # fmt: skip
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Threat(**options)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("written", "norm"),
    [("Linf", "linf"), ("inf", "linf"), ("L2", "l2"), ("l_2", "l2"), ("L1", "l1"), ("l_1", "l1")],
)
def test_norms_as_people_write_them(written: str, norm: str) -> None:
    assert Threat(written, 0.5) == Threat(norm, 0.5)


@pytest.mark.parametrize("options", [{"eps": None}, {"eps": [0.1]}, {"norm": None}, {"norm": 2}])
def test_values_of_a_wrong_type(options: dict[str, Any]) -> None:
    """As a TOML file may hold them."""
    with pytest.raises(InputError):
        Threat(**options)


def test_l2_and_l1_budgets_may_exceed_one() -> None:
    assert Threat("l2", 3.0).radius == 3
    assert Threat("l1", 12).radius == 12
    assert parse_eps("2/255", "step_size") == pytest.approx(2 / 255)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_lands_inside_and_stays(norm: str, dtype: torch.dtype) -> None:
    threat = Threat(norm, {"linf": 0.1, "l2": 0.7, "l1": 2.5}[norm])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    x = (clean_bytes(0, 6, 3, 5, 5).double() / 255).to(dtype)
    for scale in (1e-3, 0.1, 1.0, 100.0):
        far = x + noise(1, 6, 3, 5, 5, scale=scale).to(dtype)
        near = threat.project(far, x)
        written = far.clone()
        assert threat.project_(written, x) is written
        assert torch.equal(written, near), "in place it is the same"
        assert near.dtype == dtype
        assert near.min() >= 0
        assert near.max() <= 1
        assert norms(near - x, norm).max() <= threat.radius + tolerance
        torch.testing.assert_close(threat.project(near, x), near, rtol=0, atol=tolerance)
    assert torch.equal(threat.project(x, x), x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_projection_leaves_the_inside_alone(norm: str) -> None:
    threat = Threat(norm, 0.5)
    x = torch.full((4, 3, 5, 5), 0.5, dtype=torch.float64)
    inside = x + 0.49 * noise(0, 4, 3, 5, 5) / norms(noise(0, 4, 3, 5, 5), norm)
    torch.testing.assert_close(threat.project(inside, x), inside, rtol=0, atol=1e-15)


def test_linf_projection_is_the_nearest_point() -> None:
    """Pixel by pixel, against every point of a fine grid over the ball and [0, 1]."""
    threat = Threat("linf", 0.25)
    grid = torch.linspace(0, 1, 10001, dtype=torch.float64)
    for x, far in itertools.product([0.0, 0.1, 0.5, 0.9, 1.0], [-3.0, 0.0, 0.2, 0.6, 0.77, 1.1, 9]):
        allowed = grid[(grid - x).abs() <= 0.25 + 1e-12]
        best = allowed[(allowed - far).abs().argmin()]
        found = threat.project(
            torch.full((1, 1, 1, 1), far, dtype=torch.float64),
            torch.full((1, 1, 1, 1), x, dtype=torch.float64),
        )
        assert found.item() == pytest.approx(best.item(), abs=1e-4)


def test_l2_projection_of_an_interior_ball_is_the_nearest_point() -> None:
    """Away from the border the nearest point lies on the ray."""
    threat, x = Threat("l2", 0.3), torch.full((5, 3, 4, 4), 0.5, dtype=torch.float64)
    delta = noise(3, 5, 3, 4, 4, scale=0.1)
    wanted = x + delta * (0.3 / norms(delta, "l2"))
    assert (norms(delta, "l2") > 0.3).all()
    torch.testing.assert_close(threat.project(x + delta, x), wanted, rtol=0, atol=1e-12)


def test_l2_projection_uses_the_whole_budget_at_the_border() -> None:
    """Where the box cuts off pixels, the others may be as far as the ball allows."""
    threat, x = Threat("l2", 0.3), torch.zeros(1, 1, 1, 2, dtype=torch.float64)
    far = torch.tensor([[[[-5.0, 0.9]]]], dtype=torch.float64)
    assert threat.project(far, x).flatten().tolist() == pytest.approx([0.0, 0.3])


def l1_cases(count: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Images (6,) with values on the edge of [0, 1], points near and far, ties, and balls of all sizes."""
    generator = torch.Generator().manual_seed(4)

    def numbers() -> Tensor:
        return torch.rand(6, generator=generator, dtype=torch.float64)

    for case in range(count):
        x, kind, size = numbers(), numbers(), 10 ** (3 * float(numbers()[0]) - 2)
        x = torch.where(kind < 0.2, 0.0, torch.where(kind > 0.8, 1.0, x))
        step = size * (2 * numbers() - 1)
        if case % 5 == 0:
            step = size * step.sign()
        yield x, x + step, float(numbers()[0]) * float(step.abs().sum())


def test_l1_projection_is_the_nearest_point() -> None:
    """Against a quadratic program, whose variables are what is added to and taken from every value."""
    boxed = 0
    for x, far, radius in l1_cases(40):
        found = project_l1(far.view(1, 1, 1, 6), x.view(1, 1, 1, 6), radius).flatten()
        assert found.min() >= 0
        assert found.max() <= 1
        assert (found - x).abs().sum() <= radius * (1 + 1e-12)
        clean, wanted = x.numpy(), far.numpy()

        def distance(d: Any, clean: Any = clean, wanted: Any = wanted) -> tuple[float, Any]:
            left = clean + d[:6] - d[6:] - wanted
            return float(left @ left), np.concatenate([2 * left, -2 * left])

        best = minimize(
            distance, np.zeros(12), jac=True, method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
            bounds=[*((0, 1 - v) for v in clean), *((0, v) for v in clean)],
            constraints={"type": "ineq", "fun": lambda d, r=radius: r - d.sum()},
        )  # fmt: skip
        nearest = float((found - far).square().sum())
        assert nearest <= best.fun + 1e-9 * (1 + best.fun)
        boxed += bool(((found == 0) | (found == 1)).logical_and(found != x).any())
    assert boxed >= 10, "the box often matters"


def test_l1_projection_by_hand() -> None:
    """From (0.5, 0.9, 0.5): three values 0.6, 0.5 and 0.1 away, of which the second has room for 0.1."""
    x = torch.tensor([0.5, 0.9, 0.5], dtype=torch.float64).view(1, 1, 1, 3)
    far = x + torch.tensor([-0.6, 0.5, 0.1], dtype=torch.float64)
    found = project_l1(far, x, 0.4).flatten()
    assert found.tolist() == pytest.approx([0.2, 1.0, 0.5])
    radii = torch.tensor([0.4, 0.06], dtype=torch.float64)  # each row in a ball of its own
    both = project_l1(far.expand(2, -1, -1, -1), x.expand(2, -1, -1, -1), radii)
    assert both[0].flatten().tolist() == pytest.approx([0.2, 1.0, 0.5])
    assert both[1].flatten().tolist() == pytest.approx([0.44, 0.9, 0.5])


def test_steepest() -> None:
    g = noise(0, 3, 3, 4, 4)
    g[1] = 0
    sign = Threat("linf", 0.1).steepest(g)
    assert torch.equal(sign, g.sign())
    unit = Threat("l2", 0.1).steepest(g)
    assert norms(unit, "l2").flatten().tolist() == pytest.approx([1, 0, 1])
    torch.testing.assert_close(unit[0], g[0] / (g[0] ** 2).sum().sqrt())


def test_l1_steps_are_sparse() -> None:
    """The largest 1 % of the values, rounded up; or as many as are asked for, with those that tie."""
    g = noise(0, 3, 3, 10, 10)
    g[1] = 0
    step = Threat("l1", 12).steepest(g)
    assert (step != 0).flatten(1).sum(1).tolist() == [3, 0, 3]
    assert norms(step, "l1").flatten().tolist() == pytest.approx([1, 0, 1])
    largest = g[0].abs().flatten().argsort(descending=True)[:3]
    assert torch.equal(step[0].flatten()[largest], g[0].flatten()[largest].sign() / 3)
    few = torch.tensor([[3.0, -2.0, 2.0, 0.5], [1.0, 0.0, 0.0, 0.0]]).view(2, 1, 1, 4)
    found = sparse_signs(few, torch.tensor([2, 3])).flatten(1)
    torch.testing.assert_close(found, torch.tensor([[1 / 3, -1 / 3, 1 / 3, 0.0], [1.0, 0.0, 0.0, 0.0]]))


def test_neighbourhoods_have_their_radius() -> None:
    like = torch.zeros(32, 3, 8, 8, dtype=torch.float64)
    draws = Draws(0, 32).at(0)
    cube = Threat("linf", 0.1).noise(like, 1.5, draws, "n")
    assert 0.149 < cube.abs().max() <= 0.15
    assert cube.std().item() == pytest.approx(0.15 / math.sqrt(3), rel=0.03)
    ball = Threat("l2", 0.5).noise(like, 1.5, draws, "n")
    assert norms(ball, "l2").flatten().tolist() == pytest.approx([0.75] * 32)
    normal = Threat("l2", 0.5).gaussian(like, 2.0, draws, "g")
    assert norms(normal, "l2").mean().item() == pytest.approx(1.0, rel=0.05)
    ball = Threat("l1", 0.5).noise(like, 1.5, draws, "n")
    assert norms(ball, "l1").flatten().tolist() == pytest.approx([0.75] * 32)
    normal = Threat("l1", 0.5).gaussian(like, 2.0, draws, "g")
    assert norms(normal, "l1").mean().item() == pytest.approx(math.sqrt(2 / math.pi), rel=0.05)


# --- bytes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", ["1/255", "8/255", "16/255", "51/255", 0.03, 0.2, 16 / 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linf_bytes_are_the_nearest_inside(eps: float | str, dtype: torch.dtype) -> None:
    """Against all 256 values of every pixel."""
    threat = Threat("linf", eps)
    clean = clean_bytes(0, 4, 3, 4, 4)
    x = clean.to(dtype) / 255
    far = x + noise(1, 4, 3, 4, 4, scale=2 * threat.radius).to(dtype)
    far[1] = x[1] + threat.radius  # saturated, both ways
    far[2] = x[2] - threat.radius
    x_adv = threat.project(far, x)
    stored = threat.quantise(x_adv, x)
    assert stored.dtype == torch.uint8
    values = torch.arange(256, dtype=torch.float64)
    flat = zip(
        clean.flatten().tolist(), (x_adv.double() * 255).flatten().tolist(),
        stored.flatten().tolist(), strict=True,
    )  # fmt: skip
    for c, wanted, found in flat:
        allowed = values[(values - c).abs() / 255 <= threat.radius + 1e-9]
        best = (allowed - wanted).abs().min().item()
        assert abs(found - c) / 255 <= threat.radius + 1e-9
        assert abs(found - wanted) == pytest.approx(best, abs=1e-4)
    assert threat.excess(stored, clean).max() <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_bytes_use_the_budget_and_never_more(dtype: torch.dtype) -> None:
    """x ± k/255 is exactly k bytes away, for every k: no rounding loses or gains one."""
    clean = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    x = clean.to(dtype) / 255
    for k in range(1, 256):
        threat = Threat("linf", f"{k}/255")
        for sign in (1, -1):
            stored = threat.quantise(threat.project(x + sign * threat.radius, x), x)
            wanted = (clean.int() + sign * k).clamp(0, 255)
            assert torch.equal(stored.int(), wanted)
            assert threat.excess(stored, clean).max() <= 1e-9


def test_a_budget_a_rounding_error_short_is_not_a_byte_short() -> None:
    clean = torch.full((1, 1, 2, 2), 100, dtype=torch.uint8)
    x = clean.double() / 255
    for k in (8, 16, 31):
        threat = Threat("linf", math.nextafter(k / 255, 0))
        stored = threat.quantise(threat.project(x + 1, x), x)
        assert (stored == 100 + k).all()
        assert threat.excess(stored, clean).max() <= 1e-9


@pytest.mark.parametrize("eps", [0.3, 1.0, "128/255", 3.0])
def test_l2_bytes_stay_inside(eps: float | str) -> None:
    threat = Threat("l2", eps)
    clean = clean_bytes(0, 8, 3, 6, 6)
    x = clean.double() / 255
    x_adv = threat.project(x + noise(2, 8, 3, 6, 6), x)
    stored = threat.quantise(x_adv, x)
    excess = threat.excess(stored, clean)
    assert excess.max() <= 1e-9
    assert excess.min() > -0.05 * threat.radius, "the perturbation is shrunk just enough"
    plain = (x_adv * 255).round().to(torch.uint8)
    outside = threat.excess(plain, clean) > 1e-9
    assert outside.any(), "rounding alone would have left the ball"
    assert torch.equal(stored[~outside], plain[~outside])
    # no byte is moved away from where rounding would put it but towards the clean one
    step = (stored.int() - clean.int()).abs() <= (plain.int() - clean.int()).abs()
    assert step.all()
    assert ((stored.int() - plain.int()).abs() <= 2).all()


def test_l2_bytes_against_every_image_of_two_pixels() -> None:
    """At most a byte and a half from the wanted point farther than the best allowed image."""
    threat = Threat("l2", 12.3 / 255)
    clean = torch.tensor([[[[100, 3]]]], dtype=torch.uint8)
    x = clean.double() / 255
    reach = range(-13, 14)
    allowed = torch.tensor(
        [(a, b) for a in reach for b in reach if a * a + b * b <= 12.3**2 and 3 + b >= 0],
        dtype=torch.float64,
    )
    for angle in torch.linspace(0, 2 * math.pi, 50, dtype=torch.float64):
        far = torch.stack([angle.cos(), angle.sin()]).view(1, 1, 1, 2)
        x_adv = threat.project(x + far, x)
        wanted = ((x_adv - x) * 255).flatten()
        found = (threat.quantise(x_adv, x).double() - clean.double()).flatten()
        best = (allowed - wanted).norm(dim=1).min()
        assert (allowed == found).all(1).any()
        assert (found - wanted).norm() <= best + 1.5


@pytest.mark.parametrize("eps", [0.05, 1.0, "128/255", 12.0, 11.9999999999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_l1_bytes_stay_inside_and_use_the_budget(eps: float | str, dtype: torch.dtype) -> None:
    threat = Threat("l1", eps)
    clean = clean_bytes(0, 8, 3, 12, 12)
    x = clean.to(dtype) / 255
    left = 0
    for scale in (0.02, 1.0):
        x_adv = threat.project(x + noise(2, 8, 3, 12, 12, scale=scale).to(dtype), x)
        stored = threat.quantise(x_adv, x)
        excess = threat.excess(stored, clean)
        assert excess.max() <= 1e-9
        rounded = (x_adv.double() * 255).round().to(torch.uint8)
        outside = threat.excess(rounded, clean) > 1e-9
        left += int(outside.sum())
        assert (excess[outside] > -1 / 255 - 1e-9).all(), "what rounding gained is given back, and no more"
        assert torch.equal(stored[~outside], rounded[~outside])
        assert ((stored.int() - x_adv * 255).abs() <= 1 + 1e-4).all()
    assert left >= 1, "rounding alone would have left the ball"


def test_l1_bytes_are_the_nearest_inside() -> None:
    """Against every image of three values."""
    threat = Threat("l1", 7.3 / 255)
    clean = torch.tensor([[[[100, 3, 252]]]], dtype=torch.uint8)
    x = clean.double() / 255
    reach = torch.cartesian_prod(*[torch.arange(-8, 9, dtype=torch.float64)] * 3)
    there = reach + clean.double().flatten()
    allowed = reach[(reach.abs().sum(1) <= 7) & (there >= 0).all(1) & (there <= 255).all(1)]
    for seed in range(60):
        x_adv = threat.project(x + noise(seed, 1, 1, 1, 3, scale=0.03), x)
        wanted = ((x_adv - x) * 255).flatten()
        found = (threat.quantise(x_adv, x).double() - clean.double()).flatten()
        assert (allowed == found).all(1).any()
        best = (allowed - wanted).norm(dim=1).min()
        assert float((found - wanted).norm()) == pytest.approx(float(best), abs=1e-9)


def test_excess_tells_on_a_lie() -> None:
    clean = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    honest, liar = clean.clone(), clean.clone()
    honest[0] += 8
    liar[0, 0, 0, 0] -= 9
    threat = Threat("linf", "8/255")
    assert threat.excess(honest, clean).tolist() == pytest.approx([0, -8 / 255])
    assert threat.excess(honest, clean).max() <= 1e-9
    assert threat.excess(liar, clean).tolist() == pytest.approx([1 / 255, -8 / 255])
    two = Threat("l2", 8 * math.sqrt(48) / 255)
    assert two.excess(honest, clean)[0].item() == pytest.approx(0, abs=1e-9)
    honest[0, 0, 0, 0] += 1
    assert two.excess(honest, clean)[0].item() > 1e-4
    wraps = torch.tensor([[[[0]]], [[[255]]]], dtype=torch.uint8)
    assert threat.excess(wraps, wraps.flip(0)).min() > 0.9, "bytes do not wrap around"


def test_norms() -> None:
    delta = noise(0, 3, 2, 4, 4)
    for n in range(3):
        flat = delta[n].flatten().tolist()
        assert norms(delta, "linf")[n].item() == max(abs(v) for v in flat)
        assert norms(delta, "l2")[n].item() == pytest.approx(math.sqrt(sum(v * v for v in flat)))
        assert norms(delta, "l1")[n].item() == pytest.approx(sum(abs(v) for v in flat))
    assert norms(delta, "l2").shape == (3, 1, 1, 1)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("side", [1, 2, 4])
def test_start_is_uniform_in_the_ball(side: int, norm: str) -> None:
    """(|d| / eps)^D is uniform in [0, 1], D the number of pixels, and no direction is preferred."""
    n, eps = 3000, 0.05
    x = torch.full((n, 3, side, side), 0.5, dtype=torch.float64)
    threat = Threat(norm, eps)
    delta = (threat.random_start(x, Draws(0, n)) - x).flatten(1)
    depth = (norms(delta, norm).flatten() / eps) ** delta.shape[1]
    assert depth.max() <= 1 + 1e-9
    assert depth.mean().item() == pytest.approx(1 / 2, abs=0.03)
    assert depth.square().mean().item() == pytest.approx(1 / 3, abs=0.03)
    assert (delta.mean(0).abs() < 0.1 * eps / math.sqrt(delta.shape[1])).all()
