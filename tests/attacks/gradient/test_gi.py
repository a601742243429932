"""The warm start (GI): the momentum of forgotten steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


def test_gi(at: Any, mi: Any) -> None:
    """P steps of s alpha from x inside the ball; then T from x, with the momentum they left."""
    alpha = EPS / 3

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        if t == 0:
            scratch = x
            for _ in range(4):
                scratch = at.project(scratch + 6 * alpha * mi(at.g(i, scratch), memory).sign(), i)
        return alpha * mi(at.g(i, x), memory).sign()

    at.same(step, "gifgsm", 3, warm_up=4, warm_up_scale=6.0)


def test_passes_are_those_of_both_phases() -> None:
    assert create_attack("gifgsm").passes(3) == (45, 45)
    assert create_attack("vmi-gifgsm", warm_up=2, steps=4, copies=3).passes(1) == (24, 24)


def test_an_update_without_memory_starts_anew(at: Any) -> None:
    torch.testing.assert_close(at.run("ifgsm", warm_up=3), at.run("ifgsm"), rtol=0, atol=0)


def test_what_estimators_and_fusions_remember_is_forgotten(at: Any) -> None:
    """With nothing kept by the update, VMI's variance and CSE's inner momentum start anew as well."""
    for name in ("vmi-ifgsm", "cse"):
        found = at.run(name, update="sign", warm_up=3, steps=3)
        torch.testing.assert_close(found, at.run(name, update="sign", steps=3), rtol=0, atol=0)


def test_a_random_start_is_kept(at: Any) -> None:
    found = at.run("pgd", warm_up=3, steps=3)
    torch.testing.assert_close(found, at.run("pgd", steps=3), rtol=0, atol=0)


def test_the_description_names_a_warm_start_only_where_there_is_one() -> None:
    assert "warm_up" not in create_attack("mifgsm").spec
    assert create_attack("gifgsm").spec["warm_up"] == 5
    assert create_attack("mifgsm", warm_up=5) == create_attack("gifgsm")
    assert create_attack("mifgsm", warm_up_scale=2.0).spec["warm_up_scale"] == 2.0


@pytest.mark.parametrize(("option", "value"), [("warm_up", -1), ("warm_up_scale", 0.0), ("warm_up", 1.5)])
def test_bad_values(option: str, value: float) -> None:
    with pytest.raises(InputError, match=option):
        create_attack("mifgsm", **{option: value})
