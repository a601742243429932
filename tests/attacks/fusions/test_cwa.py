"""CWA and its halves against the paper's algorithm."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advens.attacks import create_attack
from advens.attacks.fusions.cwa import rescaled
from advens.errors import InputError
from advens.threat import Threat


def inner_step(at: Any, beta: float) -> float:
    """beta at this size and budget: the same step in eps a pixel as at 3 x 224 x 224 and 16/255."""
    in_eps = beta / math.sqrt(3 * 224 * 224) / (16 / 255)
    if at.norm == "l2":
        return in_eps * float(at.eps)
    return in_eps * float(at.eps) * math.sqrt(at.x[0].numel())


def transcribed(
    at: Any,
    reverse: bool = True,
    walk: bool = True,
    beta: float = 50.0,
    mu: float = 1.0,
    r: float = 1 / 15,
    unscaled: bool = False,
    forget: bool = False,
) -> Any:
    """MI-CWA, Alg. 1; without ``walk`` MI-SAM as Alg. 1 has it, without ``reverse`` MI-CSE."""
    size = beta if unscaled else inner_step(at, beta)

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        inner = x.clone()
        if reverse:
            back = r * at.eps if walk else 5 * r * at.alpha  # alpha is eps / 5 in the paper
            inner = at.project(inner - back * at.unit(at.fused(i, inner)), i)
        if not walk:
            return at.project(inner + at.alpha * at.unit(at.fused(i, inner)), i) - x
        momentum = torch.zeros_like(x) if forget else state.get("n", torch.zeros_like(x))
        for k in range(at.k):
            g = at.own(i, k, inner)
            momentum = mu * momentum + g / math.sqrt(float((g**2).sum()))
            inner = at.project(inner + size * momentum, i)
        state["n"] = momentum
        return inner - x

    return at.alone(direction)


def reversed_gradient(at: Any, r: float = 1 / 2, accumulate: bool = False) -> Any:
    """MI-SAM as coded: the fused gradient after a step of r alpha against it, which is not projected."""

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        here = at.fused(i, x)
        there: Tensor = at.fused(i, x - r * at.alpha * at.unit(here))
        return there + here if accumulate else there

    return at.alone(direction)


HALVES: dict[str, dict[str, bool]] = {"cwa": {}, "cse": {"reverse": False}}
DISPLACED: dict[str, Any] = {"r": 1 / 3, "displacement": True}


@pytest.mark.parametrize("name", HALVES)
def test_formula(at: Any, same: Any, name: str) -> None:
    same(at.run(name), transcribed(at, **HALVES[name]))


def test_sam(at: Any, same: Any) -> None:
    """Pixels at the edge of the ball count as much as others: the direction is a gradient."""
    same(at.run("sam"), reversed_gradient(at))
    same(at.run("sam", r=0.2), reversed_gradient(at, 0.2))
    same(at.run("sam", accumulate=True), reversed_gradient(at, accumulate=True))


def test_sam_by_displacement(at: Any, same: Any) -> None:
    same(at.run("sam", **DISPLACED), transcribed(at, walk=False))
    half = {"r": 0.5, "displacement": True}
    same(at.run("sam", **half), transcribed(at, walk=False, r=0.1))


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_small_inner_steps(setting: Any, same: Any, name: str, norm: str) -> None:
    """A tenth of the paper's beta, and another r: the walk is not held by the ball."""
    at = setting(k=3, norm=norm)
    options: dict[str, Any] = {"beta": 5.0, "fusion.mu": 0.7} | ({"r": 0.1} if name == "cwa" else {})
    wanted = transcribed(at, beta=5.0, mu=0.7, r=0.1, **HALVES[name])
    same(at.run(name, **options), wanted)


@pytest.mark.parametrize("name", [*HALVES, "mi-cwa"])
def test_recipe_has_the_papers_constants(setting: Any, same: Any, name: str) -> None:
    """eps 16/255, 10 steps of eps / 5, r = eps / 15 (SAM's eps / 10), beta 50, mu 1, clean start."""
    at = setting(k=4, n=1, eps=16 / 255, alpha=3.2 / 255, steps=10)
    same(at.run(create_attack(name)), transcribed(at, **HALVES[name.removeprefix("mi-")]))
    same(at.run(create_attack("sam")), reversed_gradient(at))


