"""The weights that a phase of training ends with: the last, averaged ones, or those of the best epoch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from advens.ascent import ascend
from advens.classifier import Classifier, borrowed, correctness
from advens.defenses.phases import Training
from advens.seeding import Draws, derive

VALIDATION_STEPS = 10


class Keeper:
    """Averages the weights of the learners of a phase, and remembers those of the best epoch.

    Args:
        how: says which averages are taken and whether the best epoch counts.
        learners: the members that learn in the phase.
        alone: whether each learner has a best epoch of its own; else the mean of their accuracies decides.
    """

    def __init__(self, how: Training, learners: Sequence[Classifier], alone: bool) -> None:
        self.how, self.learners, self.alone = how, list(learners), alone
        averaging: dict[str, Any] = {"use_buffers": True}
        if how.average == "ema":
            averaging["multi_avg_fn"] = get_ema_multi_avg_fn(how.decay)
        self.averages = [AveragedModel(f, **averaging) for f in learners] if how.average != "none" else []
        self.best: list[tuple[float, dict[str, Tensor]]] = []

    @property
    def averaged(self) -> list[Classifier]:
        """The models that hold the averages."""
        return [average.module for average in self.averages]  # type: ignore[misc]

    def after_update(self) -> None:
        """Add the weights after an update to the moving averages."""
        if self.how.average == "ema":
            self._average()

    def after_epoch(
        self, epoch: int, images: Iterable[Tensor], accuracy: Callable[[Classifier], float]
    ) -> dict[str, float]:
        """Add the weights after an epoch to the mean, and compare them with the best ones.

        Args:
            epoch: its number, from 1.
            images: the training images in batches, on the device, for the statistics of batch-norm.
            accuracy: of a model on the validation images.

        Returns:
            What the history says of the epoch beside.
        """
        if self.how.average == "swa" and 2 * epoch > self.how.epochs:
            self._average()
            batches = list(images)
            for average in self.averages:
                update_bn(batches, average.module)
        if not self.how.validation:
            return {}
        found = [accuracy(model) for model in self._candidates()]
        mean = sum(found) / len(found)
        scores = found if self.alone else [mean] * len(found)
        states = [copy.deepcopy(model.state_dict()) for model in self._candidates()]
        new = list(zip(scores, states, strict=True))
        self.best = [max(pair, key=lambda one: one[0]) for pair in zip(self.best or new, new, strict=True)]
        return {"validation": mean}

    def finish(self) -> None:
        """Give the learners the weights that the phase ends with."""
        states = [state for _, state in self.best] or [model.state_dict() for model in self._candidates()]
        for learner, state in zip(self.learners, states, strict=True):
            learner.load_state_dict(state)

    def state(self) -> dict[str, Any]:
        """What is needed to resume within the phase."""
        return {"averages": [average.state_dict() for average in self.averages], "best": self.best}

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from what `state` gave."""
        for average, kept in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(kept)
        self.best = [(score, weights) for score, weights in state["best"]]

    def _average(self) -> None:
        for average, learner in zip(self.averages, self.learners, strict=True):
            average.update_parameters(learner)

    def _candidates(self) -> list[Classifier]:
        """The models whose weights would be taken now: averages once there are any, else the learners."""
        if any(average.n_averaged for average in self.averages):
            return self.averaged
        return self.learners


def validation_accuracy(
    model: Classifier, x: Tensor, y: Tensor, *, eps: float, seed: int, batch: int
) -> float:
    """The accuracy of a model on images (N, C, H, W), clean or after PGD in the l_inf ball of radius eps."""
    device, right = next(model.parameters()).device, 0.0
    with borrowed([model]):
        for start in range(0, len(x), batch):
            images = x[start : start + batch].to(device)
            labels = y[start : start + batch].to(device)
            if eps:
                draws = Draws(derive(seed, "validation", start), len(images))
                images = ascend(
                    lambda z, labels=labels: F.cross_entropy(model(z), labels, reduction="none"),  # type: ignore[misc]
                    images, images + draws.uniform(images, -eps, eps, "start"), eps=eps,
                    steps=VALIDATION_STEPS, step_size=eps / 4,
                )  # fmt: skip
            with torch.no_grad():
                right += float(correctness(model, images, labels).sum())
    return right / len(x)
