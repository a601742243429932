"""Estimators that remember, inside fusions that ask for several surrogates and several times a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks.sharing import RepeatedForward

COPIES = 2
Make = Callable[..., Any]
VMI = {"name": "vmi", "copies": COPIES}


class Tuned:
    """VMI by its formulas for one image: every gradient that is asked for by name has a variance of its own.

    The variance of a step is that of the last point where the step asked; it serves all of the next step.
    """

    def __init__(self, at: Any, i: int) -> None:
        self.at, self.i, self.step = at, i, -1
        self.before: dict[Any, Tensor] = {}
        self.now: dict[Any, Tensor] = {}

    def begin(self, t: int) -> Tuned:
        if t != self.step:
            self.before, self.step = self.before | self.now, t
        return self

    def __call__(self, name: Any, x: Tensor) -> Tensor:
        at, i = self.at, self.i
        plain = (lambda p: at.fused(i, p)) if name == "fused" else (lambda p: at.own(i, name, p))
        g: Tensor = plain(x)
        near = [
            plain(x + at.draws(self.step).uniform(at.x, -1.5 * at.eps, 1.5 * at.eps, "vmi", c)[i])
            for c in range(COPIES)
        ]
        self.now[name] = sum(near, torch.zeros_like(x)) / COPIES - g
        return g + self.before.get(name, torch.zeros_like(x))


def tuned(at: Any, state: dict[str, Any], t: int, i: int) -> Tuned:
    made: Tuned = state.setdefault("tuned", Tuned(at, i))
    return made.begin(t)


def test_each_surrogate_has_a_variance_of_its_own(setting: Make, same: Any) -> None:
    at = setting(k=2, steps=3)

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        ask = tuned(at, state, t, i)
        gradients = [ask(k, x) for k in range(at.k)]
        return sum(g / torch.sqrt((g**2).sum()) for g in gradients)  # type: ignore[return-value]

    same(at.run("ens-grads", estimator=VMI), at.alone(direction))


def test_inner_steps_use_the_variance_of_the_step_before(setting: Make, same: Any) -> None:
    """SVRE asks each surrogate at the outer point and at inner ones: one variance corrects them all."""
    at = setting(k=2, steps=3)

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        ask = tuned(at, state, t, i)
        fused = ask("fused", x)
        outer = [ask(k, x) for k in range(at.k)]
        inner, momentum = x, torch.zeros_like(x)
        for k in at.draws(t).integers(at.k, 2 * at.k, "svre"):
            d = ask(k, inner) - outer[k] + fused
            momentum = momentum + d / d.abs().mean()
            inner = at.step(inner, i, at.alpha, momentum)
        return momentum

    same(at.run("vmi-svre", rounds=2, estimator=VMI), at.alone(direction))


def test_one_surrogate_asked_twice_a_step_is_corrected_twice_the_same(setting: Make) -> None:
    """AdaEA of one surrogate: its own gradient and the fused one are the same gradient."""
    at = setting(k=1, steps=3)
    adaea, plain = (at.run(name, estimator=VMI) for name in ("adaea", "mifgsm"))
    torch.testing.assert_close(adaea.directions, plain.directions, rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Ahead:
    """An estimator of one gradient that asks a step along what the same surrogates answered before."""

    queries = 1

    def estimate(self, gradient: Any, x: Tensor, memory: dict[str, Any], context: Any) -> Tensor:
        at = x + 0.1 * memory["g"].sign() if "g" in memory else x
        memory["g"] = gradient(at)
        return memory["g"]  # type: ignore[no-any-return]


def test_a_forward_pass_serves_its_own_point_only(
    setting: Make, same: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdaEA's gradients share a forward pass, but not where their estimates ask at different points."""
    at = setting(k=2, steps=3)
    found = at.run("adaea", estimator=Ahead())
    monkeypatch.setattr("advens.attacks.fusions.adaea.shared", RepeatedForward)
    same(found, at.run("adaea", estimator=Ahead()))
