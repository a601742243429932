"""The search for augmentation strengths: what it maximises, what it may see, its history and its cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advens.attacks import create_attack
from advens.attacks.parts import from_spec
from advens.attacks.surrogates.builders import vit_search
from advens.attacks.surrogates.builders.search import KEPT, Objective, Trial, best, search
from advens.attacks.surrogates.changes import begin_step
from advens.cache import Folder
from advens.classifier import Classifier
from advens.datasets import Dataset, load_data
from advens.errors import InputError
from advens.models import load_model
from advens.seeding import Draws, derive

VITS = ("digits:vit", "digits:deit3")
SMALL = {"name": "vit-search", "calls": 3, "images": 6, "steps": 1, "eps": 0.2, "strategies": ["head-drop"]}


def paraboloid(strengths: Mapping[str, float]) -> Trial:
    """Best at (0.3, 0.6)."""
    value = 1 - (strengths["a"] - 0.3) ** 2 - (strengths["b"] - 0.6) ** 2
    return Trial(dict(strengths), value, 1.0, True)


BOX = {"a": (0.0, 0.5), "b": (0.0, 1.0)}


def test_it_finds_a_maximum() -> None:
    trials = search(paraboloid, BOX, calls=20, seed=1)
    assert len(trials) == 20
    found = best(trials)
    assert found.objective > 0.99
    assert found.objective >= max(trial.objective for trial in trials)


def test_a_seed_names_the_search() -> None:
    one, same, other = (search(paraboloid, BOX, calls=8, seed=seed) for seed in (0, 0, 1))
    assert one == same != other


def test_an_interrupted_search_goes_on() -> None:
    whole = search(paraboloid, BOX, calls=9, seed=3)
    asked: list[Trial] = []

    def counted(strengths: Mapping[str, float]) -> Trial:
        asked.append(paraboloid(strengths))
        return asked[-1]

    assert search(counted, BOX, calls=9, seed=3, known=whole[:6]) == whole
    assert asked == whole[6:]


def test_what_the_search_minimises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minus the objective; what is not allowed costs more than anything that is, the more the worse it is."""
    asked: dict[str, Any] = {}
    made = iter([Trial({}, 0.25, 0.9, True), Trial({}, 7.0, 0.3, False), Trial({}, 7.0, 0.1, False)])
    given: list[Mapping[str, float]] = []
    told: list[Trial] = []

    def minimise(cost: Callable[[list[float]], float], dimensions: Any, **options: Any) -> None:
        asked.update(options, dimensions=dimensions)
        asked["costs"] = [cost([0.123449, 1.0]), cost([0.2, 0.00006]), cost([0.3, 0.5]), cost([0.4, 0.5])]

    monkeypatch.setattr("skopt.gp_minimize", minimise)

    def objective(strengths: Mapping[str, float]) -> Trial:
        given.append(strengths)
        return next(made)

    known = Trial({}, -2.0, 0.5, True)
    trials = search(objective, BOX, calls=11, seed=5, known=[known], on_trial=told.append)
    assert asked == {
        "dimensions": [(0.0, 0.5), (0.0, 1.0)], "n_calls": 11, "n_initial_points": 2,
        "random_state": derive(5, "search") % 2**32,
        "costs": [2.0, -0.25, pytest.approx(0.7), pytest.approx(0.9)],
    }  # fmt: skip
    assert given == [{"a": 0.2, "b": 0.0001}, {"a": 0.3, "b": 0.5}, {"a": 0.4, "b": 0.5}]
    assert trials == [known, *told]
    made = iter([Trial({}, 0.0, 0.0, True)] * 4)
    search(objective, BOX, calls=4)
    assert (asked["n_initial_points"], asked["random_state"]) == (1, derive(0, "search") % 2**32)


def test_what_is_not_allowed_is_not_chosen() -> None:
    good, sharp = Trial({"a": 0.1}, 1.0, 0.9, True), Trial({"a": 0.4}, 5.0, 0.2, False)
    assert best([sharp, good]) == good
    assert best([sharp, Trial({"a": 0.2}, 0.0, 0.5, False)]).clean_accuracy == 0.5


