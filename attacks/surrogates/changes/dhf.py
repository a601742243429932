"""DHF: diversifying the high-level features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import ChangeContext, Handle, Job
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.surrogates.changes.sgm import called, residual_blocks
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.fields import Fraction
from advens.threat import Threat

PAPER = "Wang et al., BMVC 2023 (DHF)"


@part("change", "dhf", paper=PAPER, year=2023)
class DHF:
    """Features of samples that are misclassified already are mixed with clean ones and replaced by means.

    After every norm in the deeper residual blocks, ``F <- (1 - eta) F + eta F(x)`` with eta from U(0, mix)
    for every entry; then every entry is replaced by the mean of its sample's F with probability ``replace``.
    It is done for samples that this surrogate gave another class than the label in the first pass of the
    step before, and not in the first step. The features of the clean image are found once, in one pass, and
    not transformed. What is drawn is drawn for every step, sample and entry.

    Published for ResNets. Any network whose residual blocks have norms is changed alike, tokens included.

    Args:
        mix: the largest eta.
        replace: probability.
        depth: the fraction of the residual blocks that are left alone. The default is where published code
            begins in a ResNet-18 and in a ResNet-50.
    """

    mix: Fraction = 0.2
    replace: Fraction = 0.1
    depth: Fraction = 1 / 6

    @property
    def views(self) -> int:
        return 1

    def clean(self, job: Job, i: int) -> Tensor:
        return job.x

    def attach(self, model: nn.Module, context: ChangeContext) -> Sequence[Handle]:
        norms = self._norms(model)
        begin = model.register_forward_pre_hook(partial(_begin, context))
        act = partial(self._mixed, context) if context.shown is None else partial(_keep, context)
        hooks = [norm.register_forward_hook(partial(act, i)) for i, norm in enumerate(norms)]
        return [begin, *hooks, model.register_forward_hook(partial(_end, context))]

    def _norms(self, model: nn.Module) -> list[nn.Module]:
        blocks = residual_blocks(model)
        deep = blocks[int(self.depth * len(blocks) + 1e-9) :]
        inside = dict.fromkeys(module for block in deep for module in block.module.modules())
        norms = [module for module in inside if "Norm" in type(module).__name__]
        if not norms:
            raise InputError(f"'dhf' finds no norm in a residual block of {called(model)}")
        return norms

    def _mixed(
        self, context: ChangeContext, i: int, module: nn.Module, args: tuple[Any, ...], out: Tensor
    ) -> Tensor | None:
        wrong, clean = context.memory.get("dhf wrong"), context.kept.get(("dhf", i))
        if context.draws is None or wrong is None or clean is None:
            return None
        times, ones = len(out) // len(clean), [1] * (out.dim() - 1)
        clean = clean.repeat(times, *ones)
        eta = context.uniform(out, 0, self.mix, "dhf", i)
        mixed: Tensor = out + eta * (clean - out)
        mean = mixed.flatten(1).mean(1).view(-1, *ones)
        mixed = torch.where(context.uniform(out, 0, 1, "dhf", "replace", i) < self.replace, mean, mixed)
        return torch.where(wrong.repeat(times).view(-1, *ones), mixed, out)


def _keep(context: ChangeContext, i: int, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
    context.kept["dhf", i] = out.detach().clone()


def _begin(context: ChangeContext, module: nn.Module, args: tuple[Any, ...]) -> None:
    """In the first pass of a step, what the step before found holds."""
    if context.draws is not None and context.memory.get("dhf step") != context.draws.step:
        context.memory["dhf wrong"] = context.memory.pop("dhf next", None)


def _end(context: ChangeContext, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
    draws, labels = context.draws, context.labels
    if draws is None or labels is None or context.memory.get("dhf step") == draws.step:
        return
    context.memory["dhf step"] = draws.step
    context.memory["dhf next"] = out.detach()[: draws.rows_at_hand].argmax(1) != labels.to(out.device)


@recipe("dhf", symbol="DHF", family="surrogate", paper=PAPER, year=2023)
def DiverseFeatures() -> ComposedAttack:
    """Momentum on gradients of diversified features of images that succeed; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), update=MI(), changes=(DHF(),))
