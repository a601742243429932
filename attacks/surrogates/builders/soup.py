"""Model soups: the mean of the weights of several models.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy
without increasing inference time", ICML 2022, which has no batch-norm; statistics are estimated anew here,
also for every soup that the greedy search tries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from advens.attacks.parts import part
from advens.attacks.surrogates.builders.averages import average, shuffled_rows, weights
from advens.attacks.surrogates.builders.build import Trained, Work, other
from advens.attacks.surrogates.builders.snapshot import Snapshot
from advens.attacks.surrogates.builders.train import accuracy, refresh
from advens.classifier import Classifier
from advens.errors import InputError


@part("builder", "soup", family="surrogate", paper="Wortsman et al., ICML 2022 (soups)", year=2022)
class Soup(Trained):
    """One surrogate: the mean of the models given, or of what another builder makes of them.

    The greedy soup takes the models by their accuracy on held-out images, best first, and keeps one where
    the soup with it is more accurate there, as in the published code. Each model is measured as it is; a soup
    with batch-norm statistics of the images that are not held out.

    Args:
        of: another builder, or None for the models themselves, which must be of one architecture.
        kind: ``uniform`` or ``greedy``.
        held_out: share of the images the greedy search measures on. The other builder is not given them; what
            models that are given were trained on is for the caller to know.
        ties: whether a model that leaves the accuracy as it is is kept, as the paper writes.
    """

    of: Any = None
    kind: Literal["uniform", "greedy"] = "uniform"
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    ties: bool = False
    jointly: ClassVar[bool] = True

    @field_validator("of", mode="before")
    @classmethod
    def _of(cls, of: Any) -> Any:
        return None if of is None else other(of)

    def members(self, models: int) -> int:
        return 1

    def check(self, models: Sequence[Classifier]) -> None:
        """All are of one architecture and preprocessed alike: otherwise a mean of weights means nothing."""
        if not all(isinstance(model, Classifier) for model in models):
            return  # refused by the build
        weights(models)
        for model in models[1:]:
            first = models[0]
            same = all(
                getattr(model, key) == getattr(first, key)
                for key in ("num_classes", "input_size", "interpolation")
            )
            if not (same and torch.equal(model.mean, first.mean) and torch.equal(model.std, first.std)):
                raise InputError(f"models '{first.name}' and '{model.name}' are preprocessed otherwise")

    def collect(self, work: Work) -> None:
        if work.done:
            return
        rows = shuffled_rows(work, 1.0)
        cut = round(self.held_out * len(rows)) if self.kind == "greedy" else 0
        held, rows = rows[:cut], rows[cut:]
        if self.kind == "greedy" and (cut < 1 or len(rows) < 2):
            raise InputError(
                f"{len(work.images)} images are too few to hold out {self.held_out:g} of them"
            )
        models = work.models if self.of is None else work.made_by(self.of, rows.sort().values)
        soup = _soup(work, models, rows) if self.kind == "uniform" else self._greedy(work, models, rows, held)
        work.commit(soup.net.state_dict())

    def _greedy(self, work: Work, models: Sequence[Classifier], rows: Tensor, held: Tensor) -> Snapshot:
        each = [accuracy(model, work.images, held) for model in models]
        order = sorted(range(len(models)), key=lambda k: -each[k])
        taken, best = [models[order[0]]], each[order[0]]
        soup = _soup(work, taken, rows)
        work.note(models[order[0]].name, accuracy=best, kept=True)
        for k in order[1:]:
            tried = _soup(work, [*taken, models[k]], rows)
            measured = accuracy(tried, work.images, held)
            kept = measured > best or (self.ties and measured == best)
            work.note(models[k].name, accuracy=measured, kept=kept)
            if kept:
                taken, best, soup = [*taken, models[k]], measured, tried
        return soup


def _soup(work: Work, models: Sequence[Classifier], rows: Tensor) -> Snapshot:
    """The mean of some models; batch-norm statistics of one model alone are estimated anew, too."""
    soup = work.snapshot(average(models))
    refresh(soup, work.images, rows)
    return soup
