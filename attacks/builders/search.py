"""Bayesian search of augmentation parameters: what transfers best to the other surrogates.

Source: ViT-EnsembleAttack, Cao et al., ICCV 2025. The objective is leave-one-out: images are crafted on the
augmented copies of one surrogate and judged by the loss of the *other surrogates*, on calibration images. No
target and no image that is attacked later takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.attacks.attack import Attack
from advens.errors import InputError
from advens.seeding import Draws, derive

KEPT = 0.8
"""Part of the surrogate's clean accuracy that its augmented copies must keep."""

Copies = Callable[[Mapping[str, float]], Sequence[nn.Module]]
"""Augmented copies of a surrogate, for some strengths."""


@dataclass(frozen=True)
class Trial:
    """One call of the objective.

    Args:
        strengths: what was tried, by strategy.
        objective: mean cross-entropy of the other surrogates on the crafted images; high is good.
        clean_accuracy: of the augmented copies together, on the clean images.
        allowed: whether that is enough of the surrogate's own.
    """

    strengths: dict[str, float]
    objective: float
    clean_accuracy: float
    allowed: bool


def search(
    model: nn.Module,
    others: Sequence[nn.Module],
    copies: Copies,
    bounds: Mapping[str, tuple[float, float]],
    x: Tensor,
    y: Tensor,
    *,
    attack: Attack,
    calls: int = 25,
    seed: int = 0,
    on_trial: Callable[[Trial], None] | None = None,
) -> list[Trial]:
    """The trials in their order; the best allowed one is ``best(trials)``.

    Args:
        model: the surrogate, whose clean accuracy is the measure.
        others: the surrogates that judge.
        copies: makes the augmented copies for some strengths.
        bounds: of the strengths, by strategy.
        x: calibration images (N, C, H, W) in [0, 1].
        y: labels (N,).
        attack: what crafts.
        calls: of the objective; the first fifth, at least one, are random.
        seed: of the search and of the attack.
    """
    from skopt import gp_minimize

    if not others:
        raise InputError("the search judges on the other surrogates: give two models or search = false")
    names, trials = list(bounds), list[Trial]()
    enough = KEPT * _accuracy([model], x, y, seed)

    def objective(values: list[float]) -> float:
        strengths = dict(zip(names, map(float, values), strict=True))
        made = copies(strengths)
        x_adv = attack(made, x, y, seed=seed)
        with torch.no_grad():
            losses = [float(F.cross_entropy(other(x_adv), y)) for other in others]
        accuracy = _accuracy(made, x, y, seed)
        trial = Trial(strengths, sum(losses) / len(losses), accuracy, accuracy >= enough)
        trials.append(trial)
        if on_trial is not None:
            on_trial(trial)
        return -trial.objective if trial.allowed else enough - accuracy  # positive, and worse with distance

    gp_minimize(
        objective, [bounds[name] for name in names], n_calls=calls, n_initial_points=max(1, calls // 5),
        random_state=derive(seed, "search") % 2**32,
    )  # fmt: skip
    return trials


def best(trials: Sequence[Trial]) -> Trial:
    """The allowed trial of the highest objective; without one, that of the highest clean accuracy."""
    allowed = [trial for trial in trials if trial.allowed]
    if not allowed:
        return max(trials, key=lambda trial: trial.clean_accuracy)
    return max(allowed, key=lambda trial: trial.objective)


@torch.no_grad()
def _accuracy(models: Sequence[nn.Module], x: Tensor, y: Tensor, seed: int) -> float:
    """Of the mean logits, on clean images, under the draws of one step."""
    from advens.attacks.changes import begin_step

    for model in models:
        begin_step(model, Draws(seed, len(x)).at(0))
    logits = torch.stack([model(x) for model in models]).mean(0)
    return float((logits.argmax(1) == y).double().mean())
