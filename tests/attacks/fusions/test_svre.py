"""SVRE against its paper: the corrected gradient, the inner momentum, the outer step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.fusions import svre

ROUNDS = 2


def transcribed(at: Any, rounds: int = ROUNDS, mu: float = 1.0) -> Any:
    """As published, the gradient at the outer point taken anew in every inner step."""

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        draws = at.draws(t).integers(at.k, rounds * at.k, "svre")
        g_ens = at.fused(i, x)
        inner, momentum = x.clone(), torch.zeros_like(x)
        for m in range(rounds * at.k):
            k = draws[m]
            d = at.own(i, k, inner) - (at.own(i, k, x) - g_ens)
            momentum = mu * momentum + d / d.abs().mean()
            inner = at.step(inner, i, at.alpha, momentum)
        return momentum

    return at.alone(direction)


def test_formula(at: Any, same: Any) -> None:
    same(at.run("svre", rounds=ROUNDS), transcribed(at))


@pytest.mark.parametrize("k", [1, 4])
def test_recipe_has_the_papers_constants(setting: Callable[..., Any], same: Any, k: int) -> None:
    """eps 16/255, 10 steps, alpha = beta = eps / 10, M = 4 K, mu = 1, clean start."""
    at = setting(k=k, n=1, eps=16 / 255, alpha=1.6 / 255, steps=10)
    same(at.run(create_attack("svre")), transcribed(at, rounds=4))


def test_inner_momentums_decay(setting: Callable[..., Any], same: Any) -> None:
    at = setting(k=3)
    found = at.run("svre", rounds=ROUNDS, **{"fusion.mu": 0.5})
    same(found, transcribed(at, mu=0.5))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_identical_surrogates_are_the_same_loop_on_one(
    setting: Callable[..., Any], same: Any, norm: str
) -> None:
    """The control variate cancels: 3 x 2 inner steps on three copies are 6 on one."""
    at = setting(k=1, norm=norm)
    model = at.models[0]
    copies = at.but(models=[model, model, model]).run("svre", rounds=2)
    same(copies, at.run("svre", rounds=6))

    def plain(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        inner, momentum = x, torch.zeros_like(x)
        for _ in range(6):
            g = at.own(i, 0, inner)
            momentum = momentum + g / g.abs().mean()
            inner = at.step(inner, i, at.alpha, momentum)
        return momentum

    same(copies, at.alone(plain))


@pytest.fixture
def corrected(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Corrected gradients, in the order in which the inner momentum takes them."""
    seen: list[Tensor] = []
    original = svre.accumulate

    def spy(g: Tensor, memory: dict[str, Tensor], mu: float) -> Tensor:
        seen.append(g.clone())
        return original(g, memory, mu)

    monkeypatch.setattr(svre, "accumulate", spy)
    return seen


@pytest.mark.parametrize("k", [2, 3, 5])
def test_corrected_gradient_with_loss_control_is_unbiased(
    setting: Callable[..., Any], k: int
) -> None:
    """``mean_k grad_k(x~) - grad_k(x') + g``: with g of the mean loss, the mean loss's gradient at x~.

    At x' that is g itself. With g of the mean logits, as published, it is off by the difference.
    """
    at = setting(k=k)
    oracle = at.oracle(at.attack("svre"))
    x, inner = at.x, oracle.context.step(at.x, at.alpha, oracle.gradient(at.x, [0]))
    for where in (x, inner):
        for over in ("loss", "logits"):
            g = oracle.gradient(x, over=over)
            each = [oracle.gradient(where, [j]) - oracle.gradient(x, [j]) + g for j in range(k)]
            mean = sum(each) / k
            plain = oracle.gradient(where, over="loss")
            off = g - oracle.gradient(x, over="loss")
            torch.testing.assert_close(mean, plain + off, rtol=0, atol=1e-12)
            assert (off.abs().max() < 1e-12) == (over == "loss")


@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [{"name": "di", "p": 1.0, "rate": 1.5}],
        [{"name": "ssa", "copies": 2}, {"name": "bsr", "copies": 2}],
    ],
    ids=["plain", "di", "ssa-bsr"],
)
def test_control_variate_sees_the_same_draw(
    setting: Callable[..., Any], corrected: list[Tensor], transforms: list[Any]
) -> None:
    """The first inner step stands at the outer point: exactly g is left, at every outer step."""
    at = setting(k=3)
    attack = at.attack("svre", transforms=transforms, rounds=ROUNDS)
    views = []
    for step in range(3):
        oracle = at.oracle(attack, step)
        views.append(oracle.view(at.x))
        g = oracle.gradient(at.x)
        corrected.clear()
        attack.fusion.direction(oracle, at.x)
        assert len(corrected) == 3 * ROUNDS
        torch.testing.assert_close(corrected[0], g, rtol=0, atol=1e-15)
        assert not torch.allclose(corrected[1], g), "the inner loop stood still"
    assert torch.equal(views[0], at.x) == (not transforms)
    assert torch.equal(views[0], views[1]) == (not transforms), "another draw each step"


def test_inner_momentum_starts_anew(setting: Callable[..., Any]) -> None:
    """Asked twice at one point and step, the fusion says the same."""
    at = setting(k=3)
    attack = at.attack("svre")
    oracle = at.oracle(attack)
    first = attack.fusion.direction(oracle, at.x).clone()
    assert torch.equal(attack.fusion.direction(oracle, at.x), first)
    oracle.begin(1, at.alpha)
    assert not torch.equal(attack.fusion.direction(oracle, at.x), first), "other surrogates drawn"


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("rounds", [1, 4])
def test_passes(setting: Callable[..., Any], count: Any, k: int, rounds: int) -> None:
    at = setting(k=k, steps=2)
    attack = at.attack("svre", rounds=rounds)
    wanted = 2 * (2 + rounds) * k
    assert attack.passes(k) == (wanted, wanted)
    with count(at.models) as seen:
        found = attack.run(at.models, at.x, at.y)
    assert found.passes == (wanted, wanted)
    assert (seen.forward, seen.backward) == (wanted * len(at.x), wanted * len(at.x))
