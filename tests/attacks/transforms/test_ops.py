"""OPS: compositions of operators on noisy images, against loops over pixels with the same draws."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.transforms.ops import OPERATORS, OPS, operate
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, pixels
from tests.attacks.transforms.conftest import context_of, held

RATES = [1.1, 1.3, 1.5, 1.7, 1.9, 2.1, 2.3, 2.5, 2.7, 2.9]
ANGLES = [5, -5, 15, -15, 45, -45, 90, -90, 180]


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Every pixel takes the nearest to where it comes from."""
    side, out = x.shape[-1], torch.zeros_like(x)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    for r in range(side):
        for c in range(side):
            v, h = r - (side - 1) / 2, c - (side - 1) / 2
            row = round(sin * h + cos * v + (side - 1) / 2)
            column = round(cos * h - sin * v + (side - 1) / 2)
            if 0 <= row < side and 0 <= column < side:
                out[:, r, c] = x[:, row, column]
    return out


def operated(x: Tensor, number: int, draws: Any) -> Tensor:
    """The image under one of 31 operators."""
    side = x.shape[-1]
    if number == 0:
        return x
    if number < 3:
        return torch.flip(x, [number])
    if number < 5:
        shift = draws.integers(side, 1, "shift")[0]
        return torch.roll(x, shift, number - 2)
    if number < 14:
        return rotated(x, ANGLES[number - 5])
    if number < 21:
        return x / (number - 12)
    large = math.floor(RATES[number - 21] * side)
    inner = side + (draws.integers(large - side, 1, "side")[0] if large > side else 0)
    top, left = (draws.integers(max(1, large - inner), 1, "place", axis)[0] for axis in (0, 1))
    canvas = torch.zeros(3, large, large, dtype=x.dtype)
    big = F.interpolate(x[None], (inner, inner), mode="bilinear", align_corners=False)[0]
    canvas[:, top : top + inner, left : left + inner] = big
    return F.interpolate(canvas[None], (side, side), mode="bilinear", align_corners=False)[0]


def seen(x: Tensor, t: int, i: int, copy: int, at: Setting) -> Tensor:
    """The image, then three compositions on each of two noisy ones."""
    if copy == 0:
        return x
    e, o = (copy - 1) // 3, (copy - 1) % 3
    draws = at.draws(t).fork("ops")
    number = draws.permutation(180, "pool")[e]
    r = 2 * at.eps * (0.25 + 0.25 * (number // 30))
    x = x + at.draws(-1).fork("ops").uniform(at.x, -r, r, "noise", number)[i]
    length = 2 + draws.permutation(93, "built", e)[o] // 31
    own = draws.fork(e, o)
    for place, chosen in enumerate(own.integers(31, length, "operators")):
        x = operated(x, chosen, own.fork(place))
    return x


def test_ops(goal: Any) -> None:
    held(goal, "ops", 7, seen, noises=2, operators=3)


@pytest.mark.parametrize("number", range(31))
def test_every_operator(number: int) -> None:
    x = pixels(0, 2)
    draws = context_of(x).draws.fork(number)
    found = operate(*OPERATORS[number], x, draws)
    wanted = torch.stack([operated(image, number, draws) for image in x])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_noise_is_drawn_once_for_the_attack() -> None:
    """A number of the pool names the same noise in every step; six radii, the largest three times eps."""
    x = torch.zeros(3, 3, 4, 4, dtype=torch.float64)
    largest: dict[int, set[float]] = {}
    for step in range(120):
        context = context_of(x, step)
        number = context.draws.fork("ops").permutation(180, "pool")[0]
        noise = context.threat.noise(x, 1.0, context.draws.fork("ops").at(-1), "noise", number)
        largest.setdefault(number, set()).add(float(noise.abs().sum()))
    assert all(len(values) == 1 for values in largest.values())
    assert len({next(iter(v)) for v in largest.values()}) == len(largest) > 60


def test_lengths_are_drawn_equally() -> None:
    lengths = Counter(
        2 + context_of(pixels(0, 1), step).draws.fork("ops").permutation(93, "built", 0)[0] // 31
        for step in range(300)
    )
    assert set(lengths) == {2, 3, 4}
    assert min(lengths.values()) > 70


def test_passes() -> None:
    """901 a step as published; as many as other methods by default."""
    made: Any = create_attack("ops", noises=30, operators=30)
    assert made.passes(1).backward == 10 * 901
    assert create_attack("ops").passes(2).backward == 10 * 21 * 2
    assert OPS().copies == 21


def test_bad_numbers() -> None:
    for option, count in (("noises", 0), ("noises", 181), ("operators", 0), ("operators", 94)):
        with pytest.raises(InputError, match="from 1 to"):
            create_attack("ops", **{option: count})
