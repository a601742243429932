"""What training images go through: the embedded zoo's small movements, or ImageNet's crops and flips."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


def augmented(x: Tensor, how: float | str, seed: int, reseed: Callable[[int], object]) -> Tensor:
    """Augmented training images.

    Args:
        x: images (N, 3, H, W) in [0, 1].
        how: a strength of the zoo's augmentation (0 leaves the images as they are) or ``imagenet``.
        seed: of what is drawn.
        reseed: seeds torch's global generators, from which torchvision draws.
    """
    if how == "imagenet":
        reseed(seed)
        change = _imagenet(tuple(x.shape[-2:]))
        return torch.stack([change(image) for image in x])
    if how == 0:
        return x
    from advens.zoo.training import augment

    return augment(x, torch.Generator().manual_seed(seed), float(how))


@cache
def _imagenet(size: tuple[int, ...]) -> Any:
    """A random crop of 8 to 100 % of the area, resized to ``size``, and a flip of every second image."""
    from torchvision import transforms

    return transforms.Compose(
        [transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip()]
    )
