"""Builders without training: several copies of each model, changed inside, each drawing for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator
from pydantic.dataclasses import dataclass

from advens.attacks.hooks import attached
from advens.attacks.interfaces import ChangeContext
from advens.attacks.parts import from_spec, part
from advens.attacks.surrogates.builders.build import Progress
from advens.attacks.surrogates.changes.ghost import Published
from advens.attacks.surrogates.changes.source import ChangedModel
from advens.classifier import Classifier
from advens.datasets import Dataset
from advens.fields import Count

PAPER = "Cao et al., ICCV 2025 (ViT-EnsembleAttack)"

STRENGTHS = {"head-drop": "p", "score-scale": "s", "token-mix": "m"}
"""The strategies and the name of each one's strength."""


@part("builder", "ghost", family="surrogate", paper="Li et al., AAAI 2020 (Ghost Networks)", year=2020)
class GhostNetworks:
    """Ghost networks side by side: copies with scaled skip connections, or with dropout.

    Args:
        copies: of each model.
        keep, scale: of the change ``ghost``.
    """

    copies: Count = 4
    keep: float | Published = "published"
    scale: float | Published = "published"

    def members(self, models: int) -> int:
        return models * self.copies

    def build(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0,
        cache: Path | str | None = None, progress: Progress | None = None,
    ) -> list[Classifier]:  # fmt: skip
        """The copies; nothing is trained, and ``data`` is not looked at."""
        ghost = from_spec("change", {"name": "ghost", "keep": self.keep, "scale": self.scale})
        return copied(models, lambda model: [[ghost]] * self.copies, progress)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Strategies:
    """Which augmented copies a ViT gives: what `ViTAugment` and the search for its strengths share."""

    strategies: tuple[str, ...] = ("head-drop", "score-scale", "token-mix")
    copies: Count = 1
    plain: bool = True

    @field_validator("strategies")
    @classmethod
    def _known(cls, strategies: tuple[str, ...]) -> tuple[str, ...]:
        for each in strategies:
            if each not in STRENGTHS:
                raise ValueError(f"'{each}' is none of {', '.join(STRENGTHS)}")
        if not strategies or len(set(strategies)) < len(strategies):
            raise ValueError("different strategies, at least one")
        return strategies

    def members(self, models: int) -> int:
        """Copies, and the models themselves."""
        return models * (self.copies * len(self.strategies) + self.plain)

    def changes(self, strengths: Mapping[str, float]) -> list[list[Any]]:
        """What is done to each copy of a model, for strengths by strategy."""
        augmented = [
            [from_spec("change", {"name": name, STRENGTHS[name]: strengths[name]})]
            for name in self.strategies for _ in range(self.copies)
        ]  # fmt: skip
        return [[], *augmented] if self.plain else augmented


@part("builder", "vit-augment", family="surrogate", paper=PAPER, year=2025)
class ViTAugment(Strategies):
    """Augmented copies of ViTs, with strengths given: as many of each strategy.

    Head dropping, attention score scaling and MLP feature mixing; a copy has one strategy. `vit-search`
    finds the strengths by Bayesian optimisation. Only the paper's abstract is known to us: the strengths and
    the number of copies are ours.

    Args:
        strategies: those wanted.
        copies: of each model and strategy.
        plain: whether the model itself is among the surrogates.
        p: probability that a head is dropped.
        s: half the width of the range of the scores' factors.
        m: share of a token's hidden features that come from another token.
    """

    p: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    s: Annotated[float, Field(ge=0, le=1)] = 0.2
    m: Annotated[float, Field(ge=0, le=0.5)] = 0.1

    def build(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0,
        cache: Path | str | None = None, progress: Progress | None = None,
    ) -> list[Classifier]:  # fmt: skip
        """The copies; nothing is trained, and ``data`` is not looked at."""
        strengths = {"head-drop": self.p, "score-scale": self.s, "token-mix": self.m}
        return copied(models, lambda model: self.changes(strengths), progress)


def copied(
    models: Sequence[Classifier],
    changes: Callable[[Classifier], Sequence[Sequence[Any]]],
    progress: Progress | None = None,
) -> list[Classifier]:
    """Copies of each model under lists of changes; an empty list is the model itself.

    Raises:
        InputError: a model has nothing that a change could change.
    """
    wanted = [(model, list(changes(model))) for model in models]
    total = sum(len(lists) for _, lists in wanted)
    made: list[Classifier] = []
    for model, lists in wanted:
        for member, each in enumerate(lists):
            copy = ChangedModel(model, each, member) if each else model
            with attached(model, each, ChangeContext()):
                pass  # refused here, by name
            made.append(copy)
            if progress is not None:
                progress(len(made), total)
    return made
