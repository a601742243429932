"""The one training loop of all defenses: seeded, kept after every epoch, resumed to the same weights.

A defense is a few phases; a phase says who learns and what the loss is. Whatever is random is named by
(seed, phase, epoch, step), so nothing but weights and optimizer has to be kept.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from advens.classifier import Classifier
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.members import fresh
from advens.defenses.ranges import Count, NonNegative, Positive, Several
from advens.errors import InputError, RunError
from advens.seeding import Draws, derive

if TYPE_CHECKING:
    from advens.datasets import Dataset

MILESTONES = (0.5, 0.75)
"""Parts of a phase after which the learning rate falls to a tenth, in the papers of most defenses."""


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Training:
    """How members learn, for all defenses.

    Args:
        epochs: of every phase.
        lr: at the beginning.
        optimizer: ``sgd`` (Nesterov-free momentum 0.9) or ``adam``.
        weight_decay: of the optimizer.
        schedule: ``steps``, a tenth after 50 and 75 % of a phase, or ``cosine`` to zero.
        batch_size: images of one update.
        augment: strength of the zoo's augmentation (shifts, turns, brightness, noise); 0 is none.
    """

    epochs: Count = 200
    lr: Positive = 0.1
    optimizer: Literal["sgd", "adam"] = "sgd"
    weight_decay: NonNegative = 1e-4
    schedule: Literal["steps", "cosine"] = "steps"
    batch_size: Several = 128
    augment: NonNegative = 1.0

    def rate(self, done: float) -> float:
        """The learning rate after a part of a phase."""
        if self.schedule == "cosine":
            return self.lr * (1 + math.cos(math.pi * done)) / 2
        return self.lr * 0.1 ** sum(done >= milestone for milestone in MILESTONES)


@dataclass
class Batch:
    """What an objective sees.

    Args:
        x: images (N, C, H, W) in [0, 1], augmented.
        y: labels (N,).
        other: gives a second, independent batch of the same size.
        draws: random numbers of this update.
        epoch_draws: random numbers that are the same all epoch.
        done: the part of the phase that is over.
    """

    x: Tensor
    y: Tensor
    other: Callable[[], tuple[Tensor, Tensor]]
    draws: Draws
    epoch_draws: Draws
    done: float = 0.0


@dataclass
class Team:
    """The members so far and how often each is drawn."""

    members: list[Classifier]
    probabilities: Tensor

    def uniform(self, count: int) -> None:
        """The first ``count`` members, equally often; the others never."""
        self.probabilities = torch.zeros(len(self.members), dtype=torch.float64)
        self.probabilities[:count] = 1 / count


class Objective(Protocol):
    """The loss of the learners, summed: each learner's gradient is its own."""

    def __call__(self, team: Team, batch: Batch) -> Tensor:
        """A scalar."""
        ...


@dataclass
class Phase:
    """A stretch of training.

    Args:
        name: of the phase, in the history.
        learners: members that learn.
        objective: what they minimise.
        before: called once before the first epoch.
        after_epoch: called with the epoch's number from 1 when it is over; may change probabilities.
    """

    name: str
    learners: Sequence[int]
    objective: Objective
    before: Callable[[Team], None] | None = None
    after_epoch: Callable[[Team, int, Tensor, Tensor], None] | None = None


class Defense(Protocol):
    """A frozen dataclass of parameters."""

    members: int
    training: Training

    def phases(self) -> list[Phase]:
        """In order."""
        ...

    def finish(self, team: Team) -> Ensemble | RandomizedEnsemble:
        """The ensemble that was trained."""
        ...


Progress = Callable[[dict[str, Any]], None]


