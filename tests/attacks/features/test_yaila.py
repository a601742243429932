"""YAILA against its formulas, with the first attack written out; the regression's limit; passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from advens.attacks import create_attack
from advens.errors import InputError
from tests.attacks.features.test_ila import MI, first
from tests.attacks.features.test_tap import objective

EPS = 16 / 255


def rows(at: Any, n2: Any, i: int, k: int, walk: list[Any]) -> tuple[Any, Any]:
    """H (T, D) and r (T,) of one image and surrogate."""
    clean = at.features(k, at.x[i], 3).detach()
    h = torch.stack([n2(at.features(k, x, 3).detach() - clean).flatten() for x in walk])
    return h, torch.stack([at.ce(at.logits(k, x), i).detach() for x in walk])


def weights(h: Any, r: Any, ridge: float) -> Any:
    """The paper's regression, solved in the space of features."""
    eye = torch.eye(h.shape[1], dtype=h.dtype)
    return torch.linalg.inv(h.T @ h + ridge * eye) @ h.T @ r


@pytest.mark.parametrize("kind", ["mi", "tap"])
def test_yaila(at: Any, mi: Any, n2: Any, kind: str) -> None:
    def walk(i: int) -> list[Any]:
        if kind == "mi":
            return first(at, mi, i, 3)
        x, found = at.x[i], []
        for _ in range(3):
            g = at.input_gradient(lambda leaf: objective(at, i, leaf, 0.005, 0.01), x)
            x = at.project(x + EPS / 2 * g.sign(), i)
            found.append(x)
        return found

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        if t == 0:
            memory["w"] = [n2(weights(*rows(at, n2, i, k, walk(i)), 0.3)) for k in range(at.k)]

        def loss(leaf: Any) -> Any:
            return sum((at.features(k, leaf, 3).flatten() * memory["w"][k]).sum() for k in range(at.k))

        return EPS / 3 * at.input_gradient(loss, x).sign()

    half = {"name": "step-size", "alpha": "eps/2"}
    tap = {"name": "composed", "fusion": "ens-loss", "feature": "tap", "steps": 3, "step_size": half}
    chosen = MI if kind == "mi" else tap
    at.same(step, "yaila", 3, first=chosen, ridge=0.3, step_size=EPS / 3)


def test_a_large_ridge_leaves_the_sum_of_displacements_by_loss(at: Any, mi: Any, n2: Any) -> None:
    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        def loss(leaf: Any) -> Any:
            total = 0
            for k in range(at.k):
                h, r = rows(at, n2, i, k, first(at, mi, i, 3))
                total = total + (at.features(k, leaf, 3).flatten() * n2(h.T @ r)).sum()
            return total

        return EPS / 2 * at.input_gradient(loss, x).sign()

    at.same(step, "yaila", 2, first=MI, ridge=1e12, step_size=EPS / 2)


def test_passes_and_refusals(any_goal: Any) -> None:
    assert create_attack("yaila").passes(1) == (11 + 11 + 50, 10 + 50)
    assert create_attack("yaila", steps=2, first=MI).passes(3) == (9 + 12 + 6, 9 + 6)
    with pytest.raises(InputError):
        create_attack("yaila", ridge=0)
    if any_goal.target is not None:
        with pytest.raises(InputError, match="'yaila' is defined without targets only"):
            any_goal.run("yaila")
