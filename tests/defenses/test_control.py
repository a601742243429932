"""Controls of equal compute: what they are, how many passes they take, and what a training says of its."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import advens
from advens.defenses import create_defense
from advens.defenses.control import (
    control,
    equal_compute,
    kind_of,
    options,
    passes,
    training_compute,
    with_epochs,
)
from advens.defenses.training import train
from advens.errors import InputError

QUICK = {"epochs": 2, "batch_size": 8, "optimizer": "adam", "lr": 1e-3}


@pytest.fixture(scope="module")
def data() -> Any:
    return advens.load_data("digits:train?limit=17&seed=0")


def test_what_controls_are() -> None:
    """Adversarial training of one member for what learns on such images, else as many plain members."""
    names = ("plain", "adp", "dverge", "at", "trades", "mrboost", "barre")
    kinds = ["plain", "plain", "plain", "at", "at", "at", "at"]
    assert [kind_of(create_defense(name)) for name in names] == kinds
    assert kind_of(create_defense("dverge", adversarial=1.0)) == "at"
    plain = create_defense("plain", members=4, **QUICK)
    assert control(create_defense("gal", members=4, **QUICK), "plain") == plain
    pgd = {"eps": 0.2, "step_size": 0.05, "steps": 3}
    for name in ("at", "trades", "mrboost", "barre", "iat"):
        found = control(create_defense(name, members=2, **QUICK, **pgd), "at")
        assert found == create_defense("at", members=1, **QUICK, **pgd, weight_decay=5e-4)
    assert control(create_defense("at", awp=0.01), "at").awp == 0, "AWP is what the control is to measure"


def test_the_adversary_is_that_of_the_training() -> None:
    """Not that of DVERGE's distillation."""
    found = control(create_defense(
        "dverge", adversarial=1.0, eps=0.07, steps=3, adversarial_eps=0.2, adversarial_step_size=0.1
    ), "at")  # fmt: skip
    assert (found.eps, found.step_size, found.steps) == (0.2, 0.1, 3)
    found = control(create_defense(
        "adp", adversarial=1.0, adversarial_eps=0.2, adversarial_step_size=0.1, adversarial_steps=4
    ), "at")  # fmt: skip
    assert (found.eps, found.step_size, found.steps) == (0.2, 0.1, 4)


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("plain", {"members": 2}), ("at", {"steps": 2}),
        ("at", {"steps": 1, "validation": 0.25, "validation_eps": 0.1, "average": "ema"}),
        ("plain", {"members": 2, "validation": 0.25, "average": "swa", "epochs": 3}),
        ("plain", {"members": 1, "average": "swa", "epochs": 3, "arch": "digits:resnet", "batch_size": 9}),
    ],
)  # fmt: skip
def test_passes_are_those_that_are_counted(
    name: str, more: dict[str, Any], data: Any, tmp_path: Path
) -> None:
    """Of 17 images in batches of 8 the last is left over, and not learned from."""
    arch = more.get("arch", "digits:mambaout")
    defense = create_defense(name, **QUICK | {key: more[key] for key in more if key != "arch"})
    train(defense, arch, data, tmp_path / "out")
    counted = training_compute(f"defense:{tmp_path / 'out'}")
    assert counted is not None
    found = passes(defense, len(data), batch_norm=arch == "digits:resnet")
    assert counted["forwards"] + counted["backwards"] == found
    assert counted["images"] == 17


@pytest.mark.parametrize("average", ["none", "swa"])
def test_no_other_number_of_epochs_is_nearer(average: str) -> None:
    one = create_defense("at", **QUICK, average=average)
    for wanted in (1.0, 1234.0, 5000.0, 123_456.0):
        found = equal_compute(one, 17, wanted)
        epochs = found.training.epochs
        off = abs(passes(found, 17) - wanted)
        for other in (epochs - 1, epochs + 1):
            assert other < 1 or off <= abs(passes(with_epochs(one, other), 17) - wanted)
    assert create_defense("at", **options(one)) == one


def test_compute_and_parts_of_a_boosted_ensemble(data: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(create_defense("mrboost", members=2, steps=1, **QUICK), "digits:mambaout", data, out)
    said = json.loads((out / "training.json").read_text())["compute"]
    parts = {"": 1, "?members=1": 0, "?members=2": 1, "?member=1": 0, "?member=2": 1}
    for part, place in parts.items():
        counted = training_compute(f"defense:{out}{part}")
        assert counted == said[place] | {"images": 17}
    whole = advens.load_model(f"defense:{out}")
    alone = advens.load_model(f"defense:{out}?member=2")
    assert alone.digest == whole.members[1].digest
    assert (alone.name, list(alone.members)) == (f"defense:{out}?member=2", [])
    for part, words in {
        "?member=3": "has 2 members; member = 3 cannot be taken",
        "?member=0": "member = 0 cannot be taken",
        "?member=1&members=1": "'members', the first ones, or 'member', only that one",
        "?member=x": "is not a whole number",
    }.items():
        with pytest.raises(InputError, match=words):
            advens.load_model(f"defense:{out}{part}")


def test_members_that_learn_alone_have_a_share_each(data: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train(create_defense("plain", members=3, **QUICK), "digits:mambaout", data, out)
    first, third, all_ = (training_compute(f"defense:{out}{part}") for part in ("?member=1", "?member=3", ""))
    assert first == third
    assert first is not None and all_ is not None  # noqa: PT018
    assert math.isclose(3 * first["forwards"], all_["forwards"])


@pytest.mark.parametrize(
    "said",
    ["{", "[]", "{}", '{"compute": 3}', '{"compute": []}', '{"compute": [{"forwards": 1}]}',
     '{"compute": [{"forwards": "x", "backwards": 1, "seconds": 1}], "defense": "at"}',
     '{"compute": [{"forwards": -1, "backwards": 1, "seconds": 1}], "defense": "at"}',
     '{"compute": [{"forwards": NaN, "backwards": 1, "seconds": 1}], "defense": "at"}',
     '{"compute": [{"forwards": 1, "backwards": 1, "seconds": 1}], "images": "many"}'],
)  # fmt: skip
def test_compute_that_is_not_known(said: str, tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text(said)
    assert training_compute(f"defense:{tmp_path}") is None
    assert training_compute(f"defense:{tmp_path / 'nothing'}") is None
    assert training_compute("digits:resnet") is None
