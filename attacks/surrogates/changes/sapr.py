"""SAPR: attention sees the patches in another order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.blocks import attentions
from advens.attacks.surrogates.changes.sgm import called
from advens.attacks.surrogates.changes.vit import Batch
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import Fraction
from advens.threat import Threat

PAPER = "Zhou et al., 2022 (SAPR)"


@part("change", "sapr", paper=PAPER, year=2022)
class SAPR:
    """Self-attention patches restructure: with probability p, a block's attention gets permuted tokens.

    What enters the attention is permuted, after its norm; the residual stream is not, so that what attention
    gives for a token is added to another. Class and other prefix tokens stay. Whether, and how, is drawn for
    every step, block and sample; published code has one permutation for the batch. All windows of an image
    share a permutation.

    Args:
        p: probability that the tokens of a block are permuted.
    """

    p: Fraction = 0.15

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, batch = attentions(model, "sapr"), Batch()
        prefix, patches = prefix_tokens(model), _patches(model)

        def permuted(index: int, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            tokens: Tensor = args[0]
            if tokens.dim() != 3:
                raise InputError(f"'sapr': attention of {called(model)} is not over a row of tokens")
            first = 0 if tokens.shape[1] == patches else prefix  # CaiT's class token comes later
            count = tokens.shape[1] - first
            drawn = batch.uniform(context, tokens, (count + 1,), 0, 1, "sapr", index)
            order = drawn[:, 1:].argsort(1) + first
            kept = torch.arange(first, tokens.shape[1], device=tokens.device).expand_as(order)
            order = torch.where(drawn[:, :1] < self.p, order, kept)
            moved = tokens.gather(1, order[..., None].expand(-1, -1, tokens.shape[2]))
            moved = torch.cat([tokens[:, :first], moved], 1)
            return tuple(moved if each is tokens else each for each in args)

        hooks = [each.register_forward_pre_hook(partial(permuted, k)) for k, each in enumerate(found)]
        return [batch.watch(model), *hooks]


def prefix_tokens(model: nn.Module) -> int:
    """How many class, distillation and register tokens stand before those of the patches."""
    for module in model.modules():
        if isinstance(count := getattr(module, "num_prefix_tokens", None), int):
            return count
        if isinstance(getattr(module, "class_token", None), Tensor):  # torchvision
            return 1
    return 0


def _patches(model: nn.Module) -> int | None:
    counts = (getattr(module, "num_patches", None) for module in model.modules())
    return next((count for count in counts if isinstance(count, int)), None)


@recipe("sapr", symbol="SAPR", family="surrogate", paper=PAPER, year=2022)
def PatchOrder() -> ComposedAttack:
    """Momentum on gradients with patches in another order; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(SAPR(),))
