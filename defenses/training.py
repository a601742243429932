"""The training loop of all defenses: seeded, saved after every epoch, and resumed to the same weights.

A defense declares phases; a phase declares which members learn and their loss. All that is random is seeded
by (seed, phase, epoch, step), so only weights and optimizer have to be saved.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advens.augment import jitter
from advens.cache import Folder
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.members import fresh
from advens.defenses.phases import Batch, Defense, Nested, Phase, Team
from advens.defenses.registry import describe
from advens.errors import InputError, RunError
from advens.files import new_folder, write_bytes
from advens.seeding import Draws, derive

if TYPE_CHECKING:
    from advens.datasets import Dataset

Progress = Callable[[dict[str, Any]], None]


@dataclass
class Run:
    """A training in progress.

    Args:
        defense: what is trained.
        team: members and probabilities.
        x, y: all training images, bytes (N, C, H, W), and labels.
        folder: where the state is saved after every epoch.
        seed: of all that is random.
        device: where the members live.
    """

    defense: Defense
    team: Team
    x: Tensor
    y: Tensor
    folder: Folder
    seed: int
    device: torch.device
    phase: int = 0
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    optimizer_state: Any = None

    def go(self, on_epoch: Progress | None) -> None:
        """Train from the present state to the end of the last phase."""
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
                self.history.append(row | {"probabilities": self.team.probabilities.tolist()})
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
        images = self.x[rows].float() / 255
        if self.defense.training.augment:
            images = jitter(images, torch.Generator().manual_seed(name), self.defense.training.augment)
        return images.to(self.device), self.y[rows].to(self.device)

    def _optimizer(self, phase: Phase) -> torch.optim.Optimizer:
        """The optimizer of the learners, the only members with gradients, in the state that was saved."""
        how = self.defense.training
        for k, member in enumerate(self.team.members):
            member.requires_grad_(k in phase.learners).train(k in phase.learners)
        learners = [p for k in phase.learners for p in self.team.members[k].parameters()]
        optimizer: torch.optim.Optimizer
        if how.optimizer == "adam":
            optimizer = torch.optim.Adam(learners, how.lr, weight_decay=how.weight_decay)
        else:
            optimizer = torch.optim.SGD(
                learners, how.lr, momentum=0.9, weight_decay=how.weight_decay,
                nesterov=how.optimizer == "nesterov",
            )
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        return optimizer

    def _keep(self, optimizer: torch.optim.Optimizer) -> None:
        """Save all that is needed to resume from here."""
        self.folder.keep({
            "members": [member.state_dict() for member in self.team.members],
            "probabilities": self.team.probabilities, "optimizer": optimizer.state_dict(),
            "phase": self.phase, "epoch": self.epoch, "history": self.history,
        })  # fmt: skip

    def find(self) -> None:
        """Resume from the state that was saved, if there is one."""
        kept = self.folder.state()
        if kept is None:
            return
        for member, weights in zip(self.team.members, kept["members"], strict=True):
            member.load_state_dict(weights)
        self.team.probabilities = kept["probabilities"]
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
    """Train a defense, and save the ensemble at ``out`` with ``history.parquet``.

    The training in progress is saved in ``OUT.training``, from where it resumes.

    Args:
        defense: see `advens.defenses.create_defense`.
        arch: a model source whose architecture the members have.
        data: training images with labels; held in memory as bytes.
        out: a folder that does not exist yet.
        seed: of all that is random.
        device: where the members are trained.
        on_epoch: called after every epoch with a row of the history.

    Raises:
        InputError: ``out`` exists, or ``OUT.training`` holds a training of something else.
        RunError: the loss is not finite.
    """
    import pandas as pd

    if out.exists():
        raise InputError(f"{out} is there already; give another --out")
    folder = out.with_name(f"{out.name}.training")
    about = what(defense, arch, data, seed)
    _agree(folder / "training.json", about)
    batch = next(data.batches([slice(0, len(data))]))
    size = (int(batch.pixels.shape[2]), int(batch.pixels.shape[3]))
    members = [
        fresh(arch, data.num_classes, size, seed, k).to(device) for k in range(defense.members)
    ]
    team = Team(members, torch.empty(0))
    team.uniform(len(members))
    run = Run(defense, team, batch.pixels, batch.labels, Folder(folder), seed, torch.device(device))
    run.find()
    run.go(on_epoch)
    ensemble = defense.finish(team)
    ensemble.eval().requires_grad_(False)
    if isinstance(defense, Nested):
        about["nested"] = defense.nested(run.history)
    with new_folder(out) as fresh_folder:
        ensemble.write(fresh_folder)
        pd.DataFrame(run.history).to_parquet(fresh_folder / "history.parquet", index=False)
        (fresh_folder / "training.json").write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(folder)
    return ensemble


def what(defense: Defense, arch: str, data: Dataset, seed: int) -> dict[str, Any]:
    """All that determines the weights, as values for JSON."""
    about = describe(defense) | {"arch": arch, "data": data.digest, "seed": seed}
    about["training"].pop("stacked")  # changes how weights are computed, as the device does, not which
    return about


def _agree(path: Path, about: dict[str, Any]) -> None:
    """Write what a folder trains. Raises InputError when it holds the training of something else."""
    text = json.dumps(about, indent=1) + "\n"
    if path.is_file() and path.read_text() != text:
        raise InputError(f"{path.parent} holds an interrupted training of something else; remove it")
    write_bytes(path, text.encode())
