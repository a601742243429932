"""MBA, soups and cyclical learning rates against their formulas."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.surrogates.builders import trajectory
from advens.attacks.surrogates.builders.cyclical import FGE, Snapshots
from advens.attacks.surrogates.builders.lgv import LGV, LGVSWA
from advens.attacks.surrogates.builders.mba import MBA
from advens.attacks.surrogates.builders.soup import Soup
from advens.attacks.surrogates.builders.train import Images, accuracy, refresh
from advens.attacks.surrogates.changes import begin_step
from advens.classifier import Classifier
from advens.datasets import Dataset
from advens.errors import InputError
from advens.seeding import Draws, derive

SHORT = LGV(epochs=2, batch_size=25, lr=0.01)


def gaussian(sets: list[dict[str, Tensor]], name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation as published: from running means of the weights and of their squares."""
    mean = square = torch.zeros_like(sets[0][name], dtype=torch.float64)
    for n, state in enumerate(sets):
        w = state[name].double()
        mean = mean * (n / (n + 1)) + w / (n + 1)
        square = square * (n / (n + 1)) + w**2 / (n + 1)
    return mean, (square - mean**2).clamp(min=1e-30).sqrt()


def test_mba_draws_weights_anew_at_every_step(
    model: Classifier, data: Dataset, cache: Path, x: Tensor
) -> None:
    model.double()
    collected = [m.net.state_dict() for m in SHORT.build([model], data, seed=4, cache=cache)]
    made = MBA(of=SHORT, samples=3).build([model], data, seed=4, cache=cache)
    x, logits = x.double(), []
    for step in (0, 1):
        draws = Draws(9, len(x)).at(step)
        for drawn in made:
            begin_step(drawn, draws)
            plain = copy.deepcopy(model)
            state = plain.net.state_dict()
            for name, parameter in plain.net.named_parameters():
                mean, std = gaussian(collected, name)
                z = torch.empty_like(mean).normal_(generator=draws.generator("weights", drawn.name, name))
                parameter.data = mean + 1.5 * std * z
            norm = drawn.net.state_dict()
            state |= {name: t.clone() for name, t in norm.items() if name.startswith("1.r")}
            plain.net.load_state_dict(state | dict(plain.net.named_parameters()))
            torch.testing.assert_close(drawn(x), plain(x), rtol=1e-9, atol=1e-9)
            logits.append(drawn(x))
    assert all((a - b).abs().max() > 1e-3 for k, a in enumerate(logits) for b in logits[:k])
    begin_step(made[0], Draws(9, len(x)).at(0))
    assert torch.equal(made[0](x), logits[0])


def test_mba_is_the_mean_before_the_first_step(
    model: Classifier, data: Dataset, cache: Path, x: Tensor
) -> None:
    """Its batch-norm statistics are estimated anew, as those of LGV-SWA are."""
    (swa,) = LGVSWA(of=SHORT).build([model], data, cache=cache)
    for drawn in MBA(of=SHORT, samples=2).build([model], data, cache=cache):
        torch.testing.assert_close(drawn(x), swa(x), rtol=0, atol=1e-5)


def test_mba_drawn_once(model: Classifier, data: Dataset, cache: Path) -> None:
    model.double()
    collected = [m.net.state_dict() for m in SHORT.build([model], data, seed=4, cache=cache)]
    made = MBA(of=SHORT, samples=2, scale=0.5, redraw=False).build([model], data, seed=4, cache=cache)
    for index, sample in enumerate(made):
        draws = Draws(4, 1).at(index)
        for name, parameter in sample.net.named_parameters():
            mean, std = gaussian(collected, name)
            z = torch.empty_like(mean).normal_(generator=draws.generator("weights", "sample", name))
            torch.testing.assert_close(parameter.data, mean + 0.5 * std * z, rtol=1e-7, atol=1e-10)
    norms = [m.net.state_dict()["1.running_mean"] for m in made]
    assert torch.equal(norms[0], norms[1])
    assert made[0].digest != made[1].digest


def test_mba_needs_two_sets(model: Classifier, data: Dataset, cache: Path) -> None:
    one = LGV(epochs=1, per_epoch=1, batch_size=50)
    with pytest.raises(InputError, match="at least 2 sets"):
        MBA(of=one).build([model], data, cache=cache)


def test_a_drawn_surrogate_gives_a_sample_the_same_in_any_batch(
    model: Classifier, data: Dataset, cache: Path
) -> None:
    model.double()
    batch = next(data.batches([slice(0, 6)]))
    x, y = batch.pixels.double() / 255, batch.labels
    made = MBA(of=SHORT, samples=3).build([model], data, cache=cache)
    before, means = [m.digest for m in made], [m(x) for m in made]
    attack = create_attack("mba", steps=4)
    whole = attack.run(made, x, y, seed=3)
    parts = attack.run(made, x, y, seed=3, micro_batch=4)
    torch.testing.assert_close(whole.x_adv, parts.x_adv, rtol=0, atol=1e-12)
    assert whole.passes == attack.passes(3) == (12, 12)
    assert not torch.equal(whole.x_adv, attack(made, x, y, seed=4))
    assert [m.digest for m in made] == before
    assert all(torch.equal(m(x), mean) for m, mean in zip(made, means, strict=True))
    assert len(set(before)) == 3


