"""Boosting: members learn one after the other, each on images that fool the ensemble so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.ascent import ascend
from advens.attacks.expectation import log_expected
from advens.attacks.whitebox.arc import RandomizedEnsembleAttack
from advens.attacks.whitebox.engine import search
from advens.attacks.whitebox.oracle import RowOracle
from advens.classifier import borrowed, device_of
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.losses import margin_maximising
from advens.defenses.phases import Batch, Phase, Team, Training
from advens.defenses.registry import defense
from advens.defenses.sampling import optimal_sampling
from advens.fields import Count, NonNegative, Positive, Whole
from advens.threat import Threat


class Boosted:
    """Member m learns on images that fool the ensemble of the first m + 1 members."""

    members: int
    eps: float
    step_size: float
    steps: int
    margin: float
    warm_start: bool
    training: Training
    on_adversarial: ClassVar = True

    def phases(self) -> list[Phase]:
        """One phase for each member."""
        return [
            Phase(
                f"member {m}", [m], partial(self.loss, m=m), before=partial(self.begin, m=m),
                after_epoch=partial(self.after_epoch, m=m),
            )
            for m in range(self.members)
        ]  # fmt: skip

    def begin(self, team: Team, m: int) -> None:
        """Make the first m + 1 probabilities equal, and start from member m - 1 where that is asked for."""
        if m and self.warm_start:
            team.members[m].load_state_dict(team.members[m - 1].state_dict())
        team.uniform(m + 1)

    def after_epoch(self, team: Team, epoch: int, x: Tensor, y: Tensor, *, m: int) -> None:
        """Learn probabilities, where the defense does; here nothing is done."""

    def nested(self, history: Sequence[Mapping[str, Any]]) -> list[list[float]]:
        """Probabilities of the first 1, 2, ... members at the end of the phase of the last of them."""
        last = {row["phase"]: row["probabilities"] for row in history}
        return [last[phase.name][: m + 1] for m, phase in enumerate(self.phases())]

    def mixed(self, team: Team, x: Tensor, m: int) -> Tensor:
        """The output (N, classes) of the first m + 1 members together, which the adversary attacks."""
        raise NotImplementedError

    def loss(self, team: Team, batch: Batch, *, m: int) -> Tensor:
        """The newest member's cross-entropy, and margin term, on the ensemble's adversarial images."""
        first = team.members[: m + 1]
        with borrowed(first):
            noise = batch.draws.uniform(batch.x, -self.eps / 2, self.eps / 2, "start")
            x_adv = ascend(
                lambda z: self.both(self.mixed(team, z, m), batch.y), batch.x, batch.x + noise, eps=self.eps,
                steps=self.steps, step_size=self.step_size,
            )
        return self.both(team.members[m](x_adv), batch.y).mean()

    def both(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy plus the weighted margin-maximising term, (N,)."""
        loss = F.cross_entropy(logits, y, reduction="none")
        return loss + self.margin * margin_maximising(logits, y) if self.margin else loss


@defense("mrboost", family="boosting", paper="Zhang et al., ICML 2022 (MRBoost)", year=2022)
class MRBoost(Boosted):
    """Boosting of a deterministic ensemble, which averages logits; the adversary attacks this mean.

    Args:
        eps, step_size, steps: of the l_inf PGD, from a uniform point of half the ball.
        margin: weight of the margin-maximising term.
        warm_start: whether a member starts from the weights of the one before, and so has learned longer in
            total; an option of the published code, which its commands leave off.
    """

    members: Count = 3
    eps: Positive = 8 / 255
    step_size: Positive = 2 / 255
    steps: Count = 10
    margin: NonNegative = 1.0
    warm_start: bool = False
    training: Training = Training(epochs=100, weight_decay=5e-4)

    def mixed(self, team: Team, x: Tensor, m: int) -> Tensor:
        return torch.stack([member(x) for member in team.members[: m + 1]]).mean(0)

    def finish(self, team: Team) -> Ensemble:
        """The mean of logits."""
        return Ensemble(team.members, over="logits")


