"""ViT augmentation with strengths found by Bayesian optimisation, cached with the search's history."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from advens.attacks.parts import part
from advens.attacks.surrogates.builders.build import (
    Progress,
    check,
    finding,
    identity,
    read_history,
    write_history,
)
from advens.attacks.surrogates.builders.cached import described
from advens.attacks.surrogates.builders.copies import Strategies, copied
from advens.attacks.surrogates.builders.search import Objective, Trial, best, search
from advens.cache import Folder, cache_root
from advens.classifier import Classifier, borrowed, device_of
from advens.datasets import Dataset
from advens.digest import value_digest
from advens.errors import InputError
from advens.fields import Count
from advens.seeding import derive
from advens.threat import parse_eps

if TYPE_CHECKING:
    import pandas as pd

PAPER = "Cao et al., ICCV 2025 (ViT-EnsembleAttack)"
BOUNDS = {"head-drop": (0.0, 0.5), "score-scale": (0.0, 1.0), "token-mix": (0.0, 0.5)}
"""Where the strengths of the strategies are looked for."""


@part("builder", "vit-search", family="surrogate", paper=PAPER, year=2025)
class ViTSearch(Strategies):
    """Augmented copies of several ViTs, with strengths that transfer best from each to the others.

    One strength for every strategy and model, by scikit-optimize's ``gp_minimize`` over all
    strategies of a model together. The objective is leave-one-out transfer on some images of
    ``data``; copies must keep 80 % of the model's clean accuracy. Only the paper's abstract is known to us,
    which names Bayesian optimisation: the objective, the 80 %, the bounds, the number of images, the attack
    and its radius are ours.

    Args:
        strategies, copies, plain: as for ``vit-augment``.
        calls: of the objective for every model.
        images: how many calibrate, drawn from ``data``.
        attack: the recipe that crafts on the copies.
        eps: its l_inf radius; take that of the threat.
        steps: its steps.
    """

    calls: Annotated[int, Field(ge=2)] = 25
    images: Count = 64
    attack: str = "vit-ensemble"
    eps: float | str = "16/255"
    steps: Count = 10
    calibrates: ClassVar[bool] = True
    """It judges transfer: the images it sees may not be attacked."""

    @field_validator("eps")
    @classmethod
    def _radius(cls, eps: float | str) -> float | str:
        if parse_eps(eps) <= 0:
            raise ValueError("above 0")
        return eps

    def ticks(self, models: int) -> int:
        """How often progress is told: of every call."""
        return models * self.calls

    def build(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0,
        cache: Path | str | None = None, progress: Progress | None = None,
    ) -> list[Classifier]:  # fmt: skip
        """The copies, from the cache where the same search was made before.

        Raises:
            InputError: fewer than two models, or one with nothing to augment.
        """
        models = list(models)
        check(models, data)
        if len(models) < 2:
            raise InputError("'vit-search' judges a model's copies on the others: give two models or more")
        copied(models, lambda model: self.changes(dict.fromkeys(self.strategies, 0.0)))  # refuses by name
        what = identity(self, models, data, seed)
        folder = Folder((Path(cache) if cache is not None else cache_root("built")) / value_digest(what, 20))
        about = described(folder)
        if about is None:
            with folder.locked():
                about = described(folder)
                if about is None:
                    strengths = self._search(models, data, seed, folder, progress)
                    about = what | finding(models, data, []) | {"strengths": strengths}
                    folder.finish(about)
        found: dict[str, Mapping[str, float]] = dict(
            zip((m.name for m in models), about["strengths"], strict=True)
        )
        return copied(models, lambda model: self.changes(found[model.name]))

    def history(
        self, models: Sequence[Classifier], data: Dataset, *, seed: int = 0, cache: Path | str | None = None
    ) -> pd.DataFrame:
        """The calls of a search that was made: model, call, strengths, objective, accuracy, allowed, chosen.

        Raises:
            InputError: it was not made yet.
        """
        return read_history(self, list(models), data, seed, cache)

    def _search(
        self, models: list[Classifier], data: Dataset, seed: int, folder: Folder, progress: Progress | None
    ) -> list[dict[str, float]]:
        """The best strengths of each model; every trial is kept when it is over."""
        x, y = self._calibration(data, seed, models[0])
        kept: list[list[dict[str, Any]]] = (folder.state() or {}).get("trials", [])
        bounds = {name: BOUNDS[name] for name in self.strategies}
        found: list[dict[str, float]] = []
        with borrowed(models):
            for k in range(len(models)):
                if len(kept) == k:
                    kept.append([])
                done = sum(map(len, kept[:k]))

                def keep(trial: Trial, k: int = k, done: int = done) -> None:
                    kept[k].append(asdict(trial))
                    folder.keep({"trials": kept})
                    if progress is not None:
                        progress(done + len(kept[k]), self.ticks(len(models)))

                trials = search(
                    self._objective(models, k, x, y, seed), bounds, calls=self.calls,
                    seed=derive(seed, "vit-search", k), known=[Trial(**t) for t in kept[k]], on_trial=keep,
                )  # fmt: skip
                found.append(best(trials).strengths)
        write_history(folder, _rows(models, kept, found))
        return found

    def _calibration(self, data: Dataset, seed: int, like: Classifier) -> tuple[Tensor, Tensor]:
        """Some images of the data, drawn by the seed."""
        generator = torch.Generator().manual_seed(derive(seed, "calibration"))
        rows = torch.randperm(len(data), generator=generator)[: self.images].sort().values
        device = device_of(like) or torch.device("cpu")
        x = torch.stack([torch.from_numpy(data.pixels(row)) for row in rows.tolist()])
        y = torch.as_tensor(data.labels[rows.numpy()])
        return x.to(device, torch.float32) / 255, y.to(device)

    def _objective(
        self, models: list[Classifier], k: int, x: Tensor, y: Tensor, seed: int
    ) -> Callable[[Mapping[str, float]], Trial]:
        from advens.attacks.registry import create_attack

        def copies(strengths: Mapping[str, float]) -> list[Classifier]:
            return copied([models[k]], lambda model: self.changes(strengths))

        attack = create_attack(self.attack, eps=self.eps, steps=self.steps)
        others = [model for j, model in enumerate(models) if j != k]
        return Objective(models[k], others, copies, x, y, attack, derive(seed, "vit-search", k))


def _rows(
    models: Sequence[Classifier],
    trials: Sequence[Sequence[dict[str, Any]]],
    best_of: Sequence[dict[str, float]],
) -> list[dict[str, Any]]:
    """The history, a row for every trial."""
    return [
        {"model": model.name, "call": call} | trial["strengths"]
        | {key: trial[key] for key in ("objective", "clean_accuracy", "allowed")}
        | {"chosen": trial["strengths"] == chosen}
        for model, each, chosen in zip(models, trials, best_of, strict=True)
        for call, trial in enumerate(each)
    ]  # fmt: skip
