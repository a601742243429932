"""EMI against its formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.errors import InputError

EPS = 16 / 255


@pytest.mark.parametrize(("copies", "eta"), [(5, 7.0), (2, 3.0)])
def test_emi(at: Any, u: Any, mi: Any, copies: int, eta: float) -> None:
    alpha = EPS / 3

    def step(t: int, i: int, x: Tensor, memory: dict[str, Any]) -> Tensor:
        q = memory.get("q", torch.zeros_like(x))
        places = torch.linspace(-eta, eta, copies, dtype=x.dtype)
        g = torch.stack([at.g(i, x + c * alpha * q) for c in places]).mean(0)
        memory["q"] = u(g)
        return alpha * mi(g, memory).sign()

    at.same(step, "emifgsm", 3, copies=copies, eta=eta)


def test_the_first_step_is_mis(at: Any) -> None:
    torch.testing.assert_close(at.run("emifgsm", steps=1), at.run("mifgsm", steps=1), rtol=0, atol=1e-12)
    assert not torch.equal(at.run("emifgsm", steps=3), at.run("mifgsm", steps=3))


def test_a_line_has_two_ends() -> None:
    with pytest.raises(InputError, match="copies = 1: at least 2 points"):
        create_attack("emifgsm", copies=1)