def test_uniform_soup(make: Any, data: Dataset, cache: Path) -> None:
    models = [make(1), make(2), make(3)]
    (soup,) = Soup().build(models, data, cache=cache)
    state = soup.net.state_dict()
    for name, p in models[0].net.named_parameters():
        wanted = (p.double() + sum(m.net.get_parameter(name).double() for m in models[1:])) / 3
        torch.testing.assert_close(state[name], wanted.float(), rtol=1e-6, atol=1e-9)
    assert soup.bases == tuple(digest for m in models for digest in (m.digest, m.weights))  # type: ignore[attr-defined]
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


def test_greedy_soup_measures_on_what_nothing_was_trained_on(
    model: Classifier, data: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Tensor] = []
    learned: set[str] = set()
    build = LGV.build

    def trained_on(self: Any, models: Any, data: Dataset, **more: Any) -> Any:
        learned.update(data.sample_ids)
        return build(self, models, data, **more)

    def accuracy_of(model: Classifier, images: Images, rows: Tensor) -> float:
        measured.append(rows)
        return accuracy(model, images, rows)

    monkeypatch.setattr(LGV, "build", trained_on)
    monkeypatch.setattr("advens.attacks.surrogates.builders.soup.accuracy", accuracy_of)
    Soup(of=SHORT, kind="greedy", held_out=0.3).build([model], data, cache=cache)
    assert len(learned) == 140
    assert not learned & {data.sample_ids[row] for rows in measured for row in rows.tolist()}
    assert all(len(rows) == 60 for rows in measured)


@pytest.mark.parametrize(("options", "taken"), [({}, 2), ({"ties": False}, 2), ({"ties": True}, 3)])
def test_greedy_soup_at_ties(
    make: Any, data: Dataset, cache: Path, monkeypatch: pytest.MonkeyPatch, options: Any, taken: int
) -> None:
    """Accuracies of models 0 to 3 alone, then of soups with 2, 1, 3: 2 helps, 1 changes nothing, 3 harms."""
    told = iter([0.7, 0.5, 0.6, 0.4, 0.8, 0.8, 0.7])
    monkeypatch.setattr("advens.attacks.surrogates.builders.soup.accuracy", lambda *_: next(told))
    models = [make(k) for k in range(4)]
    (soup,) = Soup(kind="greedy", **options).build(models, data, cache=cache)
    chosen = [models[k].net.state_dict()["7.weight"].double() for k in (0, 2, 1)[:taken]]
    wanted = sum(chosen) / taken
    torch.testing.assert_close(soup.net.state_dict()["7.weight"], wanted.float(), rtol=1e-6, atol=1e-9)  # type: ignore[union-attr]


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

    def __call__(self, work: Any, how: Any, *, at: list[int], lr: Any, **more: Any) -> None:
        self.at, self.rates = at, [lr(update) for update in range(max(at))]
        for _ in at:
            work.commit(work.models[0].net.state_dict())


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Rates:
    from advens.attacks.surrogates.builders import cyclical

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
    down, up = [0.1, 0.084, 0.068, 0.052, 0.036], [0.02, 0.036, 0.052, 0.068, 0.084]
    assert rates.rates == pytest.approx(down + up + down)
    with pytest.raises(InputError, match="two updates"):
        FGE(cycle_epochs=1, batch_size=200).build([model], data, cache=cache)


@pytest.mark.parametrize(("options", "nesterov"), [({}, True), ({"nesterov": False}, False)])
def test_snapshots_with_nesterov_momentum(
    model: Classifier, data: Dataset, cache: Path, options: Any, nesterov: bool
) -> None:
    """``v = mu v + g`` and ``w - lr (g + mu v)``, where the plain momentum has ``w - lr v``."""
    model.double().net.get_submodule("3").p = 0.0  # type: ignore[assignment]
    how = Snapshots(epochs=1, cycles=1, lr=0.05, batch_size=50, **options)
    (made,) = how.build([model], data, cache=cache)
    batch = next(data.batches([slice(0, 200)]))
    net = copy.deepcopy(model).train().requires_grad_(True)
    parameters, velocity = list(net.parameters()), [torch.zeros_like(w) for w in net.parameters()]
    order = torch.Generator().manual_seed(derive(derive(0, "trajectory"), "order", 0))
    for t, rows in enumerate(torch.randperm(200, generator=order).split(50)):
        loss = F.cross_entropy(net(batch.pixels[rows].float() / 255), batch.labels[rows])
        gradients = torch.autograd.grad(loss, parameters)
        for w, g, v in zip(parameters, gradients, velocity, strict=True):
            decayed = g + 1e-4 * w.detach()
            v.mul_(0.9).add_(decayed)
            step = decayed + 0.9 * v if nesterov else v
            w.data -= 0.05 * (math.cos(math.pi * t / 4) + 1) / 2 * step
    for name, tensor in net.net.named_parameters():
        torch.testing.assert_close(made.net.state_dict()[name], tensor.data, rtol=1e-9, atol=1e-12)  # type: ignore[union-attr]


def test_cycles_learn_with_those_rates(model: Classifier, data: Dataset, cache: Path) -> None:
    made = Snapshots(epochs=10, cycles=2, lr=0.05, batch_size=20).build([model], data, cache=cache)
    images, rows = Images(data), torch.arange(200)
    before, middle, end = (accuracy(m, images, rows) for m in (model, *made))
    assert middle > before + 0.2
    assert end > before + 0.3
