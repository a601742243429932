"""TGR: token gradients without their extremes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.hooks import on_gradient
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.blocks import AttentionEdits, attentions, mlp_ends, within
from advens.attacks.updates import MI
from advens.fields import Fraction
from advens.threat import Threat

PAPER = "Zhang et al., CVPR 2023 (TGR)"


@part("change", "tgr", paper=PAPER, year=2023)
class TGR:
    """Token gradient regularisation: in every block gradients lose their extremes and are scaled.

    * at the attention map, per head: the rows and columns in which the largest and the smallest
      value of the gradient stand become 0; a map of one row (a class token's) loses columns only;
    * at q, k and v, and at the MLP's value, per channel: the tokens with the largest and the smallest
      value become 0.

    Then the gradient is multiplied by the place's scale. Logits keep their values. An MLP or a query
    that sees one token only (CaiT's class blocks) loses all of its gradient, as published.

    Published code looks for extremes in the first image of a batch and zeroes them in all; here every
    image has its own. Its hook on the dropout after the softmax, which passes its input on, acts on the
    softmax: on the gradient of the scores in ViT, where here it is the map's. In CaiT it leaves the
    first class block alone and compares heads instead of tokens in the second; here the class blocks
    are treated as the others are. Our choices: q, k and v are taken as attention multiplies them,
    after norms and rotations; where tokens come in windows (Swin) every window has its own extremes.

    Args:
        attention, qkv, mlp: scales, from 0 to 1; the defaults are the published code's.
    """

    attention: Fraction = 0.25
    qkv: Fraction = 0.75
    mlp: Fraction = 0.5

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        def qkv(x: Tensor) -> Tensor:
            return watched(x, lambda g: without_tokens(g, self.qkv))

        def scores(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            return qkv(q), qkv(k)

        def attention(a: Tensor) -> Tensor:
            return watched(a, lambda g: without_crosses(g, self.attention))

        def mlp(module: nn.Module, args: tuple[Any, ...], value: Tensor) -> None:
            dim = 1 if isinstance(module, nn.Conv2d) else -1
            on_gradient(value, lambda g: per_channel(g, dim, self.mlp))

        found, ends = attentions(model, "tgr"), mlp_ends(model, "tgr")  # refused before anything is changed
        edits = AttentionEdits(scores=scores, attention=attention, values=qkv)
        handles = [within(model, each, "tgr", edits) for each in found]
        return [*handles, *(end.register_forward_hook(mlp) for end in ends)]


def without_tokens(g: Tensor, scale: float = 1.0) -> Tensor:
    """A gradient (..., tokens, channels), scaled, and 0 at every channel's largest and smallest value."""
    out = g * scale
    for extreme in (g.max(-2, keepdim=True), g.min(-2, keepdim=True)):  # argmax takes three times as long
        out.scatter_(-2, extreme.indices, 0)
    return out


def without_crosses(g: Tensor, scale: float = 1.0) -> Tensor:
    """A map's gradient (..., rows, columns), scaled, and 0 in the rows and columns of both extremes."""
    rows, columns = g.shape[-2:]
    maps = g.reshape(-1, rows, columns)
    out, each = maps * scale, torch.arange(len(maps), device=g.device)
    # the first row that has the extreme, then its place there: faster than looking for the place at once
    for row, place in (
        (maps.amax(-1).max(-1).indices, torch.max), (maps.amin(-1).min(-1).indices, torch.min)
    ):  # fmt: skip
        out[each, :, place(maps[each, row], -1).indices] = 0
        if rows > 1:
            out[each, row] = 0
    return out.view_as(g)


def per_channel(g: Tensor, dim: int, scale: float) -> Tensor:
    """The same for tokens in a grid, with channels in a dimension of their own."""
    last = g.movedim(dim, -1)
    return without_tokens(last.flatten(1, -2), scale).view_as(last).movedim(-1, dim)


def watched(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """``x``, with a change to the gradient that flows back through this use of it."""
    x = x.view_as(x)
    on_gradient(x, change)
    return x


@recipe("tgr", symbol="TGR", family="surrogate", paper=PAPER, year=2023)
def TokenGradientRegularization() -> ComposedAttack:
    """Momentum on token gradients without their extremes; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(TGR(),))
