"""What tests of input transforms share: attacks held against a transcription of what the surrogates see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.seeding import Draws
from advens.threat import Threat
from tests.attacks.fusions.conftest import SEED, Setting, agree, grad, make

View = Callable[[Tensor, int, int, int, Setting], Tensor]
"""(image (C, H, W), step, sample, copy, setting) -> what the surrogates see of it."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take ``goal`` run for one surrogate and three, one image and seven, away and targeted."""
    if "goal" in metafunc.fixturenames:
        cases = [(1, 7, False), (3, 1, False), (3, 7, True), (1, 1, True)]
        ids = [f"K{k}-N{n}-{'targeted' if targeted else 'away'}" for k, n, targeted in cases]
        metafunc.parametrize("goal", cases, ids=ids)


def held(goal: tuple[int, int, bool], name: str, views: int, view: View, **options: Any) -> None:
    """Three steps of momentum on the mean over copies of ``grad J(mean_k z_k(view))``, to 1e-9."""
    k, n, targeted = goal
    at = make(k, n, "linf", targeted, seed=k)

    def direction(t: int, i: int, x: Tensor, state: dict[str, Any]) -> Tensor:
        total = torch.zeros_like(x)
        for copy in range(views):

            def loss(leaf: Tensor, copy: int = copy) -> Tensor:
                seen = view(leaf, t, i, copy, at)
                return at.j(sum(at.logits(m, seen) for m in range(k)) / k, i)  # type: ignore[arg-type]

            total += grad(loss, x)
        return total / views

    agree(at.run(name, **options), at.alone(direction))


def context_of(x: Tensor, step: int = 0, eps: float = 16 / 255, norm: str = "linf") -> Context:
    """What a transform knows of clean images ``x`` at a step."""
    return Context(Threat(norm, eps), Draws(SEED, len(x)).at(step), x, x)
