"""FPR: diversified attention maps, and branches that remember their values."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.blocks import AttentionEdits, attentions, mlp_ends, within
from advens.attacks.surrogates.changes.vit import Batch
from advens.attacks.updates import MI
from advens.fields import NonNegative
from advens.threat import Threat

PAPER = "Ren et al., CVPR 2025 (FPR)"
DEPTHS = (0, 1 / 12, 4 / 12, 9 / 12, 11 / 12)
"""Where the maps are that are diversified: the blocks 0, 1, 4, 9 and 11 of twelve."""


@part("change", "fpr", paper=PAPER, year=2025)
class FPR:
    """Forward propagation refinement: random attention maps, and an exponential mean of branches over steps.

    In five blocks a map A becomes ``softmax(A * M)`` by rows, with M from U(1 - spread, 1 + spread) for every
    head and entry. The value of every attention branch and MLP branch is ``E_t = scale out_t + past E_{t-1}``
    with ``E_0 = scale out_0``; the past has no gradient. Logits change.

    M is drawn for every step and sample. The past is that of a step's first pass, whatever other passes the
    step has; a warm start has a past of its own. Outside an attack nothing is remembered. Published code
    draws M for a batch, and carries the past of one batch into the next.

    Args:
        spread: half the width of M's range.
        scale, past: of the branch's value, and of what it was a step ago.
    """

    spread: NonNegative = 25.0
    scale: NonNegative = 0.8
    past: NonNegative = 0.3

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, ends, batch = attentions(model, "fpr"), mlp_ends(model, "fpr"), Batch()
        handles: list[Handle] = [batch.watch(model)]
        for index in sorted({min(len(found) - 1, round(depth * len(found))) for depth in DEPTHS}):
            edits = AttentionEdits(attention=partial(self._diverse, context, batch, index))
            handles.append(within(model, found[index], "fpr", edits))
        for place, module in enumerate((*found, *ends)):
            handles.append(module.register_forward_hook(partial(self._refined, context, batch, place)))
        return handles

    def _diverse(self, context: ChangeContext, batch: Batch, index: int, a: Tensor) -> Tensor:
        tag = "fpr", index
        m = batch.uniform(context, a, tuple(a.shape[1:]), 1 - self.spread, 1 + self.spread, *tag)
        return (a * m).softmax(-1)

    def _refined(
        self, context: ChangeContext, batch: Batch, place: int, module: nn.Module, args: tuple[Any, ...],
        out: Any,
    ) -> Any:  # fmt: skip
        value: Tensor = out[0] if isinstance(out, tuple) else out
        refined = value * self.scale
        if context.draws is not None:
            step, rows = context.draws.step, context.draws.rows_at_hand
            at, before, now = context.memory.get(("fpr", place), (None, None, None))
            if at != step:
                before = now
            if before is not None:
                refined = refined + self.past * before.repeat(
                    len(value) // len(before), *[1] * (value.dim() - 1)
                )
            if at != step:
                now = refined.detach()[: len(value) * rows // batch.size]  # the first of several candidates
                context.memory["fpr", place] = step, before, now
        return (refined, *out[1:]) if isinstance(out, tuple) else refined


@recipe("fpr", symbol="FPR", family="surrogate", paper=PAPER, year=2025)
def ForwardRefinement() -> ComposedAttack:
    """Momentum on gradients of diversified maps and of branches with a memory; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(FPR(),))
