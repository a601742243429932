"""Defenses by name: options of their own, options of training, and what is said of a wrong one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from advens.defenses import create_defense, list_defenses
from advens.defenses.phases import Training
from advens.defenses.plain import Alone
from advens.defenses.registry import DEFENSES, defense, describe
from advens.errors import InputError
from advens.fields import Count


@pytest.fixture
def patient() -> Iterator[type]:
    """A defense with an option that training has, too."""

    @defense("patient", family="baseline", paper="Us, 2030", year=2030)
    class Patient(Alone):
        """Waits. Then learns."""

        members: Count = 2
        epochs: Count = 7
        training: Training = Training(lr=0.5, epochs=3)

    try:
        yield Patient
    finally:
        del DEFENSES.entries["patient"]


def test_what_the_decorator_makes(patient: type) -> None:
    info = DEFENSES.info("patient")
    assert (info.name, info.family, info.paper, info.year) == ("patient", "baseline", "Us, 2030", 2030)
    assert info.summary == "Waits. Then learns"
    assert "patient" in list_defenses("pat*")
    made = create_defense("patient")
    assert type(made) is patient
    assert made == patient()
    with pytest.raises(AttributeError):
        made.members = 3


def test_an_option_of_its_own_comes_before_that_of_training(patient: type) -> None:
    made: Any = create_defense("patient", epochs=9, lr=0.25, members=4)
    assert (made.epochs, made.members) == (9, 4)
    assert (made.training.epochs, made.training.lr) == (3, 0.25)
    assert made.training.batch_size == Training().batch_size
    made = create_defense("patient", training=Training(lr=2.0), batch_size=5)
    assert made.training == Training(lr=2.0, batch_size=5), "both are heard"


def test_training_keeps_what_is_not_named() -> None:
    made, default = create_defense("at", epochs=3), create_defense("at")
    assert asdict(made.training) == asdict(default.training) | {"epochs": 3}
    assert default.training.weight_decay == 5e-4


def test_descriptions_are_json(patient: type) -> None:
    about = json.loads(json.dumps(describe(create_defense("patient", members=3))))
    assert about == {
        "defense": "patient", "members": 3, "epochs": 7, "training": asdict(Training(lr=0.5, epochs=3)),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("plainn", {}, "unknown defense 'plainn'; did you mean 'plain'?"),
        ("plain", {"member": 3}, "'plain' has no option 'member'; did you mean 'members'?"),
        ("plain", {"epoch": 3}, "'plain' has no option 'epoch'; did you mean 'epochs'?"),
        ("plain", {"members": 0}, "'plain': members = 0: "),
        ("plain", {"lr": -1}, "'plain': lr = -1: "),
        ("plain", {"training": {"lr": -1}}, "'plain': training.lr = -1: "),
        ("plain", {"members": "two"}, "'plain': members = 'two': "),
        ("forde", {"centre": "row"}, "'forde': centre = 'row': "),
    ],
)
def test_what_is_wrong_is_named(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        create_defense(name, **options)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)
