"""Sequences of a suite are those of the attacks of the same name, options and all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from advens.attacks import create_attack
from advens.attacks.whitebox.cascade import SEQUENCES, sequence
from advens.benchmarks.plan import stages_of
from advens.benchmarks.suites import from_table
from advens.threat import Threat

MODEL = "digits:resnet-at"


def staged(name: str, norm: str = "linf", **options: Any) -> dict[str, Any]:
    """The attacks of a sequence in the order of a suite, by their labels."""
    suite = from_table(
        {
            "name": "s", "goal": "robustness", "data": "digits:test", "targets": [MODEL],
            "threat": {"norm": norm, "eps": 0.1}, "surrogates": {"each": [MODEL]},
            "attacks": [{"name": name, **options}],
        }, "s",
    )  # fmt: skip
    return {label: stage.attack for label, stage in stages_of(suite, suite.attacks[0], 1)}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_published_sequence_has_its_own_options(name: str) -> None:
    attacks = list(staged(name).values())
    assert attacks == [replace(a, threat=attacks[0].threat) for a in sequence(name).attacks]


@pytest.mark.parametrize("name", ["autoattack", "pma-plus", "pma-plus-plus"])
def test_in_l1_there_are_more_starts_and_fewer_classes(name: str) -> None:
    """As published with the l_1 attack; called on its own, a sequence is the same attacks."""
    attacks = staged(name, "L1")
    called: Any = create_attack(name, norm="l1", eps=0.1)
    assert list(attacks.values()) == called.stages()
    assert all(attack.threat == Threat("l1", 0.1) for attack in attacks.values())
    apgd = [(a.restarts, a.targets) for a in attacks.values() if hasattr(a, "rho")]
    assert apgd == [(1, 5)] if name == "pma-plus" else [(5, 0), (1, 5)]


def test_options_are_those_of_the_paper() -> None:
    assert [a.rescale for a in staged("autoattack").values() if hasattr(a, "rescale")] == [False]
    assert [a.eot for a in staged("autoattack-rand").values()] == [20, 20]
    assert staged("square")["square"] == create_attack("square", eps=0.1)
    assert staged("pma+square")["pma+square"].rescale, "written out, Square is Square alone"


def test_an_entry_may_override_them() -> None:
    square = staged("autoattack", **{"square.queries": 100})["autoattack"]
    assert (square.queries, square.rescale) == (100, False)
    assert staged("autoattack", **{"square.rescale": True})["autoattack"].rescale
    assert [a.eot for a in staged("autoattack-rand", eot=5).values()] == [5, 5]
    assert list(staged("autoattack+pma", label="all")) == [
        "apgd-ce", "apgd-ce+apgd-t", "apgd-ce+apgd-t+fab-t", "apgd-ce+apgd-t+fab-t+square", "all"
    ]  # fmt: skip
