"""MBA, soups and cyclical learning rates against their formulas."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from advens.attacks.builders import trajectory
from advens.attacks.builders.cyclical import FGE, Snapshots
from advens.attacks.builders.lgv import LGV
from advens.attacks.builders.mba import MBA
from advens.attacks.builders.soup import Soup
from advens.attacks.builders.train import Images, accuracy, refresh
from advens.classifier import Classifier
from advens.datasets import Dataset
from advens.errors import InputError
from advens.seeding import derive

SHORT = LGV(epochs=2, batch_size=25, lr=0.01)


def sorted_names(model: Classifier) -> list[str]:
    parameters = dict(model.net.named_parameters())
    return [name for name in model.net.state_dict() if name in parameters]


@pytest.mark.parametrize("rank", [0, 3, 20])
def test_mba_samples(model: Classifier, data: Dataset, cache: Path, rank: int) -> None:
    collected = [m.net.state_dict() for m in SHORT.build([model], data, seed=4, cache=cache)]
    made = MBA(of=SHORT, samples=2, rank=rank).build([model], data, seed=4, cache=cache)
    for index, sample in enumerate(made):
        draw = torch.Generator().manual_seed(derive(4, "sample", index))
        kept = min(rank, 8)
        z_low = torch.randn(kept, generator=draw, dtype=torch.float64).tolist()
        for name in sorted_names(model):
            w = [each[name].double() for each in collected]
            mean = torch.stack(w).mean(0)
            var = (torch.stack(w).square().mean(0) - mean.square()).clamp(min=1e-30)
            z = torch.randn(mean.shape, generator=draw, dtype=torch.float64)
            spread = var.sqrt() * z
            if rank:
                spread = spread / math.sqrt(2)
                for j in range(kept):
                    k = 8 - kept + j
                    so_far = torch.stack(w[: k + 1]).mean(0)
                    spread = spread + z_low[j] * (w[k] - so_far) / math.sqrt(2 * (kept - 1))
            wanted = (mean + 1.5 * spread).float()
            torch.testing.assert_close(sample.net.state_dict()[name], wanted, rtol=1e-4, atol=1e-6)
    norms = [m.net.state_dict()["1.running_mean"] for m in made]
    assert torch.equal(norms[0], norms[1])  # all have the mean's statistics
    assert made[0].digest != made[1].digest
    each = MBA(of=SHORT, samples=2, rank=rank, batch_norm="each").build([model], data, seed=4, cache=cache)
    norms = [m.net.state_dict()["1.running_mean"] for m in each]
    assert not torch.equal(norms[0], norms[1])


def test_uniform_soup(make: Any, data: Dataset, cache: Path) -> None:
    models = [make(1), make(2), make(3)]
    (soup,) = Soup().build(models, data, cache=cache)
    state = soup.net.state_dict()
    for name, p in models[0].net.named_parameters():
        wanted = (p.double() + sum(m.net.get_parameter(name).double() for m in models[1:])) / 3
        torch.testing.assert_close(state[name], wanted.float(), rtol=1e-6, atol=1e-9)
    assert soup.bases == tuple(m.digest for m in models)  # type: ignore[attr-defined]
    wanted_norm = copy.deepcopy(models[0])
    wanted_norm.net.load_state_dict(state)
    refresh(wanted_norm, Images(data), torch.arange(200))
    torch.testing.assert_close(
        state["1.running_var"], wanted_norm.net.state_dict()["1.running_var"], rtol=1e-4, atol=1e-6
    )


def test_greedy_soup_takes_what_helps(
    model: Classifier, make: Any, data: Dataset, cache: Path
) -> None:
    good = SHORT.build([model], data, cache=cache)
    models = [make(7), good[-1], good[-2], make(8)]  # two of them are untrained
    greedy, uniform = (
        Soup(kind=kind, held_out=0.3).build(models, data, cache=cache)[0] for kind in ("greedy", "uniform")
    )
    images, rows = Images(data), torch.arange(200)
    assert accuracy(greedy, images, rows) > accuracy(uniform, images, rows) + 0.1
    states = {}
    for taken in ([good[-1]], [good[-2]], [good[-1], good[-2]]):
        mean = torch.stack([m.net.state_dict()["7.weight"].double() for m in taken]).mean(0)
        states[len(states)] = mean.float()
    found = greedy.net.state_dict()["7.weight"]
    assert any(torch.allclose(found, state, rtol=1e-6, atol=1e-9) for state in states.values())
    with pytest.raises(InputError, match="too few to hold out"):
        Soup(kind="greedy", held_out=0.001).build(models, data, cache=cache)


def test_soups_of_strangers_are_refused(make: Any, data: Dataset, cache: Path) -> None:
    with pytest.raises(InputError, match="another architecture"):
        Soup().build([make(1), make(2, width=5)], data, cache=cache)
    with pytest.raises(InputError, match="another architecture"):
        Soup(of=SHORT).build([make(1), make(2, width=5)], data, cache=cache)
    darker = make(2)
    darker.mean -= 0.1
    with pytest.raises(InputError, match="preprocessed otherwise"):
        Soup().build([make(1), darker], data, cache=cache)
    assert not cache.exists()


class Rates:
    """Instead of a trajectory: the learning rates and the points of collection."""

    def __call__(self, work: Any, how: Any, *, epochs: int, at: list[int], lr: Any) -> None:
        self.at, self.rates = at, [lr(update) for update in range(max(at))]
        for _ in at:
            work.commit(work.models[0].net.state_dict())


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Rates:
    from advens.attacks.builders import cyclical

    found = Rates()
    assert cyclical.trajectory is trajectory.trajectory
    monkeypatch.setattr(cyclical, "trajectory", found)
    return found


def test_snapshot_cycles(model: Classifier, data: Dataset, cache: Path, rates: Rates) -> None:
    Snapshots(epochs=3, cycles=2, lr=0.2, batch_size=20).build([model], data, cache=cache)
    assert rates.at == [15, 30]
    wanted = [0.1 * (math.cos(math.pi * (update % 15) / 15) + 1) for update in range(30)]
    assert rates.rates == pytest.approx(wanted)


def test_fge_triangles(model: Classifier, data: Dataset, cache: Path, rates: Rates) -> None:
    FGE(cycles=2, cycle_epochs=1, lr=0.1, lr_low=0.02, batch_size=20).build([model], data, cache=cache)
    assert rates.at == [5, 15]
    down, up = [0.084, 0.068, 0.052, 0.036, 0.02], [0.036, 0.052, 0.068, 0.084, 0.1]
    assert rates.rates == pytest.approx(down + up + down)
    with pytest.raises(InputError, match="two updates"):
        FGE(cycle_epochs=1, batch_size=200).build([model], data, cache=cache)


def test_cycles_learn_with_those_rates(model: Classifier, data: Dataset, cache: Path) -> None:
    made = Snapshots(epochs=10, cycles=2, lr=0.05, batch_size=20).build([model], data, cache=cache)
    images, rows = Images(data), torch.arange(200)
    before, middle, end = (accuracy(m, images, rows) for m in (model, *made))
    assert middle > before + 0.2
    assert end > before + 0.3
