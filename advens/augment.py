"""Augmentation of training images: small random movements, or the crops and flips of ImageNet."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT, ROTATION, SCALE = 2.0, 0.15, 0.1  # pixels, radians, fraction
BRIGHTNESS, NOISE = 0.2, 0.05  # fraction, standard deviation in [0, 1]


def augmented(x: Tensor, how: float | str, seed: int, reseed: Callable[[int], object]) -> Tensor:
    """Augmented training images.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        how: a strength of `jitter` (0 leaves the images as they are) or ``imagenet``.
        seed: of what is drawn.
        reseed: seeds torch's global generators, from which torchvision draws.
    """
    if how == "imagenet":
        reseed(seed)
        change = _imagenet(tuple(x.shape[-2:]))
        return torch.stack([change(image) for image in x])
    if how == 0:
        return x
    return jitter(x, torch.Generator().manual_seed(seed), float(how))


def jitter(images: Tensor, draw: torch.Generator, strength: float = 1.0) -> Tensor:
    """Images (N, 3, H, W) in [0, 1], each slightly shifted, rotated, scaled and brightened, with noise."""

    def uniform(high: float) -> Tensor:
        return (torch.rand(len(images), generator=draw) * 2 - 1) * high * strength

    angle, zoom = uniform(ROTATION), 1 + uniform(SCALE)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    right, down = (uniform(2 * SHIFT / side) for side in images.shape[-2:])
    theta = torch.stack([cos, -sin, right, sin, cos, down], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)
    moved = moved * (1 + uniform(BRIGHTNESS)).view(-1, 1, 1, 1)
    noise = torch.randn(moved.shape, generator=draw) * NOISE * strength
    return (moved + noise).clamp(0, 1)


@cache
def _imagenet(size: tuple[int, ...]) -> Any:
    """A random crop of 8 to 100 % of the area, resized to ``size``, and a flip of every second image."""
    from torchvision import transforms

    return transforms.Compose(
        [transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip()]
    )