@defense("barre", family="randomized", paper="Dbouk & Shanbhag, ICML 2023 (BARRE)", year=2023)
class BARRE(Boosted):
    """Boosting of a randomized ensemble, its probabilities learned along the way (OSP).

    The adversary sees members and probabilities and attacks the log of the mean of probabilities. Every
    ``osp_every`` epochs of the second half of a phase the probabilities are optimised on a slice of the
    training images, attacked by ARC with two hyperplanes. The published training does so from the fourth
    member on only (``osp_from=4``), on augmented images, and starts from ten times the current learning
    rate, which leaves the probabilities where they are once that has decayed. Here the step is the one of
    the authors' evaluation, whatever the optimizer and its schedule.

    Args:
        eps, step_size, steps: of the adaptive l_inf PGD, from a uniform point of half the ball.
        margin: weight of the margin-maximising term.
        warm_start: whether a member starts from the weights of the one before, as published, and so has
            learned longer in total.
        osp_from: the smallest ensemble whose probabilities are optimised.
        osp_every: epochs between two optimisations.
        osp_rounds: sub-gradients of one optimisation, at most.
        osp_lr: the first step of each optimisation; step t is ``osp_lr / (t + 1)``.
        osp_patience: rounds in a row without a lower risk, after which the optimisation ends.
        osp_images: how many training images are attacked, the first ones.
        arc_steps: steps of ARC.
    """

    members: Count = 2
    eps: Positive = 8 / 255
    step_size: Positive = 2 / 255
    steps: Count = 10
    margin: NonNegative = 1.0
    warm_start: bool = True
    osp_from: Count = 2
    osp_every: Count = 10
    osp_rounds: Whole = 10
    osp_lr: Positive = 2.0
    osp_patience: Count = 3
    osp_images: Count = 4096
    arc_steps: Count = 10
    training: Training = Training(epochs=100, weight_decay=5e-4, batch_size=256)

    def mixed(self, team: Team, x: Tensor, m: int) -> Tensor:
        p = team.probabilities[: m + 1]
        drawn = [k for k in range(m + 1) if p[k] > 0]
        return log_expected(torch.stack([team.members[k](x) for k in drawn]), p[drawn])

    def after_epoch(self, team: Team, epoch: int, x: Tensor, y: Tensor, *, m: int) -> None:
        """Optimise the probabilities (OSP), in the second half of a phase."""
        epochs = self.training.epochs
        if m + 1 < max(2, self.osp_from) or 2 * epoch <= epochs or (epochs - epoch) % self.osp_every:
            return
        device = device_of(team.members[0]) or x.device
        images = x[: self.osp_images].to(device).float() / 255
        labels = y[: self.osp_images].to(device)
        members = team.members[: m + 1]

        def rates(a: Tensor) -> Tensor:
            return arc_error_rates(members, a, images, labels, eps=self.eps, steps=self.arc_steps)

        start, lr = team.probabilities[: m + 1], self.osp_lr
        best, _ = optimal_sampling(rates, start, rounds=self.osp_rounds, lr=lr, patience=self.osp_patience)
        team.probabilities[: m + 1] = best

    def finish(self, team: Team) -> RandomizedEnsemble:
        """The randomized ensemble with the probabilities that were found."""
        return RandomizedEnsemble(team.members, team.probabilities)


def arc_error_rates(
    members: Sequence[nn.Module], a: Tensor, x: Tensor, y: Tensor, *, eps: float, steps: int,
    batch: int = 256,
) -> Tensor:  # fmt: skip
    """Each member's error rate (M,) on images that ARC crafts for the ensemble with probabilities ``a``."""
    ensemble = nn.Module()  # the two attributes that make a module randomized; members may be any modules
    ensemble.members, ensemble.probabilities = nn.ModuleList(members), a
    attack = RandomizedEnsembleAttack(threat=Threat("linf", eps), steps=steps, hyperplanes=2)
    with borrowed([ensemble]):
        oracle = RowOracle([ensemble], attack.threat, x, y)
        search(attack, oracle, oracle.begin(torch.arange(len(x), device=x.device)), batch=batch)
        with torch.no_grad():
            parts = oracle.x_adv.split(batch)
            wrong = [torch.cat([f(part).argmax(1) for part in parts]) != y for f in members]
    return torch.stack(wrong).double().mean(1).cpu()
