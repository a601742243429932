"""SE: the self-ensemble of a vision transformer's blocks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from advens.attacks.attack import ComposedAttack
from advens.attacks.hooks import called
from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.uniform import EnsLoss
from advens.attacks.updates import MI
from advens.errors import InputError
from advens.threat import Threat

PAPER = "Naseer et al., ICLR 2022 (self-ensemble of SETR), arXiv 2106.04169"
TOLERANCE = 0.05
"""How far the reading of the last block may be from the logits, relative to the largest of them."""


@part("feature", "se", paper=PAPER, year=2022)
class SE:
    """Every block of a vision transformer is read by the network's norm and head: ascend ``sum_l J(z_l)``.

    ``z_l = head(norm(tokens after block l))``, l = 1, ..., L; z_L are the logits. The paper's trained heads
    for inner blocks are not here. A network is refused whose blocks have different shapes, or whose last
    block read so does not give its logits.
    """

    @property
    def layers(self) -> tuple[float | str, ...]:
        return ("stages",)

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        if "read" not in surrogate.memory:
            surrogate.memory["read"] = reader(surrogate.model)

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        return Passes(0, 0)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        self._check(seen, surrogate)
        total = surrogate.loss(seen.logits).term()
        for tokens in seen.features[:-1]:
            z = surrogate.memory["read"](tokens).to(seen.logits)
            total = total + surrogate.loss(z).term()
        return total

    def _check(self, seen: Seen, surrogate: Tapped) -> None:
        """Once: the last block gives the logits, and all blocks have its shape."""
        if surrogate.memory.setdefault("checked", False):
            return
        last = seen.features[-1]
        alike = all(f.shape == last.shape for f in seen.features)
        if not alike or not _same(surrogate.memory["read"], last, seen.logits):
            raise _refusal(surrogate.model)
        surrogate.memory["checked"] = True


def reader(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The norm and head of a network, from tokens (N, tokens, C) to logits.

    Raises:
        InputError: it has none that are known.
    """
    for module in model.modules():
        has = partial(hasattr, module)
        if has("forward_head") and has("blocks") and isinstance(getattr(module, "norm", None), nn.Module):
            return partial(_of_timm, module)
        if has("encoder") and has("heads") and isinstance(getattr(module, "class_token", None), Tensor):
            return partial(_of_torchvision, module)
    raise _refusal(model)


def _refusal(model: nn.Module) -> InputError:
    return InputError(f"'se' reads all blocks of a network by its head; those of {called(model)} cannot be")


def _same(read: Callable[[Tensor], Tensor], tokens: Tensor, logits: Tensor) -> bool:
    try:
        with torch.no_grad():
            z = read(tokens).to(logits)
    except (RuntimeError, IndexError):
        return False
    return z.shape == logits.shape and bool((z - logits).abs().max() <= TOLERANCE * logits.abs().max())


def _of_timm(network: Any, tokens: Tensor) -> Tensor:
    z: Tensor = network.forward_head(network.norm(tokens))
    return z


def _of_torchvision(network: Any, tokens: Tensor) -> Tensor:
    z: Tensor = network.heads(network.encoder.ln(tokens)[:, 0])
    return z


@recipe("se", symbol="SE", family="feature", paper=PAPER, year=2022)
def SelfEnsemble() -> ComposedAttack:
    """Momentum on the losses of all blocks of vision transformers; eps 16/255, 10 steps."""
    return ComposedAttack(threat=Threat("linf", "16/255"), fusion=EnsLoss(), update=MI(), feature=SE())