@pytest.mark.parametrize("name", HALVES)
@pytest.mark.parametrize("targeted", [False, True])
def test_one_surrogate(setting: Any, same: Any, name: str, targeted: bool) -> None:
    at = setting(k=1, targeted=targeted)
    same(at.run(name), transcribed(at, **HALVES[name]))
    same(at.run("sam"), reversed_gradient(at))


# beta


@pytest.mark.parametrize("name", ["cwa", "cse"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_published_beta(setting: Any, same: Any, name: str, norm: str) -> None:
    at = setting(k=3, norm=norm)
    found = at.run(name, published=True)
    same(found, transcribed(at, beta=250.0, unscaled=True, **HALVES[name]))
    assert not torch.allclose(found.directions, at.run(name).directions, atol=1e-3)


class Conv(nn.Module):
    """A net for images of any size."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.net = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), nn.GELU(), nn.Conv2d(6, 8, 3, stride=2, padding=1),
                nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
            ).double()  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.net(x)
        return z


def saturation(at: Any, found: Any) -> list[float]:
    """Fraction of pixels where the inner walk arrives at the boundary, at each outer step."""
    arrived = found.points + found.directions
    low, high = (at.x - at.eps).clamp_min(0), (at.x + at.eps).clamp_max(1)
    at_edge = ((arrived - low).abs() < 1e-12) | ((arrived - high).abs() < 1e-12)
    return at_edge.double().mean((1, 2, 3, 4)).tolist()


@pytest.mark.parametrize("name", ["cwa", "cse"])
def test_published_beta_saturates(setting: Any, name: str) -> None:
    """3 x 32 x 32, eps 8/255: from outer step 2 the walk ends in the ball's corners, by all accounts."""
    at = setting(k=4, n=2, side=32, eps=8 / 255, alpha=1.6 / 255, steps=4)
    at = at.but(models=[Conv(seed) for seed in range(4)])
    published = saturation(at, at.run(name, published=True))
    assert min(published[1:]) > 0.85, published
    small = saturation(at, at.run(name, beta=0.1))
    assert max(small) < 0.2, small


@pytest.mark.parametrize("beta", [1.0, 50.0])
def test_beta_means_the_same_at_every_size(beta: float) -> None:
    """In eps a pixel, for a gradient equally large everywhere; in eps in length in l_2."""
    in_eps = beta / math.sqrt(3 * 224 * 224) / (16 / 255)
    for side in (8, 16, 32, 224):
        x = torch.zeros(1, 3, side, side, dtype=torch.float64)
        for eps in (16 / 255, 4 / 255):
            step = rescaled(beta, x, Threat("linf", eps))
            assert step / math.sqrt(x[0].numel()) / eps == pytest.approx(in_eps, rel=1e-12)
            length = rescaled(beta, x, Threat("l2", 100 * eps))
            assert length / (100 * eps) == pytest.approx(in_eps, rel=1e-12)
    at_home = torch.zeros(1, 3, 224, 224)
    assert rescaled(beta, at_home, Threat("linf", 16 / 255)) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("eps", [16 / 255, 4 / 255])
def test_a_walk_is_as_long_at_every_size(setting: Any, norm: str, eps: float) -> None:
    """Two linear nets with gradients equally large everywhere, inner steps of an eighth of eps."""

    class Signs(nn.Module):
        def __init__(self, side: int) -> None:
            super().__init__()
            row = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(3 * side * side // 2)
            self.weight = nn.Parameter(torch.stack([row, -row, *[0 * row] * 3]) / (3 * side * side))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1) @ self.weight.T

    walked = []
    for side in (8, 16):
        at = setting(k=1, n=2, side=side, norm=norm, eps=eps, alpha=eps / 4, steps=1)
        at = at.but(models=[Signs(side), Signs(side)], x=torch.full_like(at.x, 0.5))
        at.y = torch.zeros(2, dtype=torch.long)
        beta = 0.125 * math.sqrt(3 * 224 * 224) * (16 / 255)
        found = at.run("cse", beta=beta, **{"fusion.mu": 0.0}).directions[0]
        size = found.abs() if norm == "linf" else found.flatten(1).norm(dim=1)
        walked.append(size / eps)
        torch.testing.assert_close(walked[-1], torch.full_like(walked[-1], 0.25), rtol=1e-9, atol=0)


# the inner momentum and the order


@pytest.mark.parametrize("name", ["cwa", "cse"])
def test_inner_momentum_lasts_a_run(setting: Any, same: Any, name: str) -> None:
    at = setting(k=2)
    found, forgetful = at.run(name), transcribed(at, forget=True, **HALVES[name])
    torch.testing.assert_close(found.directions[0], forgetful.directions[0], rtol=0, atol=1e-9)
    assert not torch.allclose(found.directions[1], forgetful.directions[1], atol=1e-3)
    assert not torch.allclose(found.x_adv, forgetful.x_adv, atol=1e-3)


@pytest.mark.parametrize("name", ["cwa", "cse"])
def test_inner_momentum_is_not_carried_to_another_run(setting: Any, name: str) -> None:
    at, other = setting(k=2), setting(k=2, seed=4)
    attack = at.attack(name)
    first = attack(at.models, at.x, at.y)
    attack(other.models, other.x, other.y)
    assert torch.equal(attack(at.models, at.x, at.y), first)
    one_by_one = attack.run(at.models, at.x, at.y, micro_batch=1).x_adv
    torch.testing.assert_close(one_by_one, first, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "matters"), [("cwa", True), ("cse", True), ("sam", False)])
def test_order_of_surrogates(setting: Any, name: str, matters: bool) -> None:
    at = setting(k=3)
    turned = at.but(models=at.models[::-1]).run(name)
    found = at.run(name)
    same = torch.allclose(found.directions, turned.directions, rtol=0, atol=1e-9)
    assert same != matters
    assert torch.allclose(found.x_adv, turned.x_adv, rtol=0, atol=1e-9) != matters


def test_direction_is_measured_from_before_the_reverse_step(setting: Any) -> None:
    """Without an inner step it points backwards, by r."""
    at = setting(k=2, n=1, steps=1)
    found = at.run("cwa", beta=0.0).directions[0, 0]
    back = at.project(at.x[0] - at.eps / 15 * at.unit(at.fused(0, at.x[0])), 0)
    torch.testing.assert_close(found, back - at.x[0], rtol=0, atol=1e-9)
    assert found.abs().max() == pytest.approx(at.eps / 15)


@pytest.mark.parametrize("name", [*HALVES, "sam"])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_passes(setting: Any, count: Callable[..., Any], name: str, k: int) -> None:
    """2K forward and backward a step; the walk alone K."""
    at = setting(k=k, steps=2)
    attack = at.attack(name)
    wanted = 2 * (k if name == "cse" else 2 * k)
    with count(at.models) as seen:
        found = attack.run(at.models, at.x, at.y)
    assert found.passes == attack.passes(k) == (wanted, wanted)
    assert (seen.forward, seen.backward) == (wanted * len(at.x), wanted * len(at.x))


def test_sam_goes_forward_at_any_step_size(setting: Any) -> None:
    """The paper's r beside a step of eps/40 would go backwards wherever the two gradients agree."""
    at = setting(k=2, n=2, steps=1, alpha=0.1 / 40, eps=0.1)
    for options in ({}, DISPLACED):
        moved, clean = at.run("sam", **options).directions[0], at.x
        rise = [at.fused(i, clean[i]).flatten() @ moved[i].flatten() for i in range(2)]
        assert all(r > 0 for r in rise)
    with pytest.raises(InputError, match="backwards"):
        create_attack("sam", r=1.0, displacement=True)
    with pytest.raises(InputError, match="added up"):
        create_attack("sam", accumulate=True, displacement=True)
    with pytest.raises(InputError, match="at least 0"):
        create_attack("sam", r=-0.1)
