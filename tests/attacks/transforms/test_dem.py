"""DEM: the mean logits of enlarged copies, and copies fused over logits beside other transforms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.transforms.dem import DEM
from advens.errors import InputError
from tests.attacks.fusions.conftest import Setting, agree, grad, make, pixels
from tests.attacks.transforms.conftest import context_of, held

RATES = (1.27, 1.53, 1.66)


def enlarged(x: Tensor, t: int, i: int, copy: int, at: Setting) -> Tensor:
    """Of 8 x 8 to a side below 10, 12 or 13, between zeros, and back."""
    draws, large = at.draws(t).fork("dem", copy), (10, 12, 13)[copy]
    side = 8 + draws.integers(large - 8, 1, "side")[0]
    top, left = (draws.integers(large - side, 1, "place", axis)[0] for axis in (0, 1))
    canvas = torch.zeros(3, large, large, dtype=x.dtype)
    big = F.interpolate(x[None], (side, side), mode="bilinear", align_corners=False)[0]
    canvas[:, top : top + side, left : left + side] = big
    return F.interpolate(canvas[None], (8, 8), mode="bilinear", align_corners=False)[0]


def mean_logits(at: Setting, models: list[int], seen: list[Tensor]) -> Tensor:
    total = sum(at.logits(m, view) for m in models for view in seen)
    return total / (len(models) * len(seen))  # type: ignore[return-value, operator]


def test_dem(goal: Any) -> None:
    """grad J(mean over surrogates and copies of the logits)."""
    k, n, targeted = goal
    at = make(k, n, "linf", targeted, seed=k)

    def direction(t: int, i: int, x: Tensor, state: Any) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            seen = [enlarged(leaf, t, i, copy, at) for copy in range(3)]
            return at.j(mean_logits(at, list(range(k)), seen), i)

        return grad(loss, x)

    agree(at.run("dem", rates=RATES), at.alone(direction))


def test_the_mean_of_losses(goal: Any) -> None:
    held(goal, "dem", 3, enlarged, rates=RATES, over="loss")


def test_copies_are_fused_before_surrogates() -> None:
    """A fusion of losses sees one loss a surrogate: that of its mean logits over copies."""
    at = make(3, 2, seed=3)

    def direction(t: int, i: int, x: Tensor, state: Any) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            seen = [enlarged(leaf, t, i, copy, at) for copy in range(3)]
            return sum(at.j(mean_logits(at, [m], seen), i) for m in range(3)) / 3  # type: ignore[return-value]

        return grad(loss, x)

    agree(at.run("dem", rates=RATES, fusion="ens-loss"), at.alone(direction))


@pytest.mark.parametrize("before", [True, False])
def test_other_transforms_are_averaged_over_gradients(before: bool) -> None:
    """Two scales, each with a loss of the mean logits of its own three copies, whichever comes first."""
    at = make(2, 2, seed=3)

    def direction(t: int, i: int, x: Tensor, state: Any) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            total = leaf.new_zeros(())
            for scale in (1, 2):
                if before:
                    seen = [enlarged(leaf / scale, t, i, copy, at) for copy in range(3)]
                else:
                    seen = [enlarged(leaf, t, i, copy, at) / scale for copy in range(3)]
                total = total + at.j(mean_logits(at, [0, 1], seen), i) / 2
            return total

        return grad(loss, x)

    transforms = [{"name": "si", "copies": 2}, {"name": "dem", "rates": RATES}]
    made = at.attack("dem", transforms=transforms if before else transforms[::-1])
    assert made.passes(2).backward == 2 * 3 * 2 * at.steps
    agree(at.run(made), at.alone(direction))


def test_steps_are_as_long_as_the_ball() -> None:
    """Region fitting: after every step a value is eps away from the clean one, or back there."""
    at = make(1, 3)
    points = at.run("dem", step_size="eps").points
    assert points is not None
    free = (at.x > at.eps) & (at.x < 1 - at.eps)
    far = (points[1:] - at.x).abs()[:, free]
    assert torch.minimum(far, (far - at.eps).abs()).max() < 1e-9
    assert (far > at.eps / 2).double().mean() > 0.9
    made: Any = create_attack("dem")
    assert made.step_size.at(3, 10, made.threat) == made.threat.radius


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (13, 8)])
def test_images_of_any_shape(shape: tuple[int, int]) -> None:
    x = pixels(0, 2, 16)[..., : shape[0], : shape[1]]
    for copy in range(5):
        assert DEM()(x, copy, context_of(x)).shape == x.shape


def test_bad_rates() -> None:
    for rates in ((), (0.9, 1.2)):
        with pytest.raises(InputError, match="rate"):
            create_attack("dem", rates=rates)
