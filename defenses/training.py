"""The training loop of all defenses: seeded, saved after every epoch, and resumed to the same weights.

A defense declares phases; a phase declares which members learn and their loss. All that is random is seeded
by (seed, phase, epoch, step), so only weights and optimizer have to be saved.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advens.augment import jitter
from advens.cache import Folder
from advens.classifier import Classifier
from advens.defenses.compute import COUNTS, Counter, counting
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.defenses.keeping import Keeper, validation_accuracy
from advens.defenses.members import fresh
from advens.defenses.phases import Batch, Defense, Nested, Phase, Team
from advens.defenses.registry import identity
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
        x, y: the images that are trained on, bytes (N, C, H, W), and labels.
        x_held, y_held: those that are left out of training, for early stopping.
        folder: where the state is saved after every epoch.
        seed: of all that is random.
        device: where the members live.
    """

    defense: Defense
    team: Team
    x: Tensor
    y: Tensor
    x_held: Tensor
    y_held: Tensor
    folder: Folder
    seed: int
    device: torch.device
    phase: int = 0
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    optimizer_state: Any = None
    keeper_state: Any = None

    def go(self, on_epoch: Progress | None) -> None:
        """Train from the present state to the end of the last phase."""
        phases = self.defense.phases()
        while self.phase < len(phases):
            phase = phases[self.phase]
            if self.epoch == 0 and phase.before is not None:
                phase.before(self.team)
            optimizer = self._optimizer(phase)
            learners = [self.team.members[k] for k in phase.learners]
            keeper = Keeper(self.defense.training, learners, phase.alone)
            if self.keeper_state is not None:
                keeper.resume(self.keeper_state)
            while self.epoch < self.defense.training.epochs:
                counter, started = Counter(), time.perf_counter()
                self.team.counter = counter
                with counting(counter, [*self.team.members, *keeper.averaged]):
                    row = self._one_epoch(phase, optimizer, keeper)
                    self.epoch += 1
                    row |= keeper.after_epoch(self.epoch, self._clean(), self._accuracy)
                    if self.epoch == self.defense.training.epochs:
                        keeper.finish()
                    if phase.after_epoch is not None:
                        phase.after_epoch(self.team, self.epoch, self.x, self.y)
                row |= {"forwards": counter.forwards, "backwards": counter.backwards}
                row["seconds"] = time.perf_counter() - started
                self.history.append(row | {"probabilities": self.team.probabilities.tolist()})
                self._keep(optimizer, keeper)
                if on_epoch is not None:
                    on_epoch(row)
            self.phase, self.epoch = self.phase + 1, 0
            self.optimizer_state = self.keeper_state = None

    def _one_epoch(
        self, phase: Phase, optimizer: torch.optim.Optimizer, keeper: Keeper
    ) -> dict[str, Any]:
        how, total = self.defense.training, 0.0
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
            keeper.after_update()
            total += float(loss.detach())
        return {
            "phase": phase.name, "epoch": self.epoch + 1, "loss": total / len(batches),
            "lr": optimizer.param_groups[0]["lr"],
        }  # fmt: skip

    def _order(self, seed: int, which: str) -> Tensor:
        generator = torch.Generator().manual_seed(derive(seed, which, self.epoch))
        return torch.randperm(len(self.x), generator=generator)

    def _images(self, rows: Tensor, name: int) -> tuple[Tensor, Tensor]:
        images = self.x[rows].float() / 255
        if self.defense.training.augment:
            images = jitter(images, torch.Generator().manual_seed(name), self.defense.training.augment)
        return images.to(self.device), self.y[rows].to(self.device)

    def _clean(self) -> Iterator[Tensor]:
        """The images that are trained on, in batches, as they are."""
        for rows in self.x.split(self.defense.training.batch_size):
            if len(rows) > 1:  # batch-norm needs two
                yield rows.to(self.device).float() / 255

    def _accuracy(self, model: Classifier) -> float:
        """The accuracy of a member on the images that are left out of training."""
        how = self.defense.training
        return validation_accuracy(
            model, self.x_held.float() / 255, self.y_held, eps=how.validation_eps, seed=self.seed,
            batch=how.batch_size,
        )  # fmt: skip

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

    def _keep(self, optimizer: torch.optim.Optimizer, keeper: Keeper) -> None:
        """Save all that is needed to resume from here."""
        self.folder.keep({
            "members": [member.state_dict() for member in self.team.members],
            "probabilities": self.team.probabilities, "optimizer": optimizer.state_dict(),
            "keeper": keeper.state(), "phase": self.phase, "epoch": self.epoch, "history": self.history,
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
        self.optimizer_state, self.keeper_state = kept["optimizer"], kept["keeper"]


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
    held, trained_on = split(len(batch.labels), defense.training.validation, seed)
    run = Run(
        defense, team, batch.pixels[trained_on], batch.labels[trained_on], batch.pixels[held],
        batch.labels[held], Folder(folder), seed, torch.device(device),
    )  # fmt: skip
    run.find()
    run.go(on_epoch)
    ensemble = defense.finish(team)
    ensemble.eval().requires_grad_(False)
    if isinstance(defense, Nested):
        about["nested"] = defense.nested(run.history)
    about["compute"], about["images"] = spent(defense, run.history), len(batch.labels)
    with new_folder(out) as fresh_folder:
        ensemble.write(fresh_folder)
        pd.DataFrame(run.history).to_parquet(fresh_folder / "history.parquet", index=False)
        (fresh_folder / "training.json").write_text(json.dumps(about, indent=1) + "\n")
    shutil.rmtree(folder)
    return ensemble


def split(images: int, validation: float, seed: int) -> tuple[Tensor, Tensor]:
    """The places of the images that are left out for early stopping, and of those that are trained on.

    Raises:
        InputError: one of the two would be empty although a part is to be left out.
    """
    if not validation:
        return torch.arange(0), torch.arange(images)
    count = round(images * validation)
    if not 0 < count < images - 1:
        raise InputError(f"validation = {validation} of {images} images leaves too few on one side")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(derive(seed, "validation")))
    return order[:count].sort().values, order[count:].sort().values


def what(defense: Defense, arch: str, data: Dataset, seed: int) -> dict[str, Any]:
    """All that determines the weights, as values for JSON."""
    about = identity(defense) | {"arch": arch, "data": data.digest, "seed": seed}
    about["training"].pop("stacked")  # changes how weights are computed, as the device does, not which
    return about


def spent(defense: Defense, history: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The compute of a training: of the first 1, 2, ... members where these are ensembles, else of all.

    Of members that are trained together but independently each has an equal share.

    Args:
        history: a row for every epoch, with `COUNTS`.
    """
    phases = [phase.name for phase in defense.phases()]
    by_phase = [
        {what: sum(row[what] for row in history if row["phase"] == phase) for what in COUNTS}
        for phase in phases
    ]
    total = {what: sum(each[what] for each in by_phase) for what in COUNTS}
    if not isinstance(defense, Nested):
        return [total]
    if len(phases) == 1:
        shares = [m / defense.members for m in range(1, defense.members + 1)]
        return [{what: total[what] * share for what in COUNTS} for share in shares]
    return [
        {what: sum(each[what] for each in by_phase[: m + 1]) for what in COUNTS} for m in range(len(phases))
    ]


def _agree(path: Path, about: dict[str, Any]) -> None:
    """Write what a folder trains. Raises InputError when it holds the training of something else."""
    text = json.dumps(about, indent=1) + "\n"
    if path.is_file() and path.read_text() != text:
        raise InputError(f"{path.parent} holds an interrupted training of something else; remove it")
    write_bytes(path, text.encode())
