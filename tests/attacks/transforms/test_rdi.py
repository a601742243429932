"""RDI against pixels copied one by one, with the same draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.transforms.rdi import RDI
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, pixels
from tests.attacks.transforms.conftest import context_of, held

RATE = 1.8


def nearest(x: Tensor, side: int) -> Tensor:
    """Each pixel is that of the original which the upper left corner falls into."""
    old = x.shape[-1]
    out = torch.zeros(3, side, side, dtype=x.dtype)
    for r in range(side):
        for c in range(side):
            out[:, r, c] = x[:, r * old // side, c * old // side]
    return out


def seen_by(x: Tensor, t: int, i: int, copy: int, at: Setting) -> Tensor:
    draws, side, largest = at.draws(t).fork("rdi"), 8, 14
    now = side + int(draws.number(0, 1, "size") * (largest - side))
    top, left = (int(draws.number(0, 1, axis) * (largest - now)) for axis in "yx")
    canvas = torch.zeros(3, largest, largest, dtype=x.dtype)
    canvas[:, top : top + now, left : left + now] = nearest(x, now)
    return nearest(canvas, side)


def test_rdi(goal: Any) -> None:
    held(goal, "mifgsm", 1, seen_by, transforms=[{"name": "rdi", "rate": RATE}])


def test_sizes_of_an_image_of_imagenet() -> None:
    """H = 224: at most 254 pixels, as published code has it; every step has a size of its own."""
    assert int(224 * RDI().rate) == 254
    x = pixels(0, 1, 32)
    seen = [RDI()(x, 0, context_of(x, step)) for step in range(6)]
    assert all(view.shape == x.shape and not torch.equal(view, x) for view in seen)
    assert len({view.sum().item() for view in seen}) > 3


@pytest.mark.parametrize("shape", [(1, 1), (2, 16), (13, 8)])
def test_images_of_any_shape(shape: tuple[int, int]) -> None:
    x = pixels(0, 2, 16)[..., : shape[0], : shape[1]]
    assert RDI(rate=2.5)(x, 0, context_of(x)).shape == x.shape


def test_bad_numbers() -> None:
    with pytest.raises(InputError, match="at least 1"):
        create_attack("mifgsm", transforms=[{"name": "rdi", "rate": 0.9}])
