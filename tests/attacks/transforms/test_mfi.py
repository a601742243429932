"""MFI: frequencies of one image mixed with another's, by the matrix of the centred plane."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from advens.attacks import create_attack
from advens.attacks.transforms.mfi import MFI
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, pixels
from tests.attacks.transforms.conftest import context_of, held

RADIUS, SOFT = 2.5, 0.8
"""In bins of an image of 8 pixels."""


@cache
def plane(side: int, hard: bool) -> Tensor:
    """The low-pass of every pixel by itself, as a matrix, with the zero frequency in the middle."""
    unit = np.eye(side**2).reshape(-1, side, side)
    spectrum = np.fft.fftshift(np.fft.fft2(unit), axes=(1, 2))
    for r in range(side):
        for c in range(side):
            d = ((r - side // 2) ** 2 + (c - side // 2) ** 2) ** 0.5
            spectrum[:, r, c] *= float(d <= RADIUS) if hard else 1 / (1 + np.exp((d - RADIUS) / SOFT))
    return torch.from_numpy(np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(1, 2))).real.reshape(side**2, -1))


def seen(x: Tensor, t: int, i: int, copy: int, at: Setting, hard: bool = False) -> Tensor:
    """Two other images, two scales."""
    j, scale = divmod(copy, 2)
    draws, o = at.draws(t).fork("mfi", j), at.x[int(at.draws(t).others("mfi", j)[i])]
    a = 0.0 if hard else draws.number(0, 1, "share")

    def low(v: Tensor) -> Tensor:
        return (v.reshape(3, -1) @ plane(8, hard)).view(3, 8, 8)

    mixed = low(x) + a * (x - low(x)) + (1 - a) * (o - low(o))
    return (mixed + draws.normal(at.x, 2 * at.eps, "noise")[i]) / 2**scale


def test_mfi(goal: Any) -> None:
    held(goal, "mfi", 4, seen, others=2, scales=2, radius=RADIUS / 8, softness=SOFT / 8)


def test_the_hard_mask() -> None:
    def view(*of: Any) -> Tensor:
        return seen(*of, hard=True)

    held((3, 3, True), "mfi", 4, view, others=2, scales=2, radius=RADIUS / 8, mask="hard")


def test_published_radius_in_published_pixels() -> None:
    """At 224 pixels: half a bin beyond 100 the hard mask ends, and the soft one is 1/2 at 100."""
    x = torch.zeros(1, 3, 224, 224, dtype=torch.float64)
    hard = MFI(mask="hard").kept(x, 0.0)
    assert hard[0, 100] == hard[100, 0] == hard[60, 80] == hard[-100, 0] == 1
    assert hard[0, 101] == hard[61, 80] == 0
    soft = MFI().kept(x, 0.0)
    assert float(soft[60, 80]) == pytest.approx(0.5)
    assert float(soft[0, 110]) == pytest.approx(1 / (1 + np.e))
    assert float(MFI().kept(x, 0.25)[60, 80]) == pytest.approx(0.5 + 0.5 * 0.25)
    assert float((soft > 0.5).double().mean()) > 0.6, "most frequencies are hardly mixed"


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (13, 8)])
def test_images_of_any_shape_and_published_mixing(shape: tuple[int, int]) -> None:
    """Low frequencies are the image's own, whatever its shape; the batch's adversarial images on request."""
    x = pixels(0, 4, 16)[..., : shape[0], : shape[1]]
    context = context_of(x.flip(0))
    quiet = {"sigma": 0.0, "mask": "hard"}
    same = MFI(radius=2.0, **quiet)(x, 0, context)  # type: ignore[arg-type]
    torch.testing.assert_close(same, x)
    order = context.draws.permutation(4, "mfi", 0)
    other = MFI(radius=-1.0, mixed="adversarial", **quiet)(x, 0, context)  # type: ignore[arg-type]
    torch.testing.assert_close(other, x[order])


def test_bad_numbers() -> None:
    for option in ("others", "scales"):
        with pytest.raises(InputError, match="at least 1"):
            create_attack("mfi", **{option: 0})
