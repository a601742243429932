"""ATT: adaptive token tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.attack import ComposedAttack
from advens.attacks.hooks import on_gradient
from advens.attacks.interfaces import ChangeContext, Handle, Job
from advens.attacks.layers import as_map
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.blocks import (
    AttentionEdits,
    attentions,
    blocks,
    mlp_ends,
    within,
)
from advens.attacks.surrogates.changes.tgr import (
    per_channel,
    watched,
    without_crosses,
    without_tokens,
)
from advens.attacks.updates import MI
from advens.fields import Fraction, NonNegative
from advens.threat import Threat

PAPER = "Ming et al., NeurIPS 2024 (ATT)"


@part("change", "att", paper=PAPER, year=2024)
class ATT:
    """TGR whose extremes are scaled by how much the gradient varies, and patches left out by importance.

    Gradients G at the attention map, at q, k and v and at the MLP's value are multiplied by the place's
    scale, and TGR's extremes (tokens of every channel; rows and columns of a map) by
    ``f = clip(gamma + slope (1 - std G / std G_later), 0, 1)`` besides, with the standard deviations of a
    sample's gradient at this place and at that of the block behind; f = gamma in the last. Maps of the last
    blocks, ``truncated`` of all, have no gradient.

    Once, at the clean image, a patch has the importance ``sum_channels F dsum(z)/dF`` at the end of a block,
    the eleventh of twelve; it goes linearly to s from ``least`` to ``most``, image by image. In step t of T
    the surrogate sees a patch of x' with probability ``first - (first - s) (t + 1) / T``, else that of the
    clean image, not transformed. This takes a forward and a backward pass. What is seen is drawn for every
    step, sample and patch.

    Published code takes extremes from the first image of a batch and deviations over the batch, and compares
    with the gradient behind as it was after tuning; its port leaves no patches out, and changes no map where
    attention is fused. Our choices: q, k and v each have a deviation of their own, and an entry in two
    extremes is scaled once.

    Args:
        attention, qkv, mlp: scales.
        gamma, slope: of f.
        truncated: share of the blocks, the last ones, whose maps have no gradient.
        least, most: the range of s.
        first: the probability that a patch is seen at the beginning.
    """

    attention: Fraction = 0.45
    qkv: Fraction = 0.7
    mlp: Fraction = 0.65
    gamma: Fraction = 0.5
    slope: NonNegative = 0.01
    truncated: Fraction = 1 / 6
    least: Fraction = 0.4
    most: Fraction = 0.8
    first: Fraction = 0.99

    @property
    def views(self) -> int:
        return 1

    def clean(self, job: Job, i: int) -> Tensor:
        return job.x

    def ask(self, logits: Tensor, context: ChangeContext) -> None:
        f, x = context.kept.pop("att features"), context.kept["att"]
        (g,) = torch.autograd.grad(logits.sum(), f)
        heat = (as_map(f.detach(), x) * as_map(g, x)).sum(1)
        low, high = heat.amin((1, 2), keepdim=True), heat.amax((1, 2), keepdim=True)
        share = (heat - low) / (high - low).clamp_min(torch.finfo(heat.dtype).tiny)
        context.kept["att seen"] = self.least + (self.most - self.least) * share

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, ends, every = attentions(model, "att"), mlp_ends(model, "att"), blocks(model, "att")
        if context.shown is not None:
            guide = every[math.ceil(11 / 12 * len(every)) - 1]
            return [
                model.register_forward_pre_hook(partial(_keep, context)),
                guide.register_forward_hook(partial(_begin, context)),
            ]
        sizes = _Sizes(self)
        kept = len(found) - round(self.truncated * len(found))
        handles: list[Handle] = [model.register_forward_pre_hook(partial(self._leave_out, context, sizes))]
        for index, each in enumerate(found):
            edits = AttentionEdits(
                scores=partial(_both, sizes.tuned, index),
                attention=partial(sizes.tuned_map, index) if index < kept else _truncated,
                values=partial(sizes.tuned, "v", index),
            )
            handles.append(within(model, each, "att", edits))
        for index, end in enumerate(ends):
            handles.append(end.register_forward_hook(partial(sizes.at_mlp, index)))
        return handles

    def _leave_out(
        self, context: ChangeContext, sizes: _Sizes, module: nn.Module, args: tuple[Any, ...]
    ) -> tuple[Any, ...] | None:
        sizes.batch = len(args[0])
        if context.draws is None or "att seen" not in context.kept:
            return None
        x, share = args[0], context.kept["att seen"]
        passed = min(1.0, max(0, context.draws.step + 1) / context.steps)
        seen = self.first - (self.first - share) * passed
        times = len(x) // len(share)
        drawn = context.uniform(seen.repeat(times, 1, 1), 0, 1, "att")
        mask = (drawn <= seen.repeat(times, 1, 1)).to(x.dtype)[:, None]
        clean = context.kept["att"].repeat(times, 1, 1, 1)
        return (torch.where(F.interpolate(mask, x.shape[-2:]) > 0, x, clean), *args[1:])


class _Sizes:
    """How much gradients vary, by place and block, in one backward pass; and what follows from it.

    Args:
        how: scales.
    """

    def __init__(self, how: ATT) -> None:
        self.how, self.batch = how, 1
        self._seen: dict[tuple[str, int], Tensor] = {}

    def tuned(self, place: str, index: int, x: Tensor) -> Tensor:
        """q, k or v, (rows, heads, tokens, d)."""
        return watched(x, partial(self._change, without_tokens, place, index, self.how.qkv))

    def tuned_map(self, index: int, a: Tensor) -> Tensor:
        """An attention map, (rows, heads, tokens, tokens)."""
        return watched(a, partial(self._change, without_crosses, "map", index, self.how.attention))

    def at_mlp(self, index: int, module: nn.Module, args: tuple[Any, ...], value: Tensor) -> None:
        """A hook on the last linear map of an MLP."""
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        rest = partial(per_channel, dim=dim, scale=1.0)
        on_gradient(value, partial(self._change, rest, "mlp", index, self.how.mlp))

    def _change(
        self, without: Callable[[Tensor], Tensor], place: str, index: int, scale: float, g: Tensor
    ) -> Tensor:
        size = _deviation(g.reshape(self.batch, -1))
        later, self._seen[place, index] = self._seen.get((place, index + 1)), size
        how = self.how
        f = torch.full_like(size, how.gamma)
        if later is not None:
            ratio = torch.where(later > 0, size / later, 1.0)
            f = (how.gamma + how.slope * (1 - ratio)).clamp(0, 1)
        rest = without(g)
        f = f.repeat_interleave(len(g) // self.batch).view(-1, *[1] * (g.dim() - 1))
        return scale * (rest + f * (g - rest))


def _deviation(g: Tensor) -> Tensor:
    """Standard deviation of every row, of gradients however small."""
    top = g.abs().amax(1).clamp_min(torch.finfo(g.dtype).tiny)
    return (g / top[:, None]).std(1, correction=0) * top


def _both(
    tuned: Callable[[str, int, Tensor], Tensor], index: int, q: Tensor, k: Tensor
) -> tuple[Tensor, Tensor]:
    return tuned("q", index, q), tuned("k", index, k)


def _truncated(a: Tensor) -> Tensor:
    return a.detach()


def _keep(context: ChangeContext, module: nn.Module, args: tuple[Any, ...]) -> None:
    context.kept["att"] = args[0].detach()


def _begin(context: ChangeContext, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
    context.kept["att features"] = f = out.detach().requires_grad_()
    return f.clone()


@recipe("att", symbol="ATT", family="surrogate", paper=PAPER, year=2024)
def AdaptiveTokens() -> ComposedAttack:
    """Momentum on tuned token gradients, with unimportant patches left out; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(ATT(),))
