"""Suites with ``goal = "defense"``: train defenses, several times over, and put all through one trial.

Every training is done once, and kept in the cache; smaller ensembles of defenses that learn member by member
are cut from the largest. The trial is that of ``advens defend``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator

from advens.benchmarks.defend import Trial, defend, trial_of
from advens.benchmarks.executors import execute
from advens.benchmarks.plan import outline
from advens.benchmarks.progress import Progress
from advens.benchmarks.suites import NAME, Suite, Title, from_table, read, validated
from advens.datasets import Dataset, find_data
from advens.defenses.members import architecture
from advens.errors import RunError
from advens.results.boards import to_table
from advens.results.boards.defenses import pooled
from advens.results.store import write_table


class TrainingTable(BaseModel):
    """The ``[training]`` table; keys that are not listed here are options of all defenses."""

    model_config = ConfigDict(extra="allow", frozen=True)

    arch: str
    data: str


class DefenseEntry(BaseModel):
    """One ``[[defenses]]`` entry; keys that are not listed here are options of the defense.

    Args:
        name: of the defense.
        members: the sizes it is trained with.
        label: on the tables.
        table: on which it stands.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    members: list[int] = Field(min_length=1)
    label: Title | None = None
    table: Title = "defenses"

    @field_validator("members", mode="before")
    @classmethod
    def _listed(cls, members: Any) -> Any:
        return [members] if isinstance(members, int) else members

    @property
    def title(self) -> str:
        """How it is called on tables."""
        return self.label or self.name


