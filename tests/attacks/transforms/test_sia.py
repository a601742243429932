"""SIA: blocks under operations of their own, against loops over pixels with the same draws."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.transforms.sia import OPERATIONS, SIA
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, pixels
from tests.attacks.transforms.conftest import context_of, held

TEN = ["roll-rows", "roll-columns", "flip-rows", "flip-columns", "turn", "scale", "noise", "resize", "dct",
       "dropout"]  # fmt: skip


def low_pass(block: Tensor) -> Tensor:
    """Without the highest int(0.4 n) cosine coefficients along each axis; linear, so by its matrix."""
    c, h, w = block.shape
    unit = torch.eye(h * w, dtype=block.dtype).view(-1, h, w)
    spectrum = torch.from_numpy(dctn(unit.numpy(), type=2, norm="ortho", axes=(1, 2)))
    spectrum[:, h - int(h * 0.4) :] = 0
    spectrum[:, :, w - int(w * 0.4) :] = 0
    matrix = torch.from_numpy(idctn(spectrum.numpy(), type=2, norm="ortho", axes=(1, 2))).view(h * w, h * w)
    return (block.reshape(c, h * w) @ matrix).view(c, h, w)


def seen_by(x: Tensor, t: int, i: int, copy: int, at: Setting, names: list[str] = TEN) -> Tensor:
    """The three-by-three blocks of one image, one after the other."""
    draws = at.draws(t).fork("sia", copy)
    noise = draws.uniform(at.x, -at.eps, at.eps, "noise")[i]
    edges = [sorted(c + 1 for c in draws.permutation(7, "cuts", axis)[:2]) for axis in ("rows", "columns")]
    tops, lefts = [0, *edges[0], 8], [0, *edges[1], 8]
    out = torch.zeros_like(x)
    for r in range(3):
        for c in range(3):
            rows, columns = slice(tops[r], tops[r + 1]), slice(lefts[c], lefts[c + 1])
            block, own = x[:, rows, columns], draws.fork(r, c)
            h, w = block.shape[1:]
            name = names[draws.integers(len(names), 1, "operation", r, c)[0]]
            if name == "roll-rows":
                s = own.integers(h, 1, "shift")[0]
                block = block[:, [(p - s) % h for p in range(h)]]
            elif name == "roll-columns":
                s = own.integers(w, 1, "shift")[0]
                block = block[:, :, [(p - s) % w for p in range(w)]]
            elif name == "flip-rows":
                block = block[:, list(range(h))[::-1]]
            elif name == "flip-columns":
                block = block[:, :, list(range(w))[::-1]]
            elif name == "turn":
                block = torch.rot90(block, 2, (1, 2))
            elif name == "scale":
                block = own.number(0, 1, "factor") * block
            elif name == "noise":
                block = torch.clip(block + noise[:, rows, columns], 0, 1)
            elif name == "resize":
                size = (math.floor(0.8 * h + 1e-9) + 1, math.floor(0.8 * w + 1e-9) + 1)
                small = F.interpolate(block[None], size, mode="bilinear", align_corners=False)
                block = F.interpolate(small, (h, w), mode="bilinear", align_corners=False)[0].clip(0, 1)
            elif name == "dct":
                block = low_pass(block)
            else:
                u = own.uniform(at.x[:, :, :1, :1], 0, 1, "dropped")[i]
                block = torch.where(u < 0.1, 0.0, block / 0.9)
            out[:, rows, columns] = block
    return out


def test_sia(goal: Any) -> None:
    held(goal, "sia", 3, seen_by, copies=3)


def test_sia_with_seven_operations() -> None:
    def view(*of: Any) -> Tensor:
        return seen_by(*of, names=TEN[:7])

    held((1, 3, False), "sia", 2, view, copies=2, operations="transferattack")
    assert list(OPERATIONS["paper"]) == TEN


def test_every_operation_is_drawn_equally() -> None:
    draws = [context_of(pixels(0, 1), step).draws.fork("sia", 0) for step in range(400)]
    count = Counter(draw.integers(10, 1, "operation", 1, 2)[0] for draw in draws)
    assert set(count) == set(range(10))
    assert max(count.values()) < 70


def test_a_block_of_one_pixel_keeps_its_coefficients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The published slice of the last int(0.4 n) coefficients is all of them where it is none."""
    monkeypatch.setitem(OPERATIONS, "paper", ("dct",))
    x = pixels(0, 2, 3)
    torch.testing.assert_close(SIA(copies=1)(x, 0, context_of(x)), x)
    x = pixels(0, 2, 9)
    assert not torch.equal(SIA(copies=1)(x, 0, context_of(x)), x)


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (13, 8)])
def test_images_of_any_shape(shape: tuple[int, int]) -> None:
    x = pixels(0, 2, 16)[..., : shape[0], : shape[1]]
    for copy in range(8):
        assert SIA()(x, copy, context_of(x)).shape == x.shape


def test_bad_numbers() -> None:
    for option in ("copies", "blocks"):
        with pytest.raises(InputError, match="at least 1"):
            create_attack("sia", **{option: 0})
