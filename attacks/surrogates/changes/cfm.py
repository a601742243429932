"""CFM: clean feature mixup."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.filters import TI
from advens.attacks.interfaces import ChangeContext, Handle, Job
from advens.attacks.losses import TargetLogit
from advens.attacks.parts import name_of, part
from advens.attacks.registry import recipe
from advens.attacks.steps import StepSize
from advens.attacks.surrogates.changes.sgm import called
from advens.attacks.surrogates.changes.vit import Batch
from advens.attacks.transforms.everywhere import Everywhere
from advens.attacks.transforms.rdi import RDI
from advens.attacks.transforms.shrink import Shrink
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import Fraction, Whole

PAPER = "Byun et al., CVPR 2023 (CFM)"



@part("change", "cfm", couples="shard", paper=PAPER, year=2023)
class CFM:
    """Clean feature mixup: outputs of layers become ``(1 - a) F(x') + a F(o)``, with o another clean image.

    Layers are all linear layers, and the convolutions whose output is at most a quarter as wide as the
    network's input. In every step each is mixed with probability p, for all samples alike; ``a`` comes from
    U(0, strength) for every sample and channel. No gradient flows through F(o): the attack competes with it.
    Features of o are computed once a run and without transforms, so that positions do not match
    where x' is transformed.

    Published code draws a permutation of the batch for every layer and step. Here every sample has
    ``partners`` images of its own, drawn from the shard once a run, and one of them is drawn for every
    layer, step and sample: which samples share a micro-batch changes nothing, and memory holds the features
    of so many images for each sample. In transformers channels are the last dimension, where published code
    takes tokens for channels.

    Args:
        p: probability that a layer is mixed.
        strength: the largest a.
        partners: how many other images; with 0 it is the image itself.
    """

    p: Fraction = 0.1
    strength: Fraction = 0.75
    partners: Whole = 1

    @property
    def views(self) -> int:
        return max(1, self.partners)

    def clean(self, job: Job, i: int) -> Tensor:
        return partner(job, i) if self.partners else job.x

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        return Mixing(context, self).attach(model)


def partner(job: Job, i: int) -> Tensor:
    """Other clean images of the shard, (N, C, H, W): number i of each sample."""
    others = job.draws.others("cfm", "partner", i).to(job.pool.device)
    return job.pool[others].to(job.x.device)


Place = tuple[str, int, int]
"""A change, a layer by its number, and how often it has run in a forward pass."""

Tuned = Callable[[Place, Tensor, bool], Tensor]
"""What comes between a layer's output and the mix, (place, output, whether it is mixed) -> output."""


@dataclass
class Mixing:
    """The hooks of `CFM` on one surrogate for one forward pass.

    Args:
        context: where clean features are kept.
        how: how much is mixed.
        tuned: what is done before, where clean features are known.
    """

    context: ChangeContext
    how: CFM
    tuned: Tuned | None = None
    batch: Batch = field(default_factory=Batch)
    _width: int = 0
    _chosen: list[bool] = field(default_factory=list)
    _runs: dict[int, int] = field(default_factory=dict)

    def attach(self, model: nn.Module) -> list[Handle]:
        layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
        whose = name_of(self.how)
        if not layers:
            raise InputError(f"'{whose}' finds neither convolution nor linear layer in {called(model)}")
        self._chosen = (self.context.numbers(len(layers), 0, 1, "cfm") < self.how.p).tolist()
        act = self._mix if self.context.shown is None else self._keep
        inside: nn.Module = getattr(model, "net", model)  # behind a resize to the network's size
        hooks = [layer.register_forward_hook(partial(act, i)) for i, layer in enumerate(layers)]
        return [self.batch.watch(model), inside.register_forward_pre_hook(self._begin), *hooks]

    def _begin(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._width = args[0].shape[-1]
        self._runs.clear()

    def _place(self, i: int) -> Place:
        self._runs[i] = self._runs.get(i, 0) + 1
        return name_of(self.how), i, self._runs[i]

    def _keep(self, i: int, layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        place, narrow = self._place(i), isinstance(layer, nn.Linear) or 4 * out.shape[-1] <= self._width
        if narrow and len(out) % self.batch.size == 0:  # made of samples
            self.context.kept.setdefault(place, []).append(out.clone())

    def _mix(self, i: int, layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        place = self._place(i)
        clean: list[Tensor] = self.context.kept.get(place, [])
        if not clean:
            return None
        if self.tuned is not None:
            out = self.tuned(place, out, self._chosen[i])
        return out.lerp(*self._other(place, layer, out, clean)) if self._chosen[i] else out

    def _other(
        self, place: Place, layer: nn.Module, out: Tensor, clean: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Clean features for every row of ``out``, and a."""
        times, tag = len(out) // len(clean[0]), place[1:]
        each = torch.stack([f.repeat(times, *[1] * (f.dim() - 1)) for f in clean])
        which = self.batch.uniform(self.context, out, (), 0, len(clean), "cfm", "which", *tag).long()
        other = each[which.clamp_max(len(clean) - 1), torch.arange(len(out), device=out.device)]
        at = 1 if isinstance(layer, nn.Conv2d) else out.dim() - 1  # the dimension of channels
        channels = [size if dim == at else 1 for dim, size in enumerate(out.shape)][1:]
        a = self.batch.uniform(self.context, out, tuple(channels), 0, self.how.strength, "cfm", *tag)
        return other, a


@recipe("cfm", symbol="CFM", family="targeted", couples="shard", paper=PAPER, year=2023)
def CleanFeatureMixup() -> ComposedAttack:
    """Momentum on the target's logit with other images' features mixed in, RDI and TI; 299 steps of eps/8.

    The attack is published for targets; without them it descends the label's logit.
    """
    return ComposedAttack(
        update=MI(), loss=TargetLogit(), steps=299, step_size=StepSize("eps/8"), transforms=(RDI(),),
        filters=(TI(size=5),), changes=(CFM(),),
    )  # fmt: skip


@recipe(
    "everywhere-cfm", symbol="EverywhereCFM", family="targeted", couples="shard",
    paper="Zeng et al., AAAI 2025 (Everywhere)", year=2025,
)  # fmt: skip
def EverywhereMixup() -> ComposedAttack:
    """CFM on the image and four of its nine regions alone; 299 steps of eps/10, five passes each.

    Published code mixes into the view of a region what another image has there, from nine more passes before
    the first step; here clean features are those of the whole image, whatever the view. The attack is
    published for targets; without them it descends the label's logit.
    """
    return ComposedAttack(
        update=MI(), loss=TargetLogit(), steps=299, step_size=StepSize("eps/10"), filters=(TI(size=5),),
        transforms=(Everywhere(), Shrink(rate=195 / 224)), changes=(CFM(),),
    )  # fmt: skip
