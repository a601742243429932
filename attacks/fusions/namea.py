"""NAMEA: a walk over shuffled surrogates, and another one that does not see what the surrogates attend to."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Oracle, Passes, Tapped
from advens.attacks.layers import as_map
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import Count, Share

PAPER = "Zou et al., AAAI 2026 (NAMEA), arXiv 2511.08937"
LEAST = 16
"""Positions that a feature map must have for a mask."""


@part("fusion", "namea", paper=PAPER, year=2026)
class NAMEA:
    """Two walks of inner steps over shuffled surrogates, with the sums A and B of their unit gradients.

    The first walk is from x'. At each of its points u_j the surrogate at hand says by Grad-CAM what it
    attends to: with features a_c of a layer and w_c the mean over positions of ``dz_y / da_c``, the map
    ``ReLU(sum_c w_c a_c)`` goes to [0, 1] image by image and to the size of the image, and M_j is 1 where it
    reaches eta. The second walk, with the same surrogates in the same order, begins at x', too. Before each
    gradient it fills what M_j covers: ``v <- v (1 - M_j) + clip(xi M_j, 0, 1)`` with xi from N(0, 1); the
    step that follows projects back into the ball. The direction is ``A/mean|A| + (B/mean|B|) (1 - M)`` with
    the last mask; the outer momentum is that of the update.

    The layer is the last one with at least 16 positions at the end of a stage; in a vision transformer, whose
    stages are its blocks, the last but one, as only the class token of the last has a part in the logits.

    The released code leaves out the module that makes the masks, which are made here as the paper describes
    them. It has thresholds of 0.63 to 0.85 by inner step where the paper has 0.6. The paper's scaling of
    gradients in the second walk is without effect in the released code, and not here.

    Args:
        rounds: shuffled passes over the surrogates in each walk.
        eta: threshold of the masks.
        mask: ``attention``; ``shifted``, the same masks moved to a random place of the image; or ``none``,
            two walks without any. The last two show what attention is good for.
        fill: ``noise``, or ``zero``.
    """

    OF_LOGITS: ClassVar = "taps the surrogates itself"
    rounds: Count = 4
    eta: Share = 0.6
    mask: Literal["attention", "shifted", "none"] = "attention"
    fill: Literal["noise", "zero"] = "noise"

    @property
    def layers(self) -> tuple[str, ...]:
        """Where surrogates are tapped."""
        return () if self.mask == "none" else ("stages",)

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        context, draws = oracle.context, oracle.context.draws
        order = [k for turn in range(self.rounds) for k in draws.permutation(oracle.k, "namea", turn)]
        masks, total, at = [], torch.zeros_like(x), x
        for j, k in enumerate(order):
            masks.append(self._mask(oracle, at, k, j))
            total = total + context.unit(oracle.gradient(at, [k], remember="namea"))
            at = context.step(at, context.step_size, total)
        masked, at = torch.zeros_like(x), x
        for j, k in enumerate(order):
            xi = torch.zeros_like(x) if self.fill == "zero" else draws.normal(x, 1.0, "namea", "fill", j)
            at = (at * (1 - masks[j]) + (xi * masks[j]).clamp(0, 1)).clamp(0, 1)
            masked = masked + context.unit(oracle.gradient(at, [k], remember="namea filled"))
            at = context.step(at, context.step_size, masked)
        return context.unit(total) + context.unit(masked) * (1 - masks[-1])

    def _mask(self, oracle: Oracle, x: Tensor, k: int, j: int) -> Tensor:
        """1 where surrogate ``k`` attends at ``x``, else 0: (N, 1, H, W)."""
        height, width = x.shape[2:]
        if self.mask == "none":
            return x.new_zeros(len(x), 1, height, width)
        heat = attention(oracle.tapped(k), x)
        low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
        heat = (heat - low) / (high - low).clamp_min(torch.finfo(heat.dtype).tiny)
        heat = F.interpolate(heat[:, None], (height, width), mode="bilinear", align_corners=False)
        found = (heat >= self.eta).to(x)
        if self.mask == "shifted":
            u = oracle.context.draws.uniform(x.flatten(1)[:, :2], 0, 1, "namea", "shift", j)
            down, right = (u * u.new_tensor([height, width])).long().unbind(1)
            rows = (torch.arange(height, device=x.device) - down[:, None]) % height
            columns = (torch.arange(width, device=x.device) - right[:, None]) % width
            found = found[:, 0].gather(1, rows[:, :, None].expand(-1, -1, width))
            found = found.gather(2, columns[:, None].expand(-1, height, -1))[:, None]
        return found

    def passes(self, surrogates: int, gradients: int) -> Passes:
        inner = self.rounds * surrogates
        every = inner * (2 * gradients + (self.mask != "none"))
        return Passes(every, every)


def attention(surrogate: Tapped, x: Tensor) -> Tensor:
    """Grad-CAM of the label at ``x``: (N, h, w), at least 0; one forward and one backward pass.

    Raises:
        InputError: no layer of the surrogate has enough positions.
    """
    seen = surrogate.run(x.detach())
    layer = _layer(seen.features, x)
    if layer is None:
        raise InputError(f"'namea': no stage of a surrogate ends with {LEAST} positions or more")
    score = seen.logits.gather(1, surrogate.job.y[:, None]).squeeze(1)
    (g,) = surrogate.gradient(score, [seen.features[layer]])
    a, g = (as_map(each.detach(), x) for each in (seen.features[layer], g))
    heat: Tensor = F.relu((g.mean((2, 3), keepdim=True) * a).sum(1))
    return heat


def _layer(features: tuple[Tensor, ...], x: Tensor) -> int | None:
    """The last of some layers whose map is large enough; tokens of the last block are left out."""
    for i in reversed(range(len(features))):
        last_block = i == len(features) - 1 and features[i].dim() == 3
        if not last_block and as_map(features[i], x)[0, 0].numel() >= LEAST:
            return i
    return None


@recipe("namea", symbol="NAMEA", family="fusion", paper=PAPER, year=2026)
def NonAttentive() -> ComposedAttack:
    """Momentum on two walks over shuffled surrogates, one without what these attend to."""
    return ComposedAttack(fusion=NAMEA(), update=MI())
