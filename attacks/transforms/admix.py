"""Admix: a little of other images, at several scales."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.attacks.transforms.si import LEVELS, About, faded

Mixed = Literal["clean", "adversarial"]


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
    mixed: Mixed = "clean"
    about: About = "black"

    @property
    def copies(self) -> int:
        return self.others * self.scales

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        other, scale = divmod(copy, self.scales)
        level = LEVELS[self.about]
        return faded(x + self.eta * (others_of(x, context, self.mixed, "admix", other) - level), scale, level)


def others_of(x: Tensor, context: Context, mixed: Mixed, *tag: object) -> Tensor:
    """For every image at hand another one: a clean one of the shard, or an adversarial one of those at hand.

    An adversarial one may be the image itself, and is held constant.
    """
    if mixed == "adversarial":
        return x.detach()[context.draws.permutation(len(x), *tag)]
    return context.pool[context.draws.others(*tag).to(context.pool.device)].to(x.device)
