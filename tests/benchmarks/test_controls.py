"""Which controls a suite of defenses gets: shared within ten percent of compute, none that is there."""

from __future__ import annotations

from typing import Any

import pytest

from advens.benchmarks import controls
from advens.benchmarks.controls import with_controls
from advens.benchmarks.defense_goal import Line, lines_of
from advens.benchmarks.suites import DefenseSuite
from advens.defenses import control as defense_control

IMAGES = 100
AT = {"eps": 0.2, "steps": 4}
BASE: dict[str, Any] = {
    "name": "tiny", "goal": "defense", "data": "digits:test", "seeds": [0, 1], "eps": [0.2],
    "surrogates": ["digits:convnext"], "attacks": ["fgsm"],
    "training": {"arch": "digits:mambaout", "data": f"digits:train?limit={IMAGES}&seed=0", "epochs": 10,
                 "batch_size": 32, "optimizer": "adam", "lr": 0.1},
}  # fmt: skip
PER_EPOCH = 10 * IMAGES
"""Passes of an epoch of adversarial training with 4 steps."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives the lines of a suite with their controls, from the compute that is told of each line."""

    def make(*defenses: dict[str, Any], epochs: dict[tuple[str, int], float], **more: Any) -> list[Line]:
        suite = DefenseSuite.model_validate(BASE | {"defenses": list(defenses)} | more)
        lines = lines_of(suite)
        spent: dict[str, float] = {}
        trained = {line.training: f"trained:{k}" for k, line in enumerate(lines)}
        for line in lines:
            key = (line.label, line.members)
            spent[line.model(trained[line.training])] = PER_EPOCH * epochs.get(key, 10 * line.members)

        def counted(name: str) -> dict[str, float]:
            return {"forwards": spent[name] / 2, "backwards": spent[name] / 2, "seconds": 1.0}

        monkeypatch.setattr(defense_control, "training_compute", counted)
        return with_controls(suite, lines, trained)

    return make


def controlled(lines: list[Line]) -> dict[tuple[str, int], str | None]:
    return {(line.label, line.members): line.control for line in lines}


def test_adversarial_lines(made: Any) -> None:
    lines = made(
        {"name": "at", "members": [1, 2], **AT}, {"name": "iat", "members": [2], **AT},
        {"name": "mrboost", "members": [1, 2], **AT},
        epochs={("mrboost", 1): 10, ("mrboost", 2): 28.4},
    )  # fmt: skip
    assert controlled(lines) == {
        ("at", 1): None, ("at", 2): "at, 20 epochs", ("iat", 2): "at, 20 epochs",
        ("mrboost", 1): "at of 1", ("mrboost", 2): "at, 28 epochs",
        ("mrboost, member 2 alone", 1): None, ("at, 20 epochs", 1): None, ("at, 28 epochs", 1): None,
    }  # fmt: skip
    trained = [line.training for line in lines if line.label == "at, 28 epochs"]
    assert [task.seed for task in trained] == [0, 1]
    own = trained[0].defense
    assert (own.members, own.eps, own.steps, own.training.epochs) == (1, 0.2, 4, 28)
    (alone, _) = (line for line in lines if line.label == "mrboost, member 2 alone")
    assert alone.model("trained:x") == "trained:x?member=2"


def test_plain_lines_have_as_many_members(made: Any) -> None:
    lines = made(
        {"name": "plain", "members": [2, 3]}, {"name": "adp", "members": [2, 3]},
        {"name": "gal", "members": 3},
        epochs={("plain", 2): 4, ("plain", 3): 6, ("adp", 2): 4.2, ("adp", 3): 9, ("gal", 3): 9.5},
    )  # fmt: skip
    assert controlled(lines) == {
        ("plain", 2): None, ("plain", 3): None, ("adp", 2): "plain of 2", ("adp", 3): "plain, 15 epochs",
        ("gal", 3): "plain, 15 epochs", ("plain, 15 epochs", 3): None,
    }  # fmt: skip


def test_lines_share_within_ten_percent_of_the_least(made: Any) -> None:
    defenses = [
        {"name": "trades", "label": name, "members": 1, "beta": beta, **AT}
        for name, beta in (("a", 1), ("b", 2), ("c", 3))
    ]
    spent = {("a", 1): 30, ("b", 1): 33, ("c", 1): 33.1}
    lines = made(*defenses, epochs=spent)
    assert controlled(lines) == {
        ("a", 1): "at, 31 epochs", ("b", 1): "at, 31 epochs", ("c", 1): "at, 33 epochs",
        ("at, 31 epochs", 1): None, ("at, 33 epochs", 1): None,
    }  # fmt: skip
    assert controls.SHARED == 1.1


def test_controls_that_differ_in_more_than_epochs_have_other_names(made: Any) -> None:
    lines = made(
        {"name": "trades", "label": "a", "members": 1, **AT},
        {"name": "trades", "label": "b", "members": 1, **AT, "lr": 0.01},
        {"name": "trades", "label": "c", "members": 1, "table": "other", **AT},
        epochs={("a", 1): 30, ("b", 1): 30, ("c", 1): 30},
    )  # fmt: skip
    found = {(line.table, line.label, line.control) for line in lines}
    assert found == {
        ("defenses", "a", "at, 30 epochs"), ("defenses", "b", "at, 30 epochs, as b of 1"),
        ("other", "c", "at, 30 epochs"), ("defenses", "at, 30 epochs", None),
        ("defenses", "at, 30 epochs, as b of 1", None), ("other", "at, 30 epochs", None),
    }  # fmt: skip
    assert {line.training.defense.training.lr for line in lines if line.control == "at, 30 epochs"} == {0.1}


def test_an_epoch_at_least_and_not_one_that_is_there(made: Any) -> None:
    """A line with less compute than an epoch has the control of one; here this is a line that is there."""
    lines = made(
        {"name": "at", "members": 1, **AT, "epochs": 1}, {"name": "trades", "members": 1, **AT},
        epochs={("at", 1): 1, ("trades", 1): 0.4},
    )  # fmt: skip
    assert controlled(lines) == {("at", 1): None, ("trades", 1): "at"}


def test_weight_perturbations_are_compared_with_longer_training_without(made: Any) -> None:
    lines = made(
        {"name": "at", "members": 1, **AT}, {"name": "at", "label": "awp", "members": 1, "awp": 0.01, **AT},
        epochs={("at", 1): 10, ("awp", 1): 12},
    )  # fmt: skip
    assert controlled(lines) == {("at", 1): None, ("awp", 1): "at, 12 epochs", ("at, 12 epochs", 1): None}


@pytest.mark.parametrize(
    ("entry", "suite", "wanted"),
    [
        ({"control": "none"}, {}, {("mrboost", 2): None}),
        ({}, {"controls": False}, {("mrboost", 2): None}),
        ({"control": "plain"}, {}, {("mrboost", 2): "plain, 70 epochs", ("plain, 70 epochs", 2): None,
                                    ("mrboost, member 2 alone", 1): None}),
    ],
)  # fmt: skip
def test_what_a_suite_may_choose(made: Any, entry: Any, suite: Any, wanted: Any) -> None:
    lines = made({"name": "mrboost", "members": 2, **AT, **entry}, epochs={("mrboost", 2): 28}, **suite)
    assert controlled(lines) == wanted
