"""SSM-H and SSM-P: the spectrum of one image by its matrix, with the same draws."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import torch
from scipy.fft import dctn
from torch import Tensor

from advens.attacks.transforms.ssa import SSA
from advens.attacks.transforms.ssm import SSMH, SSMP
from tests.attacks.fusions.conftest import Setting, pixels
from tests.attacks.transforms.conftest import context_of, held


@cache
def basis(side: int) -> Tensor:
    """DCT-II of every pixel by itself: (pixel, coefficient), orthogonal."""
    unit = torch.eye(side**2, dtype=torch.float64).view(-1, side, side)
    return torch.from_numpy(dctn(unit.numpy(), type=2, norm="ortho", axes=(1, 2))).view(side**2, side**2)


def disturbed(x: Tensor, mask: Tensor) -> Tensor:
    """One image with every coefficient times its entry of the mask."""
    c, side, _ = x.shape
    spectrum = x.reshape(c, -1) @ basis(side)
    return (mask.reshape(c, -1) * spectrum @ basis(side).T).view(c, side, side)


def high(x: Tensor, t: int, i: int, copy: int, at: Setting) -> Tensor:
    draws = at.draws(t).fork("ssm-h", copy)
    mask = draws.uniform(at.x, 0.5, 1.5, "mask")[i].clone()
    mask[:, :3, :3] = 1  # int(0.4 * 8)
    return disturbed(x + draws.normal(at.x, at.eps, "noise")[i], mask)


def straight(x: Tensor, *of: Any) -> Tensor:
    return x - x.detach() + high(x.detach(), *of)


def blocks(x: Tensor, t: int, i: int, copy: int, at: Setting) -> Tensor:
    """Rows and columns from int(0.3 * 8) = 2 on are high; each block by the operation of this copy."""
    draws = at.draws(t).fork("ssm-p", copy)
    mask = torch.ones(3, 8, 8, dtype=x.dtype)
    operation = draws.integers(3, 1, "operation")[0]
    noise = draws.uniform(at.x, 0.5, 1.5, "mask")[i]
    for number, (rows, columns) in enumerate([(range(2, 8), range(2, 8)), (range(2), range(2, 8)),
                                              (range(2, 8), range(2))]):  # fmt: skip
        factor = draws.number(0, 1, "factor", number)
        u = draws.uniform(at.x[:, :, :1, :1], 0, 1, "dropped", number)[i, :, 0, 0]
        for r in rows:
            for c in columns:
                if operation == 0:
                    mask[:, r, c] = factor
                elif operation == 1:
                    mask[:, r, c] = noise[:, r, c]
                else:
                    mask[:, r, c] = torch.where(u < 0.2, 0.0, 1.25)
    return disturbed(x + draws.normal(at.x, at.eps, "noise")[i], mask)


def test_ssm_h(goal: Any) -> None:
    held(goal, "ssm-h", 2, straight, copies=2, low=0.4)


def test_ssm_h_with_the_exact_gradient() -> None:
    held((3, 3, False), "ssm-h", 2, high, copies=2, low=0.4, straight_through=False)


def test_ssm_p(goal: Any) -> None:
    held(goal, "ssm-p", 4, blocks, copies=4, low=0.3)


def test_ssm_h_keeps_the_lowest_frequencies() -> None:
    """At the published 5 % that is one coefficient of 20 pixels a side; SSA changes it."""
    x, context = pixels(0, 2, 20), context_of(pixels(0, 2, 20))
    for copy in range(3):
        noisy = x + context.draws.fork("ssm-h", copy).normal(x, 16 / 255, "noise")
        for found, same in ((SSMH(rho=0.5)(x, copy, context), True), (SSA(rho=0.5)(x, copy, context), False)):
            assert torch.allclose(found.mean((2, 3)), noisy.mean((2, 3)), rtol=0, atol=1e-9) == same


def test_ssm_p_draws_every_operation_and_keeps_the_lowest_square() -> None:
    x = pixels(0, 1, 20)
    names = Counter[int]()
    for step in range(60):
        context = context_of(x, step)
        draws = context.draws.fork("ssm-p", 0)
        names[draws.integers(3, 1, "operation")[0]] += 1
        noisy = x + draws.normal(x, 16 / 255, "noise")
        before, after = (torch.from_numpy(dctn(v.numpy(), type=2, norm="ortho", axes=(2, 3)))
                         for v in (noisy, SSMP()(x, 0, context)))  # fmt: skip
        torch.testing.assert_close(after[..., :2, :2], before[..., :2, :2], rtol=0, atol=1e-9)
        assert not torch.allclose(after[..., 2:, 2:], before[..., 2:, 2:])
    assert set(names) == {0, 1, 2}
    assert min(names.values()) > 8
