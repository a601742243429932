"""PatchOut: a random part of the perturbation's patches."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Context
from advens.attacks.parts import part
from advens.fields import Count, Share


@part("transform", "patchout", paper="Wei et al., AAAI 2022 (PNA-PatchOut)", year=2022)
class PatchOut:
    """``clean + mask * (x - clean)``: the perturbation on some patches, a sample's own every step.

    The defaults are the published 130 of the 196 patches that a ViT/16 sees of 224 pixels. There one
    choice, seeded by the step's number, serves all images; here every image has its own. It belongs
    before other transforms, which move the image away from the clean one.

    Args:
        grid: patches along each side; where they do not divide the image their sizes differ by a pixel.
        keep: the fraction of patches that stay, rounded to whole patches, at least one; 1 keeps all.
    """

    grid: Count = 14
    keep: Share = 130 / 196
    copies = 1

    def __call__(self, x: Tensor, copy: int, context: Context) -> Tensor:
        patches = self.grid**2
        kept = max(1, round(self.keep * patches))
        if kept == patches:
            return x
        like = torch.empty(len(x), patches, dtype=x.dtype, device=x.device)
        chosen = context.draws.uniform(like, 0, 1, "patchout").argsort(1)[:, :kept]
        mask = torch.zeros_like(like).scatter_(1, chosen, 1).view(-1, 1, self.grid, self.grid)
        return torch.where(F.interpolate(mask, x.shape[-2:], mode="nearest") > 0, x, context.clean)
