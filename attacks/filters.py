"""Filters: what is done to every gradient, after the estimator and before a fusion sees it."""

from __future__ import annotations

from functools import lru_cache

import torch
from pydantic import field_validator
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import GradientFilter as GradientFilter
from advens.attacks.parts import part


@part("filter", "ti", paper="Dong et al., CVPR 2019 (TI-FGSM)", year=2019)
class TI:
    """Translation invariance: the gradient convolved with a gaussian, zero padded.

    Args:
        size: side of the kernel, odd.
        sigma: standard deviation of the gaussian, in pixels; None is the published kernel, whose
            half-width is three of them (1 pixel for a side of 7).
    """

    size: int = 7
    sigma: float | None = None

    @field_validator("size")
    @classmethod
    def _odd(cls, size: int) -> int:
        if size < 1 or size % 2 == 0:
            raise ValueError("the kernel's side is odd")
        return size

    def __call__(self, g: Tensor) -> Tensor:
        sigma = self.sigma if self.sigma is not None else max(1, self.size // 2) / 3
        line = gaussian(self.size, sigma).to(g)
        channels = g.shape[1]
        # the kernel is an outer product: two thin convolutions instead of a square one
        for shape, padding in (((1, -1), (0, self.size // 2)), ((-1, 1), (self.size // 2, 0))):
            kernel = line.view(1, 1, *shape).expand(channels, -1, -1, -1)
            g = F.conv2d(g, kernel, padding=padding, groups=channels)
        return g


@lru_cache(maxsize=16)
def gaussian(size: int, sigma: float) -> Tensor:
    """A normalised gaussian line of ``size`` points, float64."""
    at = torch.arange(size, dtype=torch.float64) - size // 2
    line = torch.exp(-(at**2) / (2 * sigma**2))
    return line / line.sum()