def test_the_search_avoids_what_is_not_allowed() -> None:
    def steep(strengths: Mapping[str, float]) -> Trial:
        a = strengths["a"]
        return Trial({"a": a}, a, 1 - a, 1 - a >= KEPT)

    found = best(search(steep, {"a": (0.0, 1.0)}, calls=15, seed=0))
    assert found.allowed
    assert 0.1 < found.strengths["a"] <= 0.2


def test_the_objective_is_the_loss_of_the_others() -> None:
    model, *others = (load_model(name) for name in ("digits:vit", "digits:deit3", "digits:swin"))
    data = load_data("digits:train?limit=8")
    batch = next(data.batches([slice(0, 8)]))
    x, y = batch.pixels.float() / 255, batch.labels
    copy = from_spec("builder", {"name": "vit-augment", "strategies": ["head-drop"], "p": 0.3}).build(
        [model], data
    )
    attack = create_attack("mifgsm", eps=0.1, steps=2)
    trial = Objective(model, others, lambda strengths: copy, x, y, attack, seed=5)({"head-drop": 0.3})

    x_adv = attack(copy, x, y, seed=5)
    with torch.no_grad():
        wanted = sum(float(F.cross_entropy(other(x_adv), y)) for other in others) / 2
        begin_step(copy[1], Draws(5, 8).at(0))
        right = (copy[1](x).argmax(1) == y).double().mean()
    assert trial.objective == pytest.approx(wanted, rel=1e-6)
    assert trial.clean_accuracy == pytest.approx(float(right))
    assert trial.strengths == {"head-drop": 0.3}


class Says(torch.nn.Module):
    """Is right on the first so many images of ten, whatever they hold."""

    def __init__(self, right: int) -> None:
        super().__init__()
        self.right = right

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        said = (torch.arange(len(x)) >= self.right).long()
        return 3.0 * F.one_hot(said, 2) + 0 * x.flatten(1)[:, :1]


@pytest.mark.parametrize(("rights", "allowed"), [((10, 6), True), ((9, 7, 8), True), ((10, 5), False)])
def test_several_copies_are_right_in_the_mean(rights: tuple[int, ...], allowed: bool) -> None:
    """Over the copies alone, not the model; at least four fifths of what the model has."""
    model, copies = Says(10), [Says(right) for right in rights]
    x, y = torch.full((10, 1, 2, 2), 0.5), torch.zeros(10, dtype=torch.long)
    ask = Objective(model, [model], lambda _: [model, *copies], x, y, create_attack("fgsm", eps=0.1), 0)
    trial = ask({})
    assert trial.clean_accuracy == pytest.approx(sum(rights) / len(rights) / 10)
    assert trial.allowed is allowed


@pytest.fixture
def vits() -> list[Classifier]:
    return [load_model(name) for name in VITS]


@pytest.fixture(scope="module")
def calibration() -> Dataset:
    return load_data("digits:train?limit=20")


