"""MaskBlock: blocks left out, against slices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.transforms.maskblock import MaskBlock
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, pixels
from tests.attacks.transforms.conftest import context_of, held


def without(x: Tensor, t: int, i: int, copy: int, at: Setting) -> Tensor:
    """Of 8 x 8 in thirds of two pixels each."""
    top, left = 2 * (copy // 3), 2 * (copy % 3)
    out = x.clone()
    out[:, top : top + 2, left : left + 2] = 0
    return out


def test_maskblock(goal: Any) -> None:
    held(goal, "maskblock", 9, without, grid=3)


def test_every_pixel_that_fits_is_masked_once() -> None:
    x = torch.ones(1, 3, 9, 14, dtype=torch.float64)
    masked = sum((1 - MaskBlock()(x, copy, context_of(x)) for copy in range(16)), torch.zeros_like(x))
    assert masked[..., :8, :12].min() == masked[..., :8, :12].max() == 1
    assert masked[..., 8:, :].abs().sum() + masked[..., 12:].abs().sum() == 0, "what does not fit stays"


def test_blocks_of_56_pixels_at_224() -> None:
    x = torch.ones(1, 1, 224, 224)
    assert MaskBlock().copies == 16
    assert int((MaskBlock()(x, 6, context_of(x)) == 0).sum()) == 56**2
    assert MaskBlock()(x, 6, context_of(x))[0, 0, 56, 112] == 0


def test_an_image_smaller_than_the_grid_is_left_alone() -> None:
    x = pixels(0, 2, 3)
    torch.testing.assert_close(MaskBlock()(x, 5, context_of(x)), x)


def test_bad_numbers() -> None:
    with pytest.raises(InputError, match="at least 1"):
        create_attack("maskblock", grid=0)
