"""Members that learn independently: the plain ensemble, AT, IAT, TRADES and adversarial comp-sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.ascent import ascend
from advens.classifier import borrowed
from advens.defenses.awp import Answer, at_worst_weights
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.losses import cross_entropy
from advens.defenses.phases import Batch, Phase, Team, Training
from advens.defenses.registry import defense
from advens.fields import Count, NonNegative, Positive

MADRY = "Madry et al., ICLR 2018"


class Everyone:
    """All members learn at once, in one phase.

    Attributes:
        on_adversarial: whether members learn on adversarial images.
    """

    members: int
    training: Training
    how = "together"
    on_adversarial: ClassVar = False

    def phases(self) -> list[Phase]:
        """One phase, in which all members learn."""
        return [Phase(self.how, range(self.members), self.loss, alone=self.how == "alone")]

    def loss(self, team: Team, batch: Batch) -> Tensor:
        """The loss, summed over the members."""
        raise NotImplementedError

    def finish(self, team: Team) -> Ensemble | RandomizedEnsemble:
        """The ensemble that averages probabilities."""
        return Ensemble(team.members)


class Alone(Everyone):
    """Each member learns independently of the others, and of how many there are."""

    how = "alone"

    def nested(self, history: Sequence[Mapping[str, Any]]) -> list[list[float]]:
        """Equal probabilities of the first 1, 2, ... members: ensembles as if trained with so many."""
        return [[1 / m] * m for m in range(1, self.members + 1)]


@defense("plain", family="baseline", paper="Lakshminarayanan et al., NeurIPS 2017", year=2017)
class PlainEnsemble(Alone):
    """Members trained on clean images from different weights: a deep ensemble."""

    members: Count = 3
    training: Training = Training()

    def loss(self, team: Team, batch: Batch) -> Tensor:
        return cross_entropy(team.members, batch.x, batch.y)


@defense("at", family="adversarial", paper=MADRY, year=2018)
class AdversarialTraining(Alone):
    """Each member learns on its own PGD images; the ensemble averages probabilities.

    Args:
        eps, step_size, steps: of the l_inf PGD, from a uniform point.
        awp: relative size of adversarial weight perturbations (AWP; 0.01 in its paper); 0 is none.
    """

    members: Count = 1
    eps: Positive = 8 / 255
    step_size: Positive = 2 / 255
    steps: Count = 10
    awp: NonNegative = 0.0
    training: Training = Training(weight_decay=5e-4)

    added: ClassVar = ("awp",)
    on_adversarial: ClassVar = True

    def loss(self, team: Team, batch: Batch) -> Tensor:
        made = own_adversarial(
            team.members, batch, "start", eps=self.eps, steps=self.steps, step_size=self.step_size
        )
        losses = []
        for member, x_adv in zip(team.members, made, strict=True):

            def loss(f: Answer, x_adv: Tensor = x_adv) -> Tensor:
                return F.cross_entropy(f(x_adv), batch.y)

            losses.append(at_worst_weights(member, loss, self.awp))
        return torch.stack(losses).sum()


def own_adversarial(
    members: Sequence[nn.Module], batch: Batch, draws: str, *, eps: float, steps: int, step_size: float
) -> Iterator[Tensor]:
    """PGD images (N, C, H, W) of each member, from a uniform point of the ball drawn for the member."""
    for k, member in enumerate(members):
        with borrowed([member]):
            noise = batch.draws.uniform(batch.x, -eps, eps, draws, k)
            x_adv = ascend(
                lambda z, f=member: F.cross_entropy(f(z), batch.y, reduction="none"),  # type: ignore[misc]
                batch.x, batch.x + noise, eps=eps, steps=steps, step_size=step_size,
            )  # fmt: skip
        yield x_adv


@defense("iat", family="randomized", paper="Dbouk & Shanbhag, ICML 2023 (comparator)", year=2023)
class IndependentAdversarialTraining(AdversarialTraining):
    """Members trained as in AT; one of them, with equal probabilities, is drawn for every call."""

    members: Count = 2

    def finish(self, team: Team) -> Ensemble | RandomizedEnsemble:
        return RandomizedEnsemble(team.members)


@defense("trades", family="adversarial", paper="Zhang et al., ICML 2019", year=2019)
class TRADES(Alone):
    """Cross-entropy on clean images plus beta times the KL divergence to nearby ones.

    Args:
        beta: weight of the divergence.
        eps, step_size, steps: of the l_inf ascent of the divergence, from a little gaussian noise.
        awp: relative size of adversarial weight perturbations (AWP; 0.005 in its paper); 0 is none.
    """

    members: Count = 1
    beta: NonNegative = 6.0
    eps: Positive = 8 / 255
    step_size: Positive = 2 / 255
    steps: Count = 10
    awp: NonNegative = 0.0
    training: Training = Training(weight_decay=5e-4)

    added: ClassVar = ("awp",)
    on_adversarial: ClassVar = True

    def loss(self, team: Team, batch: Batch) -> Tensor:
        losses = []
        for k, member in enumerate(team.members):
            with borrowed([member]):
                here = member(batch.x).softmax(-1)
                x_adv = ascend(
                    lambda z, f=member, p=here: divergence(p, f(z)),  # type: ignore[misc]
                    batch.x, little_noise(batch, k), eps=self.eps, steps=self.steps, step_size=self.step_size,
                )  # fmt: skip

            def loss(f: Answer, x_adv: Tensor = x_adv) -> Tensor:
                clean = f(batch.x)
                apart = divergence(clean.softmax(-1), f(x_adv)).mean()
                return F.cross_entropy(clean, batch.y) + self.beta * apart

            losses.append(at_worst_weights(member, loss, self.awp))
        return torch.stack(losses).sum()


def little_noise(batch: Batch, member: int) -> Tensor:
    """The images of a batch with gaussian noise of standard deviation 0.001, drawn for one member."""
    return batch.x + batch.draws.normal(batch.x, 0.001, "start", member)


def divergence(p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || softmax(logits)), (N,)."""
    return F.kl_div(logits.log_softmax(-1), p, reduction="none").sum(1)


