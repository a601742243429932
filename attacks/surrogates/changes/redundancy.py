"""Three random changes of a vision transformer's blocks that its redundancy lets pass (LL2S).

What they draw is drawn anew at every step for every block and image. The method draws one of these, or tokens
of the clean image beside the others, for every block by scores that it learns; its scores, clean tokens and
learned tokens are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.surrogates.changes.blocks import AttentionEdits, attentions, mlp_ends, within
from advens.attacks.surrogates.changes.vit import Batch
from advens.fields import Fraction, Several

PAPER = "Liu et al., 2025 (LL2S)"


@part("change", "attn-drop", paper=PAPER, year=2025)
class AttentionDrop:
    """Entries of every attention map become 0 with probability p; the others are not scaled up.

    Args:
        p: probability.
    """

    p: Fraction = 0.4

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, batch = attentions(model, "attn-drop"), Batch()

        def drop(index: int, a: Tensor) -> Tensor:
            return a * (batch.uniform(context, a, tuple(a.shape[1:]), 0, 1, "attn-drop", index) >= self.p)

        edits = [AttentionEdits(attention=partial(drop, index)) for index in range(len(found))]
        inside = [within(model, each, "attn-drop", edit) for each, edit in zip(found, edits, strict=True)]
        return [batch.watch(model), *inside]


@part("change", "head-shuffle", paper=PAPER, year=2025)
class HeadShuffle:
    """With probability p, some heads of a block exchange their attention maps; values stay with their heads.

    Args:
        p: probability that a block's maps are exchanged.
        share: of the heads that take part, rounded down.
    """

    p: Fraction = 0.5
    share: Fraction = 0.45

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, batch = attentions(model, "head-shuffle"), Batch()

        def shuffle(index: int, a: Tensor) -> Tensor:
            heads = a.shape[1]
            u = batch.uniform(context, a, (1 + 2 * heads,), 0, 1, "head-shuffle", index)
            some = u[:, 1 : 1 + heads].argsort(1)[:, : int(self.share * heads)]  # those that take part
            among = u[:, 1 + heads :].gather(1, some).argsort(1)
            order = torch.arange(heads, device=a.device).expand(len(a), -1)
            moved = order.scatter(1, some, some.gather(1, among))
            order = torch.where(u[:, :1] < self.p, moved, order)
            return a.gather(1, order[:, :, None, None].expand_as(a))

        edits = [AttentionEdits(attention=partial(shuffle, index)) for index in range(len(found))]
        inside = [within(model, each, "head-shuffle", edit) for each, edit in zip(found, edits, strict=True)]
        return [batch.watch(model), *inside]


@part("change", "ghost-mlp", paper=PAPER, year=2025)
class GhostMLP:
    """Every MLP is the mean of two to five copies of itself, whose hidden activations are dropped.

    What follows the hidden activations is linear, so that one copy is computed, with the mean of the masks.
    Activations that are kept are not scaled up.

    Args:
        p: probability that an activation is dropped.
        most: the largest number of copies; the smallest is 2.
    """

    p: Fraction = 0.3
    most: Several = 5

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, batch = mlp_ends(model, "ghost-mlp"), Batch()

        def drop(index: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            h: Tensor = args[0]
            u = batch.uniform(context, h, (1,), 0, 1, "ghost-mlp", index)
            copies = (2 + u * (self.most - 1)).floor().view(-1, *[1] * (h.dim() - 1))
            kept = torch.zeros_like(h)
            for k in range(self.most):
                u = batch.uniform(context, h, tuple(h.shape[1:]), 0, 1, "ghost-mlp", index, k)
                kept += (u >= self.p) & (k < copies)
            return (h * kept / copies, *args[1:])

        hooks = [end.register_forward_pre_hook(partial(drop, k)) for k, end in enumerate(found)]
        return [batch.watch(model), *hooks]
