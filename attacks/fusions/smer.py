"""SMER: stochastic mini-batch of surrogates with ensemble reweighting."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import ValidationInfo, field_validator
from torch import Tensor

from advens.attacks.attack import ComposedAttack
from advens.attacks.interfaces import Oracle, Passes
from advens.attacks.losses import log_cross_entropy
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.sharing import Alone
from advens.attacks.updates import MI, accumulate
from advens.threat import Threat

PAPER = "Tang et al., CVPR 2024 (SMER)"


@part("fusion", "smer", paper=PAPER, year=2024, couples="option")
class SMER:
    """Shuffled rounds of surrogates, one inner step each; learned scalars scale their logits.

    After each inner gradient the scalars take one SGD step on ``-log J(mean_k v_k z_k)``, so they move
    to raise the fused loss (to lower it for a target). They multiply logits alone, so their gradient
    needs no backward pass through a network. A published port ascends the loss of a target, too.

    Args:
        rounds: shuffled passes over the surrogates.
        lr, weight_decay: of the scalars' SGD.
        mu: decay of the inner momentum, which starts anew in every outer step.
        batch_coupled: one set of scalars for the batch, from its mean loss, as published.
        leaks: a batch begins with the scalars the batch before ended with, as published; for
            ``batch_coupled`` scalars.
        refilter: filter the last inner momentum, too, as SVRE does, whose loop this is.
    """

    OF_LOGITS: ClassVar = "scales logits by what it learns"

    rounds: int = 4
    lr: float = 0.02
    weight_decay: float = 0.002
    mu: float = 1.0
    batch_coupled: bool = False
    leaks: bool = False
    refilter: bool = True

    @field_validator("leaks")
    @classmethod
    def _shared_scalars(cls, leaks: bool, info: ValidationInfo) -> bool:
        if leaks and not info.data.get("batch_coupled"):
            raise ValueError("only the scalars of a whole batch can leak; set batch_coupled too")
        return leaks

    def direction(self, oracle: Oracle, x: Tensor) -> Tensor:
        beta, state = oracle.context.step_size, oracle.state("smer")
        v = state.get("v", x.new_ones(len(x), oracle.k))
        carried = oracle.job.carried
        if self.leaks and "v" not in state and "smer" in carried:
            v = carried["smer"].to(x).expand_as(v)
        at, memory = x, dict[str, Tensor]()
        for turn in range(self.rounds):
            for k in oracle.context.draws.permutation(oracle.k, "smer", turn):
                here = Alone(oracle, at, k)
                g = here.gradient(v[:, [k]])
                z = torch.stack([here.logits if i == k else oracle.logits(at, i) for i in range(oracle.k)])
                v = self.learned(v, z, oracle)
                at = oracle.context.step(at, beta, accumulate(g, memory, self.mu))
        state["v"] = v
        if self.leaks:
            carried["smer"] = v[0]
        return oracle.filtered(memory["m"]) if self.refilter else memory["m"]

    def learned(self, v: Tensor, z: Tensor, oracle: Oracle) -> Tensor:
        """The scalars (N, K) after one SGD step, given logits z (K, N, classes)."""
        job = oracle.job
        leaf = v.detach().requires_grad_()
        labels = job.y if job.target is None else job.target
        fused = (leaf.T[:, :, None] * z).mean(0)
        objective = -log_cross_entropy(fused, labels)
        if self.batch_coupled:  # minus the log of the mean loss, off by a constant
            objective = -torch.logsumexp(-objective, 0)
        (grad,) = torch.autograd.grad(objective.sum(), leaf)
        if self.batch_coupled:
            grad = grad.sum(0, keepdim=True).expand_as(v)
        if job.target is not None:
            grad = -grad
        return v - self.lr * (grad + self.weight_decay * v)

    def passes(self, surrogates: int, gradients: int) -> Passes:
        inner = self.rounds * surrogates
        own = gradients if gradients == 1 else gradients + 1
        return Passes(inner * (own + surrogates - 1), inner * gradients)


@recipe("smer", symbol="SMER", family="fusion", paper=PAPER, year=2024, couples="option")
def SMERAttack() -> ComposedAttack:
    """Shuffled rounds with learned scalars, outer momentum; eps 16/255."""
    return ComposedAttack(threat=Threat("linf", "16/255"), fusion=SMER(), update=MI())
