"""US-MM: scales and masks of other images, one image at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.transforms.us_mm import USMM
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, grad, pixels
from tests.attacks.transforms.conftest import context_of, held


def mixed(x: Tensor, t: int, i: int, copy: int, at: Setting) -> Tensor:
    """Two other images, three scales: 0.1, 0.425, 0.75; outside [0, 1] nothing is left of the slope."""
    other, scale = at.x[int(at.draws(t).others("us-mm", copy // 3)[i])], (0.1, 0.425, 0.75)[copy % 3]
    seen = scale * x * (0.5 + other)
    return torch.where(seen > 1, 1.0, torch.where(seen < 0, 0.0, seen))


def straight(x: Tensor, *of: Any) -> Tensor:
    return x - x.detach() + mixed(x.detach(), *of)


def test_us_mm(goal: Any) -> None:
    held(goal, "us-mm", 6, straight, others=2, scales=3)


def test_the_exact_gradient(goal: Any) -> None:
    held(goal, "us-mm", 6, mixed, others=2, scales=3, straight_through=False)


def test_published_code_mixes_adversarial_images_of_the_batch() -> None:
    x = pixels(0, 5)
    context = context_of(pixels(1, 5))
    for j in range(3):
        order = context.draws.permutation(5, "us-mm", j)
        for i in range(5):
            wanted = ((0.1 + 0.65 * i / 4) * x * (0.5 + x[order])).clamp(0, 1)
            found = USMM(mixed="adversarial")(x, 5 * j + i, context)
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_copies_count_the_same_whatever_their_scale() -> None:
    """The published gradient has no factor of the scale; the exact one is smaller in a darker copy."""
    x = pixels(0, 2).clamp(0.1, 0.9)
    context = context_of(x)

    def slope(copy: int, straight_through: bool) -> float:
        part = USMM(straight_through=straight_through)
        return float(grad(lambda leaf: part(leaf[None], copy, context_of(x[:1])).sum(), x[0]).abs().sum())

    assert slope(0, True) == slope(4, True) == x[0].numel()
    assert slope(0, False) < 0.2 * slope(4, False)
    assert not torch.equal(USMM()(x, 0, context), USMM(r=0.0)(x, 0, context))
    torch.testing.assert_close(USMM(r=0.0)(x, 4, context), 0.75 * x)


def test_a_single_scale_is_the_lowest() -> None:
    x = pixels(0, 1)
    torch.testing.assert_close(USMM(scales=1, r=0.0)(x, 0, context_of(x)), 0.1 * x)


def test_bad_numbers() -> None:
    for option in ("others", "scales"):
        with pytest.raises(InputError, match="at least 1"):
            create_attack("us-mm", **{option: 0})
