"""Input transforms: what a surrogate sees instead of the image. One file each.

A transform with several copies is asked for each of them; the gradient is the mean over all. What it
draws is named by step and copy, so every gradient of one step sees the same draw.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from advens.attacks.oracle import Context


class InputTransform(Protocol):
    """Differentiable, (N, C, H, W) to the same shape."""

    @property
    def copies(self) -> int:
        """How many views of the image one gradient averages over."""
        ...

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        """View number ``copy`` of ``x``."""
        ...
