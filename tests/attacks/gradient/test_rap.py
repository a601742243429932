"""RAP against its formulas, its late start and its passes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


@pytest.mark.parametrize("late", [0, 2])
def test_rap(at: Any, mi: Any, late: int) -> None:
    alpha, inner, alpha_n, eps_n = EPS / 3, 3, 0.4 * EPS, 1.2 * EPS

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        if t < late:
            return alpha * mi(at.g(i, x), memory).sign()
        n = at.uniform(t, i, eps_n, "rap")
        n = torch.clamp(n, -x, 1 - x)
        for _ in range(inner):
            n = torch.clamp(n - alpha_n * at.g(i, x + n).sign(), -eps_n, eps_n)
            n = torch.clamp(n, -x, 1 - x)
        return alpha * mi(at.g(i, x + n), memory).sign()

    at.same(
        step, "rap", 4, step_size=alpha,
        estimator={"name": "rap", "radius": 1.2, "step": 0.4, "inner": inner, "late": late},
    )  # fmt: skip


def test_a_start_that_never_comes_is_mi(at: Any) -> None:
    same = {"steps": 5, "step_size": "eps/3"}
    assert torch.equal(at.run("rap", late=5, **same), at.run("mifgsm", **same))
    assert not torch.equal(at.run("rap", late=4, **same), at.run("mifgsm", **same))


@pytest.mark.parametrize("fusion", ["ens-logits", "adaea", "smer", "svre"])
def test_passes_vary_by_step(at: Any, fusion: str) -> None:
    """Also where a fusion shares a forward pass in the steps of one gradient."""
    rap = {"name": "rap", "late": 2, "inner": 3}
    attack = create_attack(fusion, estimator=rap, steps=3, step_size="eps/3")
    k = len(at.models)
    early = create_attack(fusion, estimator="plain", steps=2, step_size="eps/3").passes(k)
    late = create_attack(fusion, estimator={"name": "pgn", "copies": 2}, steps=1, step_size="eps/3").passes(k)
    assert attack.passes(k) == tuple(a + b for a, b in zip(early, late, strict=True))
    assert attack.run(at.models, at.x, at.y).passes == attack.passes(k)
    assert create_attack("rap").passes(1) == (100 + 300 * 9,) * 2
    warm = create_attack("rap", warm_up=5, late=0, steps=2)
    assert warm.passes(1) == (5 + 18,) * 2


def test_bad_counts() -> None:
    for option in ("inner", "late"):
        with pytest.raises(InputError, match="at least 0"):
            create_attack("rap", **{option: -1})
