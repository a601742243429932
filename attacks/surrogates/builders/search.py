"""Bayesian search of augmentation strengths: what transfers best to the other surrogates.

Source: ViT-EnsembleAttack, Cao et al., ICCV 2025, of which only the abstract is known to us. It names
Bayesian optimisation; the objective, the least accuracy of the copies and the numbers of calls are ours. The
objective is leave-one-out: images are crafted on the augmented copies of one surrogate and judged by the loss
of the *other surrogates*, on calibration images. No target and no image that is attacked later takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.hooks import begin_step
from advens.attacks.interfaces import Attack
from advens.seeding import Draws, derive

KEPT = 0.8
"""Part of the surrogate's clean accuracy that its augmented copies must keep; ours."""

Copies = Callable[[Mapping[str, float]], Sequence[nn.Module]]
"""Augmented copies of a surrogate, for some strengths."""


@dataclass(frozen=True)
class Trial:
    """One call of the objective.

    Args:
        strengths: what was tried, by strategy.
        objective: mean cross-entropy of the other surrogates on the crafted images; high is good.
        clean_accuracy: of the augmented copies on the clean images, in the mean.
        allowed: whether that is enough of the surrogate's own.
    """

    strengths: dict[str, float]
    objective: float
    clean_accuracy: float
    allowed: bool


@dataclass(frozen=True)
class Objective:
    """What the search maximises, for one surrogate.

    Args:
        model: the surrogate, whose clean accuracy is the measure.
        others: the surrogates that judge.
        copies: makes the augmented copies for some strengths.
        x: calibration images (N, C, H, W) in [0, 1].
        y: labels (N,).
        attack: what crafts.
        seed: of the attack and of the copies' draws.
    """

    model: nn.Module
    others: Sequence[nn.Module]
    copies: Copies
    x: Tensor
    y: Tensor
    attack: Attack
    seed: int

    def __call__(self, strengths: Mapping[str, float]) -> Trial:
        made = self.copies(strengths)
        x_adv = self.attack(made, self.x, self.y, seed=self.seed)
        with torch.no_grad():
            losses = [float(F.cross_entropy(other(x_adv), self.y)) for other in self.others]
        augmented = [self._accuracy(copy) for copy in made if copy is not self.model]
        accuracy = sum(augmented) / len(augmented)
        allowed = accuracy >= KEPT * self._accuracy(self.model)
        return Trial(dict(strengths), sum(losses) / len(losses), accuracy, allowed)

    @torch.no_grad()
    def _accuracy(self, model: nn.Module) -> float:
        """On clean images, under the draws of one step."""
        begin_step(model, Draws(self.seed, len(self.x)).at(0))
        return float((model(self.x).argmax(1) == self.y).double().mean())


def search(
    objective: Callable[[Mapping[str, float]], Trial],
    bounds: Mapping[str, tuple[float, float]],
    *,
    calls: int = 25,
    seed: int = 0,
    known: Sequence[Trial] = (),
    on_trial: Callable[[Trial], object] | None = None,
) -> list[Trial]:
    """The trials of a Gaussian-process search in their order; see `best`.

    Args:
        objective: what a choice of strengths is worth.
        bounds: of the strengths, by strategy.
        calls: of the objective; the first fifth, at least one, are random.
        seed: of the search.
        known: trials of a search that was interrupted; they are not tried again.
        on_trial: told of every new one.
    """
    from skopt import gp_minimize

    names, trials = list(bounds), list[Trial]()

    def cost(values: list[float]) -> float:
        if len(trials) < len(known):
            trials.append(known[len(trials)])
        else:
            trials.append(objective({n: round(float(v), 4) for n, v in zip(names, values, strict=True)}))
            if on_trial is not None:
                on_trial(trials[-1])
        tried = trials[-1]
        # a trial that is not allowed is worse than all that are, the more the less accurate it is
        return -tried.objective if tried.allowed else 1 - tried.clean_accuracy

    gp_minimize(
        cost, [bounds[name] for name in names], n_calls=calls, n_initial_points=max(1, calls // 5),
        random_state=derive(seed, "search") % 2**32,
    )  # fmt: skip
    return trials


def best(trials: Sequence[Trial]) -> Trial:
    """The allowed trial of the highest objective; without one, that of the highest clean accuracy."""
    allowed = [trial for trial in trials if trial.allowed]
    if not allowed:
        return max(trials, key=lambda trial: trial.clean_accuracy)
    return max(allowed, key=lambda trial: trial.objective)
