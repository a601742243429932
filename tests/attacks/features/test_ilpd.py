"""ILPD against its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


def test_ilpd(any_goal: Any, mi: Any) -> None:
    at, gamma, sigma = any_goal, 0.3, 0.1

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        clean = at.x[i] + at.at_step(t).normal(at.x, sigma, "ilpd")[i]

        def loss(leaf: Any) -> Any:
            total = 0
            for k in range(at.k):
                f = gamma * at.features(k, leaf, 2) + (1 - gamma) * at.features(k, clean, 2).detach()
                total = total + at.rest(k, f, 2) / at.k
            return at.ce(total, i)

        return EPS / 3 * mi(at.input_gradient(loss, x), memory).sign()

    at.same(step, "ilpd", 3, gamma=gamma, sigma=sigma, step_size=EPS / 3)


def test_with_all_of_the_perturbation_it_is_momentum(any_goal: Any) -> None:
    found = any_goal.run("ilpd", gamma=1.0, steps=3, step_size=EPS / 3)
    torch.testing.assert_close(found, any_goal.run("mifgsm", steps=3), rtol=0, atol=1e-12)


def test_one_more_forward_pass_a_step(any_goal: Any) -> None:
    assert create_attack("ilpd", steps=10).passes(3) == (60, 30)
    any_goal.run("ilpd", steps=2, transforms=["si"], step_size=EPS)
    any_goal.run("ilpd", steps=2, fusion="smer", step_size=EPS)


def test_bad_numbers() -> None:
    for option in ({"gamma": 0}, {"sigma": -1}, {"layer": 0}):
        with pytest.raises(InputError):
            create_attack("ilpd", **option)
    with pytest.raises(InputError, match="'ilpd' does not go with the fusion 'namea', which taps"):
        create_attack("ilpd", fusion="namea")
