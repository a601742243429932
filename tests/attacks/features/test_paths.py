"""P2FA and DANAA against their formulas; passes."""

from __future__ import annotations

from typing import Any

import pytest

from advens.attacks import create_attack
from tests.attacks.features.test_bfa import guidance

EPS = 16 / 255


def test_p2fa(at: Any, n2: Any) -> None:
    """The quadratic as the paper writes it, at a strength where it is not linear."""
    strength = 2.0

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        if t % 2 == 0:
            for k in range(at.k):
                found = -guidance(at, n2, i, k, x, 2, 20.0, 2)
                memory[f"G{k}"] = memory.get(f"G{k}", 0) + found
                memory[f"goal{k}"] = at.features(k, x, 2).detach() + strength * n2(memory[f"G{k}"])

        def loss(leaf: Any) -> Any:
            each = [(at.features(k, leaf, 2) - memory[f"goal{k}"]).square().sum() for k in range(at.k)]
            return -sum(each)  # type: ignore[arg-type]

        return EPS / 10 * at.input_gradient(loss, x).sign()

    feature = {"copies": 2, "eta": 20.0, "inner": 2, "strength": strength}
    wanted = at.transcribed(step, 4)
    found = at.run("p2fa", steps=4, **feature)
    assert float((found - wanted).abs().max()) <= 1e-9
    assert not bool((found - at.run("p2fa", steps=4, **feature | {"strength": 1e5})).abs().max() <= 1e-9)


@pytest.mark.parametrize("lower", [False, True])
def test_danaa(at: Any, mi: Any, n2: Any, lower: bool) -> None:
    copies, length, noise = 3, 0.02, 0.2

    def guide(i: int, k: int) -> Any:
        total: Any = 0
        w = at.x[i]
        for t in range(copies):
            point = w + at.once().normal(at.x, noise, "danaa", t)[i]
            total = total + at.importance(i, k, point, 2, "probability")
            along = at.input_gradient(
                lambda leaf: at.label_score(at.logits(k, leaf), i, "probability"), point
            )
            w = w + (-length if lower else length) * along.sign()
        return n2(total)

    def step(t: int, i: int, x: Any, memory: dict[str, Any]) -> Any:
        if t == 0:
            memory["A"] = [guide(i, k) for k in range(at.k)]
        return EPS / 3 * mi(at.guided(memory["A"], x, 2), memory).sign()

    at.same(step, "danaa", 3, copies=copies, length=length, noise=noise, lower=lower)


def test_passes() -> None:
    assert create_attack("p2fa").passes(1) == (410, 700)
    assert create_attack("p2fa", steps=11, warm_up=3).passes(2) == (2 * (14 + 3 * 31), 2 * (14 + 3 * 60))
    assert create_attack("danaa").passes(2) == (80, 80)
