"""``built:DIGEST/INDEX``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from advens.attacks.surrogates.builders import cached, source
from advens.attacks.surrogates.builders.lgv import LGV
from advens.attacks.surrogates.builders.mba import MBA
from advens.attacks.surrogates.builders.snapshot import Snapshot
from advens.attacks.surrogates.changes import begin_step
from advens.classifier import Classifier
from advens.datasets import Dataset
from advens.errors import InputError
from advens.models import load_model, origins
from advens.seeding import Draws
from advens.spec import Spec

SHORT = LGV(epochs=1, batch_size=50, lr=0.01)


@pytest.fixture
def built(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Classifier]:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path))
    return SHORT.build([load_model("digits:resnet")], data)


def load(name: str) -> Snapshot:
    return source.load(Spec.parse(name, "model"))


def test_round_trip(built: list[Classifier], x: Tensor, tmp_path: Path) -> None:
    assert (tmp_path / "built").is_dir()
    for made in built:
        loaded = load(made.name)
        assert (loaded.name, loaded.digest, loaded.family) == (made.name, made.digest, "cnn")
        assert torch.equal(loaded(x), made(x))


def test_members_of_one_build_share_a_network(built: list[Classifier]) -> None:
    first, second = load(built[0].name), load(built[1].name)
    assert first.shared is second.shared
    del first
    third = load(built[2].name)
    assert third.shared is second.shared
    third.double()
    assert all(t.dtype == torch.float32 for t in second.net.parameters())


def test_card(built: list[Classifier]) -> None:
    base = load_model("digits:resnet")
    found = source.card(Spec.parse(built[2].name, "model"))
    assert found.name == built[2].name
    assert found.digest == built[2].digest
    assert found.bases == (base.digest,)
    assert (found.family, found.num_classes, found.input_size) == ("cnn", 10, (32, 32))
    source.check(Spec.parse(built[2].name, "model"))


def test_surrogates_that_are_drawn(
    data: Dataset, x: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path))
    made = MBA(of=SHORT, samples=3).build([load_model("digits:resnet")], data)
    assert len({m.digest for m in made}) == 3
    for drawn in made:
        loaded = load(drawn.name)
        card = source.card(Spec.parse(drawn.name, "model"))
        assert loaded.digest == drawn.digest == card.digest
        assert origins(loaded) == origins(drawn) == origins(card)
        for each in (drawn, loaded):
            begin_step(each, Draws(1, len(x)).at(5))
        assert torch.equal(loaded(x), drawn(x))
    key = made[0].name.partition("/")[0]
    with pytest.raises(InputError, match="has 3 members"):
        load(f"{key}/3")


def test_what_is_not_there(built: list[Classifier], tmp_path: Path) -> None:
    key = built[0].name.partition("/")[0]
    for name, said in [
        (f"{key}/4", "has 4 members"),
        (f"{key}/x", "DIGEST/INDEX"),
        (key, "DIGEST/INDEX"),
        ("built:../../etc/0", "DIGEST/INDEX"),
        ("built:abc/0", "no finished build"),
        (f"{key}/0?a=1", "unknown option 'a'"),
    ]:
        for ask in (source.load, source.card, source.check):
            with pytest.raises(InputError, match=said):
                ask(Spec.parse(name, "model"))
    about = tmp_path / "built" / key[6:] / "about.json"
    told = json.loads(about.read_text())
    about.write_text(json.dumps(told | {"names": ["digits:vit"]}))
    with pytest.raises(InputError, match="another architecture"):
        load(built[0].name)
    about.write_text(json.dumps(told | {"names": ["mine"]}))
    with pytest.raises(InputError, match="'mine'"):
        load(built[0].name)


TOLD = {"bases": ["0"], "family": "cnn", "input_size": [32, 32], "members": ["0", "1"],
        "names": ["digits:vit"], "num_classes": 10}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "whole"),
    [
        ({}, True), ({"input_size": None}, True), ({"drawn": 3}, True), ({"drawn": 10_000}, True),
        ({"drawn": 0}, True),
        ({"input_size": 32}, False), ({"input_size": [32]}, False), ({"input_size": [32, "32"]}, False),
        ({"input_size": [32.0, 32]}, False), ({"family": None}, False), ({"num_classes": "10"}, False),
        ({"names": []}, False), ({"names": [1]}, False), ({"bases": "0"}, False), ({"members": None}, False),
        ({"drawn": -1}, False), ({"drawn": 10_001}, False), ({"drawn": "3"}, False),
        ({"drawn": 3, "members": ["0"]}, False), ({"drawn": 3, "members": ["0", "1", "2"]}, False),
    ],
)  # fmt: skip
def test_descriptions_that_are_whole(changes: dict[str, Any], whole: bool) -> None:
    assert cached._complete(TOLD | changes) is whole


@pytest.mark.parametrize("key", sorted(TOLD))
def test_descriptions_that_lack_an_entry(key: str) -> None:
    assert not cached._complete({name: value for name, value in TOLD.items() if name != key})
