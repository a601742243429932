"""The training loop against a plain transcription: linear members, optimizers by their formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advens.augment import jitter
from advens.cache import Folder
from advens.defenses.phases import Batch, Phase, Team, Training
from advens.defenses.training import Run
from advens.errors import RunError
from advens.seeding import Draws, derive

C, SIDE, SEED, BATCH, EPOCHS = 3, 4, 5, 4, 2
WIDE = 3 * SIDE * SIDE


def linear(seed: int) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(WIDE, C, bias=False))
    g = torch.Generator().manual_seed(seed)
    model[1].weight.data = torch.randn(C, WIDE, generator=g, dtype=torch.float64) / 5
    return model


@dataclass
class Seen:
    """What an objective was given, and what it could see of the members and of torch's generator."""

    batch: Batch
    other: tuple[Tensor, Tensor]
    training: list[bool]
    learning: list[bool]
    random: Tensor
    loss: float = math.nan


@dataclass
class Alternating:
    """Two phases, in which one of two members learns; in the second the other does."""

    training: Training
    members: int = 2
    seen: list[Seen] = field(default_factory=list)
    said: list[Any] = field(default_factory=list)

    def phases(self) -> list[Phase]:
        first = Phase("first", [0], self.loss(0))
        second = Phase(
            "second", [1], self.loss(1), before=lambda team: team.uniform(1),
            after_epoch=lambda team, epoch, x, y: self.said.append((epoch, len(x), len(y))),
        )  # fmt: skip
        return [first, second]

    def loss(self, k: int) -> Any:
        def objective(team: Team, batch: Batch) -> Tensor:
            members = team.members
            self.seen.append(
                Seen(
                    batch, batch.other(), [f.training for f in members],
                    [all(p.requires_grad for p in f.parameters()) for f in members], torch.rand(3),
                )
            )  # fmt: skip
            out = F.cross_entropy(members[k](batch.x.double()), batch.y)
            self.seen[-1].loss = float(out.detach())
            return out

        return objective


def data(count: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=g)
    return x, torch.randint(C, (count,), generator=g)


def started(training: Training, count: int, folder: Path) -> tuple[Run, Alternating]:
    team = Team([linear(0), linear(1)], torch.empty(0))  # type: ignore[list-item]
    team.uniform(2)
    defense = Alternating(training)
    x, y = data(count)
    made: Any = defense
    run = Run(made, team, x, y, x[:0], y[:0], Folder(folder), SEED, torch.device("cpu"))
    return run, defense


def permuted(count: int, *name: object) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive(*name)))


def moved(
    w: Tensor, g: Tensor, state: dict[str, Tensor], rate: float, optimizer: str, decay: float
) -> Tensor:
    """One update. ``v <- 0.9 v + g`` and w - rate v; Nesterov's takes g + 0.9 v; Adam with its defaults."""
    g = g + decay * w
    if optimizer == "adam":
        t = state["t"] = state.get("t", torch.zeros((), dtype=torch.float64)) + 1
        m = state["m"] = 0.9 * state.get("m", torch.zeros_like(w)) + 0.1 * g
        v = state["v"] = 0.999 * state.get("v", torch.zeros_like(w)) + 0.001 * g * g
        return w - rate * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    v = state["v"] = 0.9 * state["v"] + g if "v" in state else g
    return w - rate * (g + 0.9 * v if optimizer == "nesterov" else v)