@defense("adv-comp-sum", family="adversarial", paper="Mao et al., ICML 2023", year=2023)
class AdversarialCompSum(Alone):
    """A comp-sum loss of the margins plus nu times how far nearby images move them.

    ``Phi_tau(sum_j exp(-D_j / rho)) + nu max ||D(x') - D(x)||_2`` with the margins ``D_j = z_y - z_j``. The
    paper's constants are not known with certainty; tau = rho = nu = 1 is what is reported of them.

    Args:
        tau: of the comp-sum family; 1 is cross-entropy.
        rho: scale of the margins.
        nu: weight of the smooth term.
        eps, step_size, steps: of the ascent of the smooth term, from a little gaussian noise.
    """

    members: Count = 1
    tau: NonNegative = 1.0
    rho: Positive = 1.0
    nu: NonNegative = 1.0
    eps: Positive = 8 / 255
    step_size: Positive = 2 / 255
    steps: Count = 10
    training: Training = Training(weight_decay=5e-4)

    on_adversarial: ClassVar = True

    def loss(self, team: Team, batch: Batch) -> Tensor:
        losses = []
        for k, member in enumerate(team.members):
            with borrowed([member]):
                here = margins(member(batch.x), batch.y)
                x_adv = ascend(
                    lambda z, f=member, d=here: distance(margins(f(z), batch.y), d),  # type: ignore[misc]
                    batch.x, little_noise(batch, k), eps=self.eps, steps=self.steps, step_size=self.step_size,
                )  # fmt: skip
            clean = margins(member(batch.x), batch.y)
            moved = distance(margins(member(x_adv), batch.y), clean)
            losses.append((comp_sum(clean, self.tau, self.rho) + self.nu * moved).mean())
        return torch.stack(losses).sum()


def margins(logits: Tensor, y: Tensor) -> Tensor:
    """``z_y - z_j`` for the classes j other than y, (N, classes - 1)."""
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, y[:, None], False)
    return logits.gather(1, y[:, None]) - logits[others].view(len(y), -1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean, (N,), with a gradient also where the two are equal."""
    return ((a - b).square().sum(1) + 1e-12).sqrt()


def comp_sum(margin: Tensor, tau: float, rho: float) -> Tensor:
    """``Phi_tau`` of the sum of ``exp(-margin / rho)``, (N,); in logarithms, so that nothing overflows."""
    log_u = torch.logsumexp(-margin / rho, 1)
    log_1u = F.softplus(log_u)
    if tau == 1:
        return log_1u
    return torch.expm1((1 - tau) * log_1u) / (1 - tau)
