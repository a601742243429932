"""Guided descent: a guidance A points to features that support the label, and <A, F(x')> is lowered.

Methods differ in how A is found. A is divided by its l_2 norm, per sample and surrogate, which changes no
sign.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks.interfaces import Passes, Seen, Tapped
from advens.attacks.layers import Layer
from advens.attacks.losses import log_odds
from advens.threat import unit_l2

Score = Literal["logit", "probability"]



class Guided(ABC):
    """What parts have in common whose guidance A is found once a run, from ``copies`` passes."""

    layer: Layer
    copies: int

    @property
    def layers(self) -> tuple[float | str, ...]:
        return (self.layer,)

    @abstractmethod
    def guidance(self, surrogate: Tapped) -> Tensor:
        """The sum of the gradients with respect to the features, in whose direction A points."""

    def prepare(self, surrogate: Tapped, x_adv: Tensor) -> None:
        if "A" not in surrogate.memory:
            surrogate.memory["A"] = unit_l2(self.guidance(surrogate))

    def preparation(self, surrogates: int, copies: int, steps: range) -> Passes:
        return Passes(surrogates * self.copies, surrogates * self.copies)

    def loss(self, seen: Seen, surrogate: Tapped) -> Tensor:
        return descent(seen, surrogate)


def descent(seen: Seen, surrogate: Tapped) -> Tensor:
    """``-<A, F>``, (N,): what is ascended."""
    guidance: Tensor = surrogate.memory["A"]
    return -(guidance * seen.features[0]).flatten(1).sum(1)


class Total:
    """A sum of gradients, each times ``exp(log_scale)`` of its own, up to a positive factor of each sample.

    So the slope of a probability that is next to 0 or 1 does not underflow.
    """

    def __init__(self) -> None:
        self.value = torch.zeros(())
        self._level = torch.tensor(-torch.inf)

    def add(self, g: Tensor, log_scale: Tensor) -> None:
        """Add ``exp(log_scale) g``; log_scale (N,)."""
        log_scale = log_scale.to(g).view(-1, *[1] * (g.dim() - 1))
        higher = torch.maximum(self._level.to(g), log_scale)
        self.value = (
            self.value.to(g) * (self._level.to(g) - higher).exp() + g * (log_scale - higher).exp()
        )
        self._level = higher


def support(logits: Tensor, y: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """The label's score, (N,) each: what is differentiated, and the logarithm of its gradient's factor.

    A probability p is taken as its log-odds m, with the slope dp/dm = sigmoid(m) sigmoid(-m).
    """
    if score == "logit":
        z = logits.gather(1, y[:, None]).squeeze(1)
        return z, torch.zeros_like(z)
    m = log_odds(logits, y)
    return m, (F.logsigmoid(m) + F.logsigmoid(-m)).detach()


def importance(surrogate: Tapped, x: Tensor, score: Score) -> tuple[Tensor, Tensor]:
    """The gradient of the label's score with respect to the features at ``x``, for `Total`: one pass."""
    seen = surrogate.run(x)
    value, log_scale = support(seen.logits, surrogate.job.y, score)
    (g,) = surrogate.gradient(value, seen.features)
    return g, log_scale
