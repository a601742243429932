"""Admix: a little of other images, at several scales."""

from __future__ import annotations

from torch import Tensor

from advens.attacks.oracle import Context
from advens.attacks.parts import part


@part("transform", "admix", paper="Wang et al., ICCV 2021 (Admix)", year=2021, couples="shard")
class Admix:
    """Copies ``(x + eta x_other) / 2^i`` for ``others`` other images and ``scales`` scales.

    The other images are clean images of the same shard, drawn anew each step: which samples share a
    micro-batch changes nothing. The paper mixes images of other classes within the batch.

    Args:
        eta: the share of the other image.
        others: how many other images (m2 in the paper).
        scales: how many scales (m1).
    """

    eta: float = 0.2
    others: int = 3
    scales: int = 5

    @property
    def copies(self) -> int:
        return self.others * self.scales

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        other, scale = divmod(copy, self.scales)
        chosen = context.draws.others("admix", other).to(x.device)
        return (x + self.eta * context.pool[chosen].to(x.device)) / float(2**scale)
