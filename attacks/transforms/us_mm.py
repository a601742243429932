"""US-MM: uniform scales, and masks made of other images."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.transforms.admix import Mixed, others_of
from advens.fields import Count


@part("transform", "us-mm", paper="Wang et al., 2023 (US-MM), arXiv 2311.12051", year=2023, couples="shard")
class USMM:
    """Copies ``clip(s_i x * (1 - r + 2 r o_j), 0, 1)`` for ``scales`` scales and ``others`` other images.

    The scales ``s_i = low + (high - low) i / (m - 1)``, i = 0, ..., m - 1, are evenly spaced. The mask is
    between 1 - r and 1 + r and is made of another image o_j, which all scales share; r = 0 leaves the uniform
    scales alone. Other images are clean ones of the same shard, drawn anew each step for every sample;
    published code shuffles the adversarial images of the batch (``mixed="adversarial"``), see ``admix``.

    Published code takes the gradient at the copy and leaves out the factor s_i times the mask, and so copies
    count the same whatever their scale; ``straight_through=False`` takes the exact gradient by x instead.

    Args:
        others: how many other images.
        scales: how many scales (m).
        low, high: the smallest and the largest scale.
        r: half-width of the mask.
        mixed: other images as they are ``clean``, or ``adversarial`` as they have become.
        straight_through: whether the transform counts as the identity for the gradient.
    """

    others: Count = 3
    scales: Count = 5
    low: float = 0.1
    high: float = 0.75
    r: float = 0.5
    mixed: Mixed = "clean"
    straight_through: bool = True

    @property
    def copies(self) -> int:
        return self.others * self.scales

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        other, i = divmod(copy, self.scales)
        scale = self.low + (self.high - self.low) * i / max(1, self.scales - 1)
        mask = 1 - self.r + 2 * self.r * others_of(x, context, self.mixed, "us-mm", other)
        view = scale * x * mask
        clipped = view.detach().clamp(0, 1)
        if self.straight_through:
            return x + (clipped - x).detach()
        return torch.where(view == clipped, view, clipped)  # versions of torch differ in the slope at 0 and 1
