"""VDC: virtual dense connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.blocks import (
    AttentionEdits,
    attentions,
    blocks,
    mlp_entries,
    within,
)
from advens.attacks.updates import MI
from advens.fields import NonNegative
from advens.threat import Threat

PAPER = "Zhang et al., AAAI 2024 (VDC)"


@part("change", "vdc", paper=PAPER, year=2024)
class VDC:
    """Virtual dense connection: gradients of later blocks are added to those of earlier ones.

    A first backward pass, unchanged, records the gradients A_j at the attention maps and M_j where the
    residual stream enters the MLP branches, j = 0 in the last block, and E at the end of the last block.
    In the second, with ``c_i = strength * decay^i``, the gradient G of block j becomes

    * at the map: ``attention G + sum_{i<j} c_i A_i``;
    * at the entry of the MLP branch: ``mlp G + sum_{i<j} c_i M_i + last E``.

    Logits keep their values. Both passes go through one graph, so that it takes one forward pass and two
    backward passes, which are counted; published code runs twice forward. Where the shape changes, as between
    stages (PiT, Swin), sums begin anew; E is added where it has the shape. In a network that reads
    its class token alone E is that token's. Published for PiT and Visformer with a strength of 0.03.

    Args:
        attention, mlp: what the gradients at the places are multiplied by.
        strength, decay: of the later blocks' gradients.
        last: weight of E.
    """

    OF_LOGITS: ClassVar = "takes a backward pass from the logits first"
    attention: NonNegative = 0.25
    mlp: NonNegative = 0.5
    strength: NonNegative = 0.1
    decay: NonNegative = 0.5
    last: NonNegative = 0.05

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        found, entries = attentions(model, "vdc"), mlp_entries(model, "vdc")
        end, first = blocks(model, "vdc")[-1], _First(self)
        places: dict[str, list[Tensor]] = {"map": [], "mlp": [], "end": []}

        def watched(kind: str, x: Tensor) -> Tensor:
            if not (x.requires_grad and torch.is_grad_enabled()):
                return x
            x = x.view_as(x)
            x.register_hook(partial(first.second, kind, len(places[kind])))
            places[kind].append(x)
            return x

        def enters(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (watched("mlp", args[0]), *args[1:])

        def ends(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            return watched("end", out)

        def answers(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
            if not (out.requires_grad and torch.is_grad_enabled()):
                return out
            answer = out.view_as(out)
            answer.register_hook(partial(first.run, out, places))
            return answer

        edits = AttentionEdits(attention=partial(watched, "map"))
        return [
            *(within(model, each, "vdc", edits) for each in found),
            *(each.register_forward_pre_hook(enters) for each in entries),
            end.register_forward_hook(ends),
            model.register_forward_hook(answers),
        ]


@dataclass
class _First:
    """The first backward pass, and what it adds to the second. It holds gradients, and no graph.

    Args:
        how: the weights.
        running: whether it is the first pass that comes by.
        added: to the gradient at every place of a kind, in the order of the blocks.
    """

    how: VDC
    running: bool = False
    added: dict[str, list[Tensor]] = field(default_factory=dict)

    def run(self, out: Tensor, places: dict[str, list[Tensor]], g: Tensor) -> None:
        """The gradient ``g`` has reached the logits ``out``."""
        tensors = [tensor for kind in places.values() for tensor in kind]
        self.running = True
        try:
            grads = torch.autograd.grad(out, tensors, g, retain_graph=True, materialize_grads=True)
        finally:
            self.running = False
        maps, end = len(places["map"]), grads[-1]
        self.added["map"] = self._later(grads[:maps])
        self.added["mlp"] = [
            total + self.how.last * end if total.shape == end.shape else total
            for total in self._later(grads[maps:-1])
        ]

    def second(self, kind: str, index: int, g: Tensor) -> Tensor | None:
        """The gradient ``g`` at one of the places, in the second pass with what was added."""
        if self.running or kind == "end":
            return None
        scale = self.how.attention if kind == "map" else self.how.mlp
        return scale * g + self.added[kind][index]

    def _later(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """The weighted sum of later gradients, for every one of some."""
        sums: list[Tensor] = []
        total, weight = torch.zeros(()), 0.0
        for g in reversed(grads):
            if total.shape != g.shape:
                total, weight = torch.zeros_like(g), self.how.strength
            sums.append(total)
            total, weight = total + weight * g, weight * self.how.decay
        return sums[::-1]


@recipe("vdc", symbol="VDC", family="surrogate", paper=PAPER, year=2024)
def DenseConnections() -> ComposedAttack:
    """Momentum on gradients to which those of later blocks are added; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(VDC(),))
