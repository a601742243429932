"""Attacks on randomized ensembles, where one perturbation must serve whichever member is drawn."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from advens.attacks.interfaces import Passes
from advens.attacks.losses import CrossEntropy
from advens.attacks.parts import part
from advens.attacks.registry import recipe
from advens.attacks.steps import Length, StepSize
from advens.attacks.whitebox.descent import Descent
from advens.attacks.whitebox.engine import WhiteBox
from advens.attacks.whitebox.oracle import Answer, RowLoss, RowOracle
from advens.attacks.whitebox.projections import dual_norm, nearest_plane
from advens.attacks.whitebox.rows import Rows, per_row
from advens.errors import InputError
from advens.fields import BelowOne, Count
from advens.threat import TINY, Threat, norms

PAPER = "Dbouk & Shanbhag, ICML 2022 (ARC)"
SMALL = 1e-10
"""Keeps the published quotients finite."""
TIE = 1e-12
"""Expected accuracies nearer than this are equal."""


@part("attack", "arc", family="white-box", paper=PAPER, year=2022)
class RandomizedEnsembleAttack(WhiteBox):
    """Members one after the other, each pushed just over its nearest linearised boundary.

    An iteration goes through the members from the most probable to the least. Each one turns the
    local step, of fixed length, towards the boundary between the class it predicts and the nearest
    of some others; the turn stands where expected accuracy, computed exactly, does not rise. The
    published second test, of the whole step at the end of an iteration, asks nothing new: its point
    was looked at when the last turn was accepted. So it is not asked.

    A list of plain models is what it is to every attack: one model, the mean of their logits.

    Args:
        threat: the ball.
        steps: iterations.
        local_radius: length of the local step, as for ``step-size`` (``0.1``, ``"eps/4"``); by
            default the paper's, eps in l_inf and a quarter of it in l_2.
        hyperplanes: boundaries to look at, those of the highest other logits; None for all of them,
            as in the paper where classes are ten. A backward pass each.
        rho: how far beyond a boundary to go, in eps.
        around: where members after the first are linearised: at the iteration's ``"start"``, for
            which the formula is derived, or at the ``"moved"`` point, as in the published code.

    Source: Dbouk & Shanbhag, ICML 2022, algorithm 1.
    """

    threat: Threat = Threat()
    steps: Count = 20
    local_radius: Length | None = None
    hyperplanes: Count | None = 4
    rho: BelowOne = 0.05
    around: Literal["start", "moved"] = "start"

    @property
    def iterations(self) -> int:
        """Iterations of a sample that is never broken."""
        return self.steps

    @property
    def random_start(self) -> bool:
        """It begins at the clean image and draws nothing."""
        return False

    @property
    def eta(self) -> float:
        """Length of the local step, on images in [0, 1]."""
        published = "eps" if self.threat.norm == "linf" else "eps/4"
        alpha = published if self.local_radius is None else self.local_radius
        return StepSize(alpha).at(0, self.steps, self.threat)

    def passes(self, surrogates: int, members: int = 1, classes: int | None = None) -> Passes:
        """Passes per sample: of each member its boundaries and a look at the turn, in every iteration.

        Args:
            surrogates: plain models, attacked as the one model they are; 1 for an ensemble.
            members: of a randomized ensemble.
            classes: fewer than ``hyperplanes + 1`` cost less; without, there are enough.

        Raises:
            InputError: all hyperplanes are wanted and the number of classes is not given.
        """
        if self.hyperplanes is None and classes is None:
            raise InputError("the passes of 'arc' over all hyperplanes depend on the number of classes")
        planes = self._planes(classes or 1 + (self.hyperplanes or 1))
        models = surrogates * members
        return Passes(models * (1 + self.steps * (1 + members)), models * self.steps * planes)

    def begin(self, oracle: RowOracle, rows: Rows) -> None:
        """From the clean image, with its expected accuracy."""
        if rows.target is not None:
            raise InputError("attack 'arc' leaves the label; it takes no targets")
        rows.memory = {"x": rows.x.clone(), "accuracy": oracle.accuracy(rows.x, rows)}

    def advance(self, oracle: RowOracle, rows: Rows) -> None:
        """One iteration: a local step turned by every member in its order, then taken."""
        x, lowest = rows.memory["x"], rows.memory["accuracy"]
        d, moved = torch.zeros_like(x), x
        for place, member in enumerate(_order(oracle)):
            at = x + d if self.around == "moved" else x
            w, zeta = self._nearest(oracle, rows, at, member)
            turned = self._turned(d, w, zeta, first=place == 0)
            there = self.threat.project(x + turned, rows.x)
            accuracy = oracle.accuracy(there, rows)
            accepted = accuracy <= lowest + TIE
            d = torch.where(accepted.view(-1, 1, 1, 1), turned, d)
            moved = torch.where(accepted.view(-1, 1, 1, 1), there, moved)
            lowest = torch.where(accepted, accuracy, lowest)
        rows.memory = {"x": moved, "accuracy": lowest}

    def last(self, rows: Rows) -> Tensor:
        """Where the last accepted step led."""
        return rows.memory["x"]

    def _planes(self, classes: int) -> int:
        return classes - 1 if self.hyperplanes is None else min(self.hyperplanes, classes - 1)

    def _nearest(
        self, oracle: RowOracle, rows: Rows, x: Tensor, member: int | None
    ) -> tuple[Tensor, Tensor]:
        """The normal w (N, C, H, W) of a member's nearest boundary at ``x``, and its distance zeta (N,).

        zeta = |z_m - z_j| / ||w||_q.
        """
        losses = [_gap(j) for j in range(self._planes(oracle.classes or 2))]
        answers: list[Answer]
        if member is None:
            answers = oracle.gradients(x, rows, losses)
        else:
            answers = oracle.member_gradients(x, rows, member, losses)
        w, _, zeta = nearest_plane(answers, self.threat.norm, SMALL)
        return w, zeta

    def _turned(self, d: Tensor, w: Tensor, zeta: Tensor, *, first: bool) -> Tensor:
        """The local step ``d`` turned towards a boundary, (N, C, H, W), eta long."""
        eta = self.eta
        beta = torch.full_like(zeta, eta)
        if not first:
            # beta = eta / (eta - zeta) |zeta + <w, d> / ||w||_q| + rho where zeta < eta
            along = (w * d).flatten(1).sum(1) / dual_norm(w, self.threat.norm).clamp_min(TINY)
            crossing = eta / (eta - zeta + SMALL) * (zeta + along).abs()
            beta = torch.where(zeta < eta, crossing + self.rho * self.threat.radius, beta)
        step = d - per_row(beta, d) * self.threat.steepest(w)
        return eta * step / norms(step, self.threat.norm).clamp_min(TINY)


def _order(oracle: RowOracle) -> list[int | None]:
    """Members from the most probable to the least; None stands for the mean of plain models."""
    if oracle.probabilities is None:
        return [None]
    order: list[int | None] = []
    order += oracle.probabilities.argsort(descending=True, stable=True).tolist()
    return order


def _gap(j: int) -> RowLoss:
    """How far the highest logit is above the ``j``-th of the others."""

    def gap(logits: Tensor) -> Tensor:
        top = logits.detach().topk(j + 2, dim=1).indices
        return logits.gather(1, top[:, :1]).squeeze(1) - logits.gather(1, top[:, -1:]).squeeze(1)

    return gap


@recipe("arc", family="white-box", paper=PAPER, year=2022, targeted=False)
def ARC() -> RandomizedEnsembleAttack:
    """Boundary after boundary of a randomized ensemble's members."""
    return RandomizedEnsembleAttack()


@recipe("adaptive-pgd", symbol="AdaptivePGD", family="white-box", year=2023,
        norms=("linf", "l2", "l1"), paper="Dbouk & Shanbhag, ICML 2023 (BARRE)")  # fmt: skip
def AdaptivePGD() -> Descent:
    """PGD on the cross-entropy of a randomized ensemble's expected probabilities."""
    return Descent(loss=CrossEntropy(), steps=20, step_size=StepSize("eps/4"))
