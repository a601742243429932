"""ILA: intermediate level attack."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import PlainValidator
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.parts import changed, from_spec, part
from advens.attacks.registry import create_attack, recipe
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI
from advens.fields import Positive
from advens.threat import Threat, unit_l2

PAPER = "Huang et al., ICCV 2019 (ILA), arXiv 1907.10823"


def _composed(spec: Any) -> ComposedAttack:
    attack = create_attack(spec) if isinstance(spec, str) else from_spec("attack", spec)
    if not isinstance(attack, ComposedAttack):
        raise ValueError("an attack that is composed of parts")
    return attack


First = Annotated[ComposedAttack, PlainValidator(_composed)]
"""An attack whose iterates another one begins with: its name, a table or the attack itself."""


@part("feature", "ila", paper=PAPER, year=2019)
class ILA:
    """The displacement of a first attack's features is followed: ascend ``<F(x') - F(x), v>``.

    ``v = F(x_1) - F(x)`` for the images x_1 of the first attack, which is on all surrogates together, in the
    same ball and with random numbers of its own; its goal is that of this attack. The second attack begins
    at x again. v is divided by its l_2 norm, for each sample and surrogate. x and x_1 are not transformed.
    Nothing else is drawn.

    With ``objective="flexible"`` the displacement D = F(x') - F(x) has its length and its angle weighed
    against each other: ascend ``alpha |D| / |v| + <D, v> / (|D| |v|)``. At x, where D has no angle, its
    gradient is that of the projection.

    Args:
        layer: depth of the layer, 0.5 for the end of the second of four stages, or the name of a module.
        first: the first attack; its ball is that of the attack it is part of.
        objective: ``projection``, or ``flexible``.
        alpha: weight of the length.
    """

    layer: Layer = 0.5
    first: First = ComposedAttack(update=MI())
    objective: Literal["projection", "flexible"] = "projection"
    alpha: Positive = 1.0

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        if "F" in surrogate.memory:
            return
        *_, there = walked(surrogate, self.first)
        with torch.no_grad():
            clean, f = (surrogate.run(x).features[0] for x in (surrogate.job.x, there))
        surrogate.memory["F"], surrogate.memory["v"] = clean, unit_l2(f - clean)
        surrogate.memory["length"] = _length(f - clean)

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        first = self.first.passes(surrogates)
        return Passes(first.forward + 2 * surrogates, first.backward)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        moved = seen.features[0] - surrogate.memory["F"]
        along: Tensor = (moved * surrogate.memory["v"]).flatten(1).sum(1)
        if self.objective == "projection":
            return along
        length, of_first = _length(moved), surrogate.memory["length"]
        both: Tensor = self.alpha * length / of_first + along / length
        return both


def walked(surrogate: Tapped, first: ComposedAttack) -> list[Tensor]:
    """The iterates of a first attack in the ball at hand."""
    return surrogate.first(changed(first, threat=surrogate.context.threat))


def _length(moved: Tensor) -> Tensor:
    """l_2 norm (N,), above 0 and with a gradient of 0 at 0."""
    squares = moved.flatten(1).square().sum(1)
    length: Tensor = (squares + torch.finfo(moved.dtype).tiny ** 0.5).sqrt()
    return length


@recipe("ila", symbol="ILA", family="feature", paper=PAPER, year=2019)
def IntermediateLevel() -> ComposedAttack:
    """Signs along the displacement of features that momentum leads to; eps 16/255, 10 and 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), fusion=EnsLoss(), feature=ILA())