def test_members_history_and_cache(
    vits: list[Classifier], calibration: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder, told = from_spec("builder", SMALL), list[tuple[int, int]]()
    made = builder.build(vits, calibration, cache=tmp_path, progress=lambda *at: told.append(at))
    assert told == [(i, 6) for i in range(1, 7)]
    history = builder.history(vits, calibration, cache=tmp_path)
    assert list(history.groupby("model", sort=False).size().items()) == [(name, 3) for name in VITS]
    assert history.groupby("model")["chosen"].sum().eq(1).all()
    chosen = history[history["chosen"]].set_index("model")["head-drop"]
    for name, plain, augmented in zip(VITS, made[::2], made[1::2], strict=True):
        assert plain.name == name
        assert f"head-drop.p={chosen[name]}" in augmented.name
        assert load_model(augmented.name).digest == augmented.digest

    monkeypatch.setattr(vit_search, "search", None)  # nothing is searched again
    again = builder.build(vits, calibration, cache=tmp_path)
    assert [model.name for model in again] == [model.name for model in made]


def test_a_killed_search_goes_on_to_the_same(
    vits: list[Classifier], calibration: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = from_spec("builder", SMALL)
    whole = builder.build(vits, calibration, cache=tmp_path / "whole")
    keep, kept = Folder.keep, list[Any]()

    def dies(folder: Folder, state: Mapping[str, Any]) -> None:
        keep(folder, state)
        kept.append(state)
        if len(kept) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "keep", dies)
    with pytest.raises(KeyboardInterrupt):
        builder.build(vits, calibration, cache=tmp_path / "cut")
    made = builder.build(vits, calibration, cache=tmp_path / "cut")
    assert len(kept) == 6  # four trials before, two after
    assert [model.name for model in made] == [model.name for model in whole]
    pd.testing.assert_frame_equal(
        *(builder.history(vits, calibration, cache=tmp_path / each) for each in ("whole", "cut"))
    )


def test_it_sees_calibration_images_only(vits: list[Classifier], tmp_path: Path) -> None:
    """Every image any model is shown lies within eps of a calibration image."""
    data, seen = load_data("digits:train?limit=20"), list[torch.Tensor]()
    hooks = [
        model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
        for model in vits
    ]
    from_spec("builder", SMALL).build(vits, data, cache=tmp_path)
    for hook in hooks:
        hook.remove()
    known = next(data.batches([slice(0, 20)])).pixels.float() / 255
    assert seen
    for x in seen:
        distance = (x[:, None] - known[None]).abs().flatten(2).amax(2).amin(1)
        assert float(distance.max()) <= 0.2 + 1e-6


@pytest.mark.parametrize(
    ("names", "said"), [(["digits:vit"], "two models"), (["digits:vit", "digits:resnet"], "digits:resnet")]
)
def test_what_cannot_be_searched(
    names: list[str], said: str, calibration: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        from_spec("builder", SMALL).build([load_model(n) for n in names], calibration, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_every_model_has_draws_and_others_of_its_own(
    vits: list[Classifier], calibration: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named by the seed and the model's place; the images are drawn by the seed and kept in order."""
    seen: list[tuple[Objective, dict[str, Any]]] = []

    def searched(objective: Objective, bounds: Any, **options: Any) -> list[Trial]:
        seen.append((objective, {"bounds": bounds} | options))
        return [Trial({"head-drop": 0.1 * len(seen)}, 1.0, 1.0, True)]

    monkeypatch.setattr(vit_search, "search", searched)
    made = from_spec("builder", SMALL).build(vits, calibration, seed=3, cache=tmp_path)
    generator = torch.Generator().manual_seed(derive(3, "calibration"))
    rows = sorted(torch.randperm(20, generator=generator)[:6].tolist())
    whole = next(calibration.batches([slice(0, 20)]))
    for k, (objective, options) in enumerate(seen):
        assert objective.model is vits[k]
        assert list(objective.others) == [vits[1 - k]]
        assert objective.seed == options["seed"] == derive(3, "vit-search", k)
        assert (options["calls"], options["bounds"], options["known"]) == (3, {"head-drop": (0.0, 0.5)}, [])
        assert torch.equal(objective.x, whole.pixels[rows].float() / 255)
        assert torch.equal(objective.y, whole.labels[rows])
        assert objective.attack == create_attack("vit-ensemble", eps=0.2, steps=1)
    assert len(seen) == 2
    assert ["head-drop.p=0.1" in made[1].name, "head-drop.p=0.2" in made[3].name] == [True, True]


@pytest.mark.parametrize("option", [{"eps": -1}, {"calls": 1}, {"strategies": ["fog"]}, {"images": 0}])
def test_bad_options(option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        from_spec("builder", SMALL | option)


def test_models_come_back(vits: list[Classifier], calibration: Dataset, tmp_path: Path) -> None:
    vits[0].train()
    before: Callable[[nn.Module], Any] = lambda m: [  # noqa: E731
        (each.training, len(each._forward_hooks), "forward" in vars(each)) for each in m.modules()
    ]
    was, state = before(vits[0]), torch.get_rng_state()
    from_spec("builder", SMALL).build(vits, calibration, cache=tmp_path)
    assert before(vits[0]) == was
    assert torch.equal(torch.get_rng_state(), state)


def test_a_history_is_looked_for_in_the_cache(
    vits: list[Classifier], calibration: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path))
    builder: Any = from_spec("builder", SMALL)
    with pytest.raises(InputError, match=f"{tmp_path}/built/.* is not there: build first"):
        builder.history(vits, calibration)
    with pytest.raises(InputError, match=f"{tmp_path}/other/.* is not there: build first"):
        builder.history(vits, calibration, cache=tmp_path / "other")
