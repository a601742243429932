"""The three augmentations of ViT-EnsembleAttack: a vision transformer that is slightly another one.

What they draw is drawn anew at every step for every block and image, and is the same for all passes
of a step, forward and backward. The abstract names the three; formulas and ranges are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.surrogates.changes.blocks import AttentionEdits, attentions, mlp_ends, within
from advens.fields import Fraction, Half

PAPER = "Cao et al., ICCV 2025 (ViT-EnsembleAttack)"


@dataclass
class Batch:
    """How many images a network is looking at."""

    size: int = 0

    def watch(self, model: nn.Module) -> Handle:
        """Note it whenever ``model`` runs."""

        def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.size = len(args[0])

        return model.register_forward_pre_hook(begin)

    def uniform(
        self, context: ChangeContext, like: Tensor, shape: tuple[int, ...], low: float, high: float,
        *tag: object,
    ) -> Tensor:  # fmt: skip
        """U(low, high), ``shape`` numbers for each row of ``like``: all windows of an image share them."""
        empty = torch.empty(self.size, *shape, dtype=like.dtype, device=like.device)
        drawn = context.uniform(empty, low, high, *tag)
        windows = len(like) // self.size
        return drawn if windows == 1 else drawn.repeat_interleave(windows, 0)


@part("change", "head-drop", paper=PAPER, year=2025)
class HeadDrop:
    """Every head of every block is left out with probability p, the others are divided by 1 - p.

    This happens to what the heads give, before the projection.

    Args:
        p: from 0, which changes nothing, to 0.5.
    """

    p: Half = 0.1

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, batch = attentions(model, "head-drop"), Batch()
        if self.p == 0:
            return ()

        def drop(index: int, out: Tensor) -> Tensor:
            u = batch.uniform(context, out, (out.shape[1],), 0, 1, "head-drop", index)
            return out * ((u >= self.p).to(out.dtype) / (1 - self.p))[:, :, None, None]

        inside = [
            within(model, each, "head-drop", AttentionEdits(heads=partial(drop, index)))
            for index, each in enumerate(found)
        ]
        return [batch.watch(model), *inside]


@part("change", "score-scale", paper=PAPER, year=2025)
class ScoreScale:
    """The products q k^T of every block are multiplied by a factor from U(1 - s, 1 + s).

    It multiplies q, so attention may stay fused. Position biases and the masks of shifted windows
    are added afterwards, unscaled: a mask that is scaled down would let windows see each other.

    Args:
        s: from 0, which changes nothing, to 1.
    """

    s: Fraction = 0.2

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, batch = attentions(model, "score-scale"), Batch()
        if self.s == 0:
            return ()

        def scale(index: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
            tag = "score-scale", index
            return q * batch.uniform(context, q, (1, 1, 1), 1 - self.s, 1 + self.s, *tag), k

        inside = [
            within(model, each, "score-scale", AttentionEdits(scores=partial(scale, index)))
            for index, each in enumerate(found)
        ]
        return [batch.watch(model), *inside]


@part("change", "token-mix", paper=PAPER, year=2025)
class TokenMix:
    """In every MLP ``h <- (1 - m) h + m h[perm]``, perm over all the tokens of the same image.

    h is the hidden activation. What follows it is linear, token by token, so the same mixture of the
    MLP's value is taken instead: equal, at a quarter of the width. Class tokens take part.

    Args:
        m: from 0, which changes nothing, to 0.5.
    """

    m: Half = 0.1

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, batch = mlp_ends(model, "token-mix"), Batch()
        if self.m == 0:
            return ()

        def mix(index: int, module: nn.Module, args: tuple[Any, ...], value: Tensor) -> Tensor:
            channels = 1 if isinstance(module, nn.Conv2d) else -1
            last = value.movedim(channels, -1)
            tokens = last.reshape(batch.size, -1, last.shape[-1])
            like, count = tokens[..., 0], tokens.shape[1]
            perm = batch.uniform(context, like, (count,), 0, 1, "token-mix", index).argsort(1)
            first = torch.arange(0, like.numel(), count, device=value.device)[:, None]
            other = tokens.flatten(0, 1).index_select(0, (first + perm).flatten()).view_as(tokens)
            return tokens.lerp(other, self.m).view_as(last).movedim(-1, channels)

        hooks = [end.register_forward_hook(partial(mix, i)) for i, end in enumerate(found)]
        return [batch.watch(model), *hooks]
