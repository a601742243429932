"""Admix: a little of other images, at several scales."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.transforms.si import LEVELS, About, faded


@part("transform", "admix", paper="Wang et al., ICCV 2021 (Admix)", year=2021, couples="shard")
class Admix:
    """Copies ``(x + eta x_other) / 2^i`` for ``others`` other images and ``scales`` scales.

    The other images are clean images of the same shard, drawn anew each step: which samples share a
    micro-batch changes nothing. Published code shuffles the batch as it is at that step, so the other
    images are adversarial by then and may be the image itself; ``mixed="adversarial"`` does so with
    the images that are worked on at once, whose results then depend on each other. The paper mixes
    images of other classes; its code does not look at classes.

    Args:
        eta: the share of the other image.
        others: how many other images (m2 in the paper).
        scales: how many scales (m1).
        mixed: other images as they are ``clean``, or ``adversarial`` as they have become.
        about: the level that images are measured from, in the sum and when copies fade; see ``si``.
    """

    eta: float = 0.2
    others: int = 3
    scales: int = 5
    mixed: Literal["clean", "adversarial"] = "clean"
    about: About = "black"

    @property
    def copies(self) -> int:
        return self.others * self.scales

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        other, scale = divmod(copy, self.scales)
        level = LEVELS[self.about]
        return faded(x + self.eta * (self._others(x, other, context) - level), scale, level)

    def _others(self, x: Tensor, which: int, context: Context) -> Tensor:
        """Another image for every image at hand."""
        if self.mixed == "adversarial":
            return x.detach()[context.draws.permutation(len(x), "admix", which)]
        chosen = context.draws.others("admix", which).to(x.device)
        return context.pool[chosen].to(x.device)
