"""Uniform fusion: every surrogate counts the same, over logits, probabilities or losses."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from advens.attacks.interfaces import Oracle, Passes
from advens.attacks.parts import part

LIU = "Liu et al., ICLR 2017"
DONG = "Dong et al., CVPR 2018"


@part("fusion", "ens-logits", paper=DONG, year=2018)
class EnsLogits:
    """Loss of the mean logits: ``J(mean_k z_k)``."""

    OF_LOGITS: ClassVar = "averages logits"

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        return oracle.gradient(x, over="logits")

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(surrogates * gradients, surrogates * gradients)


@part("fusion", "ens-probs", paper=LIU, year=2017)
class EnsProbs:
    """Loss of the mean probabilities: ``-log mean_k softmax(z_k)_y`` for cross-entropy."""

    OF_LOGITS: ClassVar = "averages probabilities"

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        return oracle.gradient(x, over="probs")

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(surrogates * gradients, surrogates * gradients)


@part("fusion", "ens-loss", paper=DONG, year=2018)
class EnsLoss:
    """Mean of the losses: ``mean_k J(z_k)``. Holds one surrogate's activations at a time."""

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        return oracle.gradient(x, over="loss")

    def passes(self, surrogates: int, gradients: int) -> Passes:
        return Passes(surrogates * gradients, surrogates * gradients)
