"""The weights that a phase ends with: moving averages, means and the best epoch, against sums by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import advens
from advens.classifier import Classifier
from advens.defenses import create_defense
from advens.defenses.keeping import Keeper, validation_accuracy
from advens.defenses.phases import Training
from advens.defenses.training import split, train
from advens.errors import InputError

ARCH = "digits:mambaout"


def member(value: float = 0.0) -> Classifier:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False))
    made = Classifier(net, name="m", num_classes=2).requires_grad_(True)
    write(made, value)
    return made


def write(model: Classifier, value: float) -> None:
    with torch.no_grad():
        model.net[1].weight.fill_(value)  # type: ignore[index]


def weight(model: Classifier) -> float:
    return float(model.net[1].weight.detach()[0, 0])  # type: ignore[index]


def ended(how: Training, values: list[float], accuracies: list[float], *, alone: bool = True) -> Any:
    """Two learners: their weights after one update an epoch are `values`, and minus these."""
    learners = [member(), member()]
    keeper = Keeper(how, learners, alone)
    scores = iter([s for a in accuracies for s in (a, 1 - a)])
    for epoch, value in enumerate(values, 1):
        for learner, sign in zip(learners, (1, -1), strict=True):
            write(learner, sign * value)
        keeper.after_update()
        keeper.after_epoch(epoch, [torch.zeros(2, 3, 1, 1)], lambda _: next(scores))
    keeper.finish()
    return [weight(learner) for learner in learners]


def test_last() -> None:
    assert ended(Training(epochs=4), [1, 2, 4, 8], []) == [8, -8]


def test_moving_average() -> None:
    wanted = ((1 * 0.5 + 2 * 0.5) * 0.5 + 4 * 0.5) * 0.5 + 8 * 0.5
    assert ended(Training(epochs=4, average="ema", decay=0.5), [1, 2, 4, 8], []) == [wanted, -wanted]


def test_mean_over_the_second_half() -> None:
    assert ended(Training(epochs=4, average="swa"), [1, 2, 4, 8], []) == [6, -6]


def test_each_stops_at_its_own_epoch() -> None:
    how = Training(epochs=4, validation=0.1)
    assert ended(how, [1, 2, 4, 8], [0.3, 0.9, 0.9, 0.5]) == [2, -1]


def test_learners_that_depend_on_each_other_stop_together() -> None:
    """The mean of the two accuracies is the same in all epochs: the first counts."""
    how = Training(epochs=4, validation=0.1)
    assert ended(how, [1, 2, 4, 8], [0.3, 0.9, 0.9, 0.5], alone=False) == [1, -1]


def test_the_average_of_the_best_epoch() -> None:
    how = Training(epochs=3, average="ema", decay=0.5, validation=0.1)
    assert ended(how, [1, 2, 4], [0.3, 0.9, 0.2])[0] == 1.5


def test_validation_accuracy() -> None:
    """A linear model: the margin of an image is 1 - 2 |its distance|, and PGD takes 6 eps of it."""
    model = member()
    with torch.no_grad():
        model.net[1].weight.copy_(torch.tensor([[1.0, 1, 1], [-1, -1, -1]]))  # type: ignore[index]
        model.mean.fill_(0.5)
    x = torch.tensor([0.5 + d for d in (0.01, 0.03, 0.05, -0.05)]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    y = torch.tensor([0, 0, 0, 0])
    at = {eps: validation_accuracy(model, x, y, eps=eps, seed=0, batch=3) for eps in (0.0, 0.02, 0.04, 0.06)}
    assert at == {0.0: 0.75, 0.02: 0.5, 0.04: 0.25, 0.06: 0.0}


def test_images_that_are_left_out() -> None:
    held, rest = split(50, 0.2, seed=3)
    assert len(held) == 10
    assert torch.equal(torch.cat([held, rest]).sort().values, torch.arange(50))
    assert not torch.equal(held, split(50, 0.2, seed=4)[0])
    with pytest.raises(InputError, match="too few"):
        split(3, 0.1, seed=0)


def states(ensemble: Any) -> list[Tensor]:
    return [t for m in ensemble.members for t in m.net.state_dict().values()]


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_resumes_to_the_same_weights(average: str, tmp_path: Path) -> None:
    data = advens.load_data("digits:train?limit=60&seed=0")
    options = {
        "members": 2, "epochs": 3, "batch_size": 24, "optimizer": "adam", "lr": 3e-3, "steps": 1,
        "average": average, "decay": 0.5, "validation": 0.2, "validation_eps": 0.1,
    }  # fmt: skip
    defense = create_defense("at", **options)
    whole = train(defense, ARCH, data, tmp_path / "whole")

    class Killed(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        train(defense, ARCH, data, tmp_path / "cut", on_epoch=stop)
    again = train(defense, ARCH, data, tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(states(whole), states(again), strict=True))
    history = pd.read_parquet(tmp_path / "cut" / "history.parquet")
    assert history["validation"].between(0, 1).all()
    averaged, last = (
        train(create_defense("at", **options | {"average": how, "validation": 0}), ARCH, data, tmp_path / how)
        for how in (average, "none")
    )
    assert not all(torch.equal(a, b) for a, b in zip(states(averaged), states(last), strict=True))


def pooled(num_classes: int = 10) -> nn.Module:
    """A network whose batch-norm sees one value of each channel, which takes two images."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(),
        nn.Linear(8, num_classes),
    )  # fmt: skip


def test_the_mean_of_weights_with_one_image_left_over(tmp_path: Path) -> None:
    defense = create_defense(
        "plain", members=1, epochs=2, batch_size=8, optimizer="adam", lr=1e-3, average="swa"
    )
    data = advens.load_data("digits:train?limit=17&seed=0")
    arch = f"{__name__}:pooled"
    with advens.trusting(arch):
        assert train(defense, arch, data, tmp_path / "made").members
