"""FTM: feature tuning mixup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.filters import TI
from advens.attacks.hooks import on_gradient
from advens.attacks.interfaces import ChangeContext, Handle
from advens.attacks.losses import TargetLogit
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.surrogates.changes.cfm import CFM, Mixing, Place
from advens.attacks.transforms.rdi import RDI
from advens.attacks.updates import MI
from advens.fields import NonNegative

PAPER = "Liang et al., CVPR 2025 (FTM)"


@part("change", "ftm", couples="shard", paper=PAPER, year=2025)
class FTM(CFM):
    """Feature tuning mixup: CFM, and perturbations P of its layers' features that work against the attack.

    Where CFM may mix, in every step and layer, ``F <- F + beta |F| / |P| P`` for each sample, with P = 0 at
    first; then the layers that are drawn are mixed as in `cfm`. After the step they alone renew theirs:
    ``P <- P - dL/dP``, where L is what the attack ascends and the ratio of norms is held constant. The
    gradient comes from the backward pass of the attack; of several in a step, it is their sum.

    The ratio has no value at P = 0, where the gradient by ``beta |F| / |P| P`` is taken instead. Published
    code divides by 1e-7 there, after which P would hardly turn any more. But it never asks for the gradient
    by P, which stays 0: what it runs is CFM (``tuned=False``). FTM-E, two perturbations whose gradients are
    averaged, is this attack with every surrogate given twice.

    Args:
        p: probability that a layer is mixed, and its perturbation renewed.
        strength: the largest a.
        partners: how many other images; with 0 it is the image itself.
        beta: length of the perturbation, relative to the features'.
        tuned: whether P is learned; without it, this is CFM.
    """

    beta: NonNegative = 0.01
    tuned: bool = True

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        mixing = Mixing(context, self)
        if self.tuned and context.draws is not None:
            mixing.tuned = partial(self._perturbed, mixing)
        return mixing.attach(model)

    def _perturbed(self, mixing: Mixing, place: Place, out: Tensor, drawn: bool) -> Tensor:
        """``F + beta |F| / |P| P``; where the layer is drawn, dL/dP is noted when it is known."""
        draws, rows = mixing.context.draws, out.detach().reshape(mixing.batch.size, -1)
        assert draws is not None
        own: Perturbation = mixing.context.memory.setdefault(place, Perturbation(draws.rows_at_hand))
        own.begin(draws.step)
        ratio = torch.ones_like(rows[:, :1])
        if own.value is not None:
            p = own.value.repeat(len(rows) // own.rows, 1)
            size = _norm(p)
            ratio = torch.where(size > 0, self.beta * _norm(rows) / size, ratio)
            out = out + (ratio * p).view_as(out)
        if drawn:
            out = out.view_as(out)  # the gradient here, not that of other uses
            on_gradient(out, partial(own.note, ratio))
        return out


@dataclass
class Perturbation:
    """P of one layer (N, features), and ``dL/dP`` of the step at hand as far as it is known.

    Args:
        rows: N.
    """

    rows: int
    value: Tensor | None = None
    step: int = -1
    noted: Tensor | None = None

    def begin(self, step: int) -> None:
        """Renew P by the gradient of the step before."""
        if step != self.step and self.noted is not None:
            self.value = -self.noted if self.value is None else self.value - self.noted
            self.noted = None
        self.step = step

    def note(self, ratio: Tensor, g: Tensor) -> None:
        """Add the gradient of a pass; a batch may hold every sample several times."""
        found = (ratio * g.reshape(len(ratio), -1)).view(-1, self.rows, g.numel() // len(ratio)).sum(0)
        self.noted = found if self.noted is None else self.noted + found


def _norm(rows: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return size


@recipe("ftm", symbol="FTM", family="targeted", couples="shard", paper=PAPER, year=2025)
def FeatureTuningMixup() -> ComposedAttack:
    """CFM with perturbed features, whose perturbations work against the attack; 299 steps of eps/8.

    The attack is published for targets; without them it descends the label's logit.
    """
    return ComposedAttack(
        update=MI(), loss=TargetLogit(), steps=299, step_size=StepSize("eps/8"), transforms=(RDI(),),
        filters=(TI(size=5),), changes=(FTM(),),
    )  # fmt: skip