class Study(BaseModel):
    """A suite of defenses as written.

    Args:
        name: letters, digits, dashes.
        data: images that are attacked.
        limit: the first images of a shuffle seeded with 0.
        open_limit: the first of these for attacks in the open, which cost the most.
        seeds: of the trainings.
        eps: l_inf radii of transfer; attacks in the open have the largest.
        surrogates: models that transfer comes from, trained separately.
        attacks: on these.
        open: attacks on the defenses themselves; ``advens defend``'s own without.
        training: what is common to all trainings.
        defenses: what is trained.
        batch_size: images attacked at once (does not change results).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Title = Field(pattern=NAME)
    goal: Literal["defense"]
    data: str
    limit: int | None = Field(None, ge=1)
    open_limit: int | None = Field(None, ge=1)
    seeds: list[int] = Field([0], min_length=1)
    eps: list[float | str] = Field(min_length=1)
    surrogates: list[str] = Field(min_length=1)
    attacks: list[str] = Field(min_length=1)
    open: list[str] = []
    training: TrainingTable
    defenses: list[DefenseEntry] = Field(min_length=1)
    batch_size: int | None = Field(None, ge=1)

    def trial(self, names: list[str]) -> Trial:
        """What the trained ones are put through."""
        budgets = [str(eps) for eps in self.eps]
        return trial_of(
            names, self.data, self.surrogates, self.attacks, budgets, self.open, limit=self.limit,
            open_limit=self.open_limit, batch_size=self.batch_size,
        )  # fmt: skip


def load(name: str, changes: Mapping[str, Any] | None = None) -> Study | Suite:
    """A suite of either kind; see `advens.benchmarks.suites.load_suite`."""
    table, where, text = read(name, changes)
    if table.get("goal") != "defense":
        return from_table(table, where, text)
    return validated(Study, table, where, text)


@dataclass(frozen=True)
class Train:
    """The task of a worker: one training, unless the cache has it."""

    name: str
    options: tuple[tuple[str, Any], ...]
    arch: str
    data: str
    seed: int

    @property
    def title(self) -> str:
        return f"{self.name} of {dict(self.options)['members']}, seed {self.seed}"

    @property
    def defense(self) -> Any:
        """The defense. Raises InputError for an unknown one or a bad option."""
        from advens.defenses import create_defense

        return create_defense(self.name, **dict(self.options))

    def model(self, device: str = "cpu") -> str:
        """The name of the ensemble."""
        from advens.defenses.trained import trained

        return trained(self.defense, self.arch, _data(self.data), seed=self.seed, device=device)

    def do(self, device: str) -> int:
        """Trains. Returns members."""
        self.model(device)
        return int(self.defense.members)


@lru_cache(maxsize=1)
def _data(source: str) -> Dataset:
    """Opened once: its digest is needed for every training."""
    return find_data(source)


@dataclass(frozen=True)
class Contestant:
    """A line of a table: what is trained, and with which seed."""

    table: str
    label: str
    members: int
    training: Train

    def model(self, trained: str) -> str:
        """The name of the model, given that of the training."""
        whole = self.training.defense.members
        return trained if self.members == whole else f"{trained}?members={self.members}"


def contestants(study: Study) -> list[Contestant]:
    """All lines; those that are cut from one training share it.

    Raises:
        InputError: unknown defenses, options or models.
    """
    from advens.defenses.phases import Nested

    common, found = dict(study.training.model_extra or {}), []
    for entry in study.defenses:
        options = common | (entry.model_extra or {})
        for seed in study.seeds:
            for members in entry.members:
                train = _train(study, entry.name, options | {"members": members}, seed)
                if isinstance(train.defense, Nested):
                    train = _train(study, entry.name, options | {"members": max(entry.members)}, seed)
                found.append(Contestant(entry.table, entry.title, members, train))
    return found


def check(study: Study) -> None:
    """Raise InputError for names that would go wrong after the trainings; nothing is loaded."""
    stand_in = replace(study.trial([]), defenses=(architecture(study.training.arch, ""),))
    for suite in stand_in.suites(()).values():
        outline(suite, held_out=False)


def _train(study: Study, name: str, options: dict[str, Any], seed: int) -> Train:
    how = study.training
    return Train(name, tuple(sorted(options.items())), architecture(how.arch, how.data), how.data, seed)


def _train_all(tasks: list[Train], progress: Progress, how: dict[str, Any]) -> None:
    """What the cache does not have."""
    failed = []
    with progress.task("training", len(tasks)) as advance, closing(execute(tasks, **how)) as outcomes:
        for task, outcome in outcomes:
            if isinstance(outcome, RunError):
                failed.append(f"{task.title}: {outcome}")
            advance(task.title)
    if failed:
        raise RunError(f"{len(failed)} trainings failed ({failed[0]}); the others are kept")


def _size(task: Train) -> int:
    return int(task.defense.members)


def run_study(
    study: Study,
    directory: Path,
    *,
    device: str = "cpu",
    executor: str = "local",
    workers: int = 1,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Do what is missing of a study; its pooled table, also in ``study.parquet``.

    ``defenses.parquet`` has a row for every model, as by ``advens defend``.

    Raises:
        InputError: a name that cannot be, or a directory that holds another study.
        RunError: something failed; what is finished is kept.
    """
    progress, lines = progress or Progress(), contestants(study)
    how: dict[str, Any] = {"executor": executor, "workers": workers, "device": device}
    check(study)
    for source in (study.data, study.training.data):
        find_data(source)
    tasks = dict.fromkeys(line.training for line in lines)
    _train_all(sorted(tasks, key=_size, reverse=True), progress, how)  # long ones first
    trained = {task: task.model() for task in tasks}
    names = [line.model(trained[line.training]) for line in lines]
    found = defend(study.trial(names), directory, progress=progress, **how)
    about = pd.DataFrame(
        {"table": line.table, "label": line.label, "members": line.members, "seed": line.training.seed,
         "defense": name} for line, name in zip(lines, names, strict=True)
    )  # fmt: skip
    each = about.merge(found.drop(columns="members"), on="defense", how="left", validate="many_to_one")
    table = pooled(each, pd.read_parquet(directory / "images.parquet"))
    write_table(directory / "defenses.parquet", to_table("defenses", each))
    write_table(directory / "study.parquet", to_table("study", table))
    return table
