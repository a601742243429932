"""RPA: random patch attack."""

from __future__ import annotations

import torch
from pydantic import field_validator
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.features.guided import Guided, Score, Total, importance
from advens.attacks.interfaces import Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI
from advens.fields import Count, Share
from advens.seeding import Draws
from advens.threat import Threat

PAPER = "Zhang et al., IJCAI 2022 (RPA)"


@part("feature", "rpa", targeted=False, paper=PAPER, year=2022)
class RPA(Guided):
    """FIA with other masks: pixels or patches are multiplied by noise.

    Mask i has the i-th of ``sizes``, which are taken in turn. Of size 1, every value of every channel is
    replaced in a mask of ones by U(0, 1) with probability ``share``; of size p, that share of all pairs of a
    p x p patch and a channel is, with new noise at every pixel. The guidance is FIA's with these masks,
    ``A = n_2(sum_i ds_y/dF at x * M_i)``. Patches and noise are drawn once a run for each sample; published
    code takes one choice of patches for all images, and a port never reaches size 7.

    Args:
        layer: depth of the layer, 0.25 for the end of the first of four stages, or the name of a module.
        copies: masks.
        share: of what is replaced.
        sizes: of patches, in turn.
        score: of the label, ``logit`` or ``probability`` (a port's).
    """

    layer: Layer = 0.25
    copies: Count = 60
    share: Share = 0.3
    sizes: tuple[Count, ...] = (1, 3, 5, 7)
    score: Score = "logit"

    @field_validator("sizes")
    @classmethod
    def _any(cls, sizes: tuple[int, ...]) -> tuple[int, ...]:
        if not sizes:
            raise ValueError("at least one")
        return sizes

    def guidance(self, surrogate: Tapped) -> Tensor:
        x, draws, total = surrogate.job.x, surrogate.job.draws, Total()
        for i in range(self.copies):
            chosen = self._chosen(x, draws, i, self.sizes[i % len(self.sizes)])
            mask = torch.where(chosen, draws.uniform(x, 0, 1, "rpa", "noise", i), 1.0)
            total.add(*importance(surrogate, x * mask, self.score))
        return total.value

    def _chosen(self, x: Tensor, draws: Draws, i: int, size: int) -> Tensor:
        """Where the mask is noise, (N, C, H, W)."""
        if size == 1:
            return draws.uniform(x, 0, 1, "rpa", i) < self.share
        height, width = (-(-side // size) for side in x.shape[2:])
        order = draws.uniform(x.new_empty(len(x), x.shape[1], height, width), 0, 1, "rpa", i)
        count = round(self.share * order[0].numel())
        patches = order.flatten(1).argsort(1).argsort(1).view_as(order) < count
        whole = patches.repeat_interleave(size, 2).repeat_interleave(size, 3)
        return whole[:, :, : x.shape[2], : x.shape[3]]


@recipe("rpa", symbol="RPA", family="feature", targeted=False, paper=PAPER, year=2022)
def RandomPatches() -> ComposedAttack:
    """Momentum on features that matter under random patches; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), fusion=EnsLoss(), update=MI(), feature=RPA())