@dataclass
class Run:
    """A training under way, and how to keep and find it.

    Args:
        defense: what is trained.
        team: members and probabilities.
        x, y: all training images, bytes (N, C, H, W), and labels.
        folder: where it is kept while it goes on.
        seed: of everything.
        device: where the members live.
    """

    defense: Defense
    team: Team
    x: Tensor
    y: Tensor
    folder: Path
    seed: int
    device: torch.device
    phase: int = 0
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    optimizer_state: Any = None

    @property
    def state(self) -> Path:
        return self.folder / "state.pt"

    def go(self, on_epoch: Progress | None) -> None:
        """All that is left."""
        phases = self.defense.phases()
        while self.phase < len(phases):
            phase = phases[self.phase]
            if self.epoch == 0 and phase.before is not None:
                phase.before(self.team)
            optimizer = self._optimizer(phase)
            while self.epoch < self.defense.training.epochs:
                row = self._one_epoch(phase, optimizer)
                self.epoch += 1
                if phase.after_epoch is not None:
                    phase.after_epoch(self.team, self.epoch, self.x, self.y)
                self.history.append(row)
                self._keep(optimizer)
                if on_epoch is not None:
                    on_epoch(row)
            self.phase, self.epoch, self.optimizer_state = self.phase + 1, 0, None

    def _one_epoch(self, phase: Phase, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        how, started, total = self.defense.training, time.perf_counter(), 0.0
        seed = derive(self.seed, phase.name)
        epoch_draws = Draws(derive(seed, "epoch", self.epoch), how.batch_size)
        order, other = (self._order(seed, which) for which in ("order", "other"))
        batches = [b for b in order.split(how.batch_size) if len(b) > 1]  # batch-norm needs two
        for step, rows in enumerate(batches):
            done = (self.epoch + step / len(batches)) / how.epochs
            for group in optimizer.param_groups:
                group["lr"] = how.rate(done)
            name = derive(seed, self.epoch, step)
            second = other[step * how.batch_size :][: len(rows)]
            batch = Batch(
                *self._images(rows, derive(name, "augment")),
                lambda rows=second, name=name: self._images(rows, derive(name, "other")),  # type: ignore[misc]
                Draws(name, len(rows)), epoch_draws, done,
            )  # fmt: skip
            with torch.random.fork_rng():  # dropout and its kin
                torch.manual_seed(name)
                loss = phase.objective(self.team, batch)
            if not bool(torch.isfinite(loss)):
                raise RunError(f"{phase.name}: the loss is not finite in epoch {self.epoch + 1}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
        return {
            "phase": phase.name, "epoch": self.epoch + 1, "loss": total / len(batches),
            "lr": optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - started,
        }  # fmt: skip

    def _order(self, seed: int, which: str) -> Tensor:
        generator = torch.Generator().manual_seed(derive(seed, which, self.epoch))
        return torch.randperm(len(self.x), generator=generator)

    def _images(self, rows: Tensor, name: int) -> tuple[Tensor, Tensor]:
        from advens.zoo.training import augment

        images = self.x[rows].float() / 255
        if self.defense.training.augment:
            images = augment(images, torch.Generator().manual_seed(name), self.defense.training.augment)
        return images.to(self.device), self.y[rows].to(self.device)

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """Of the learners, who alone take gradients; as it was when the training was interrupted."""
        how = self.defense.training
        for k, member in enumerate(self.team.members):
            member.requires_grad_(k in phase.learners).train(k in phase.learners)
        learners = [p for k in phase.learners for p in self.team.members[k].parameters()]
        optimizer: torch.optim.Optimizer
        if how.optimizer == "sgd":
            optimizer = torch.optim.SGD(learners, how.lr, momentum=0.9, weight_decay=how.weight_decay)
        else:
            optimizer = torch.optim.Adam(learners, how.lr, weight_decay=how.weight_decay)
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        return optimizer

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        """All that is needed to go on from here, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {
            "members": [member.state_dict() for member in self.team.members],
            "probabilities": self.team.probabilities, "optimizer": optimizer.state_dict(),
            "phase": self.phase, "epoch": self.epoch, "history": self.history,
        }  # fmt: skip
        fresh_file = self.folder / f".state.{os.getpid()}"
        torch.save(state, fresh_file)
        os.replace(fresh_file, self.state)

    def find(self) -> None:
        """Go on from what was kept, if anything was."""
        if not self.state.is_file():
            return
        kept = torch.load(self.state, map_location=self.device, weights_only=True)
        for member, weights in zip(self.team.members, kept["members"], strict=True):
            member.load_state_dict(weights)
        self.team.probabilities = kept["probabilities"].cpu()
        self.phase, self.epoch, self.history = kept["phase"], kept["epoch"], kept["history"]
        self.optimizer_state = kept["optimizer"]


def train(
    defense: Defense,
    arch: str,
    data: Dataset,
    out: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    on_epoch: Progress | None = None,
) -> Ensemble | RandomizedEnsemble:
    """Train a defense; the ensemble is saved at ``out`` when it is whole, with ``history.parquet``.

    While it goes on it is kept in ``OUT.training``, from where it resumes.

    Args:
        defense: see `advens.defenses.create_defense`.
        arch: a model source whose architecture the members have.
        data: training images with labels; held in memory as bytes.
        out: a folder that does not exist yet.

    Raises:
        InputError: ``out`` is there, or an interrupted training of something else is.
        RunError: the loss is not finite.
    """
    import pandas as pd

    from advens.defenses.registry import describe

    if out.exists():
        raise InputError(f"{out} is there already; give another --out")
    folder = out.with_name(f"{out.name}.training")
    about = describe(defense) | {"arch": arch, "data": data.digest, "seed": seed}
    _agree(folder / "training.json", about)
    batch = next(data.batches([slice(0, len(data))]))
    size = (int(batch.pixels.shape[2]), int(batch.pixels.shape[3]))
    members = [
        fresh(arch, data.num_classes, size, seed, k).to(device) for k in range(defense.members)
    ]
    team = Team(members, torch.empty(0))
    team.uniform(len(members))
    run = Run(defense, team, batch.pixels, batch.labels, folder, seed, torch.device(device))
    run.find()
    run.go(on_epoch)
    ensemble = defense.finish(team)
    ensemble.eval().requires_grad_(False)
    ensemble.save(out)
    pd.DataFrame(run.history).to_parquet(out / "history.parquet", index=False)
    (out / "training.json").write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(folder)
    return ensemble


def _agree(path: Path, about: dict[str, Any]) -> None:
    """What is trained in a folder is written there before anything is; it does not change."""
    text = json.dumps(about, indent=1) + "\n"
    if path.is_file() and path.read_text() != text:
        raise InputError(f"{path.parent} holds an interrupted training of something else; remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