@pytest.mark.parametrize(
    ("optimizer", "schedule", "count", "augment"),
    [("sgd", "steps", 10, 0.0), ("nesterov", "linear", 9, 1.0), ("adam", "cosine", 12, 0.5)],
)
def test_every_update(optimizer: Any, schedule: Any, count: int, augment: float, tmp_path: Path) -> None:
    """Which images in which order, at which rate, with which random numbers; a batch of one is left out."""
    training = Training(
        epochs=EPOCHS, lr=0.3, optimizer=optimizer, weight_decay=0.02, schedule=schedule, batch_size=BATCH,
        augment=augment,
    )  # fmt: skip
    run, defense = started(training, count, tmp_path)
    told: list[dict[str, Any]] = []
    torch.manual_seed(8)
    before = torch.get_rng_state()
    run.go(told.append)
    assert torch.equal(torch.get_rng_state(), before)

    x, y = data(count)
    weights = [f[1].weight.detach().clone() for f in (linear(0), linear(1))]
    sizes = {9: [4, 4], 10: [4, 4, 2], 12: [4, 4, 4]}[count]
    seen, history = iter(defense.seen), []
    for k, phase in enumerate(("first", "second")):
        state: dict[str, Tensor] = {}
        name = derive(SEED, phase)
        for epoch in range(EPOCHS):
            order, other = (permuted(count, name, which, epoch) for which in ("order", "other"))
            losses = []
            for step, size in enumerate(sizes):
                at, update = next(seen), derive(name, epoch, step)
                rows = [each[4 * step : 4 * step + size] for each in (order, other)]
                for pixels, chosen, purpose in (
                    ((at.batch.x, at.batch.y), rows[0], "augment"), (at.other, rows[1], "other")
                ):  # fmt: skip
                    images = x[chosen].float() / 255
                    if augment:
                        draw = torch.Generator().manual_seed(derive(update, purpose))
                        images = jitter(images, draw, augment)
                    assert torch.equal(pixels[0], images)
                    assert torch.equal(pixels[1], y[chosen])
                assert at.batch.draws == Draws(update, size)
                assert at.batch.epoch_draws == Draws(derive(name, "epoch", epoch), BATCH)
                done = (epoch + step / len(sizes)) / EPOCHS
                assert at.batch.done == pytest.approx(done)
                assert at.training == at.learning == [k == 0, k == 1]
                generator = torch.Generator().manual_seed(update)
                assert torch.equal(at.random, torch.rand(3, generator=generator))
                rate = training.rate(done)
                flat = at.batch.x.double().flatten(1)
                p = torch.softmax(flat @ weights[k].T, 1)
                losses.append(float(-p.gather(1, at.batch.y[:, None]).log().mean()))
                assert at.loss == pytest.approx(losses[-1])
                g = (p - F.one_hot(at.batch.y, C)).T @ flat / size
                weights[k] = moved(weights[k], g, state, rate, optimizer, 0.02)
            history.append({
                "phase": phase, "epoch": epoch + 1, "loss": pytest.approx(sum(losses) / len(losses)),
                "lr": pytest.approx(rate), "probabilities": [0.5, 0.5] if k == 0 else [1.0, 0.0],
                "forwards": sum(sizes), "backwards": sum(sizes),
            })  # fmt: skip
    assert next(seen, None) is None
    for f, w in zip(run.team.members, weights, strict=True):
        torch.testing.assert_close(f[1].weight.detach(), w)  # type: ignore[index]
    assert defense.said == [(1, count, count), (2, count, count)]
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in run.history] == history
    assert all(0 < row["seconds"] < 60 for row in run.history)
    keys = {"phase", "epoch", "loss", "lr", "forwards", "backwards", "seconds"}
    assert [set(row) for row in told] == [keys] * 4
    assert (run.phase, run.epoch, run.optimizer_state) == (2, 0, None)


def test_what_is_kept_of_a_training(tmp_path: Path) -> None:
    """After the first epoch of the second phase: all of it is found again."""
    training = Training(epochs=EPOCHS, lr=0.3, batch_size=BATCH, augment=0)
    run, _ = started(training, 8, tmp_path)

    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if (row["phase"], row["epoch"]) == ("second", 1):
            raise Stop

    with pytest.raises(Stop):
        run.go(stop)
    other, defense = started(training, 8, tmp_path)
    other.find()
    assert (other.phase, other.epoch) == (1, 1)
    assert other.history == run.history
    assert [row["phase"] for row in other.history] == ["first", "first", "second"]
    assert other.team.probabilities.tolist() == [1, 0]
    for f, g in zip(run.team.members, other.team.members, strict=True):
        assert torch.equal(f[1].weight, g[1].weight)  # type: ignore[index]
    phase = defense.phases()[1]
    buffers = [each._optimizer(phase).state_dict() for each in (run, other)]
    assert buffers[0]["state"] == {}
    (momentum,) = buffers[1]["state"].values()
    assert momentum["momentum_buffer"].shape == (C, WIDE)
    other.team.probabilities = torch.tensor([0.25, 0.75], dtype=torch.float64)
    other.go(None)
    assert len(defense.seen) == 2, "the one epoch that was left"
    assert other.history[-1]["probabilities"] == [0.25, 0.75], "a phase begins once"


def test_a_loss_that_is_not_finite_is_told_with_its_epoch(tmp_path: Path) -> None:
    training = Training(epochs=EPOCHS, lr=1.0, batch_size=BATCH, augment=0)
    run, defense = started(training, 8, tmp_path)
    whole = Alternating.phases

    def phases() -> list[Phase]:
        first, second = whole(defense)

        def lost(team: Team, batch: Batch) -> Tensor:
            loss: Tensor = first.objective(team, batch)
            return loss * math.inf if len(defense.seen) == 4 else loss

        return [Phase("first", [0], lost), second]

    defense.phases = phases  # type: ignore[method-assign]
    with pytest.raises(RunError) as error:
        run.go(None)
    assert str(error.value) == "first: the loss is not finite in epoch 2"
    assert len(run.history) == 1
