"""Trainings in the cache, and the smaller ensembles that a larger one holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import advens
from advens.defenses import create_defense, list_defenses
from advens.defenses.phases import Nested
from advens.defenses.trained import name_of, trained
from advens.defenses.training import train
from advens.errors import InputError

ARCH = "digits:mambaout"
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 32, "optimizer": "adam", "lr": 3e-3}
FEW: dict[str, dict[str, Any]] = {
    "barre": {"steps": 1, "osp_every": 1, "osp_rounds": 2, "osp_images": 16, "arc_steps": 2},
    "adv-comp-sum": {"steps": 1}, "at": {"steps": 1}, "iat": {"steps": 1}, "mrboost": {"steps": 1},
    "plain": {}, "trades": {"steps": 1},
}  # fmt: skip
"""Defenses that learn member by member."""


@pytest.fixture(scope="module")
def data() -> Any:
    return advens.load_data("digits:train?limit=32&seed=0")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trained"


def test_which_are_nested() -> None:
    assert {name for name in list_defenses() if isinstance(create_defense(name), Nested)} == set(FEW)


@pytest.mark.parametrize("name", FEW)
def test_first_members_are_what_fewer_would_be(name: str, data: Any, tmp_path: Path) -> None:
    def made(members: int) -> Any:
        defense = create_defense(name, **QUICK, **FEW[name], members=members)
        return train(defense, ARCH, data, tmp_path / str(members))

    three, two = made(3), made(2)
    cut = advens.load_model(f"defense:{tmp_path}/3?members=2")
    assert cut.digest == two.digest != three.digest
    assert advens.load_model(f"defense:{tmp_path}/3?members=3").digest == three.digest


def test_members_that_learned_together_are_not_cut(data: Any, tmp_path: Path) -> None:
    train(create_defense("adp", **QUICK, members=3), ARCH, data, tmp_path / "adp")
    with pytest.raises(InputError, match="train one with 2 members"):
        advens.load_model(f"defense:{tmp_path}/adp?members=2")


def test_more_than_there_are(data: Any, tmp_path: Path) -> None:
    train(create_defense("plain", **QUICK, members=2), ARCH, data, tmp_path / "plain")
    for count in (0, 3):
        with pytest.raises(InputError, match=f"has 2 members; members = {count}"):
            advens.load_model(f"defense:{tmp_path}/plain?members={count}")


def test_trained_once(data: Any, cache: Path) -> None:
    epochs: list[Any] = []
    defense = create_defense("plain", **QUICK, members=2)
    name = trained(defense, ARCH, data, on_epoch=epochs.append)
    assert trained(defense, ARCH, data, on_epoch=epochs.append) == name
    assert len(epochs) == 2
    model = advens.load_model(name)
    assert model.name == name
    assert [row.name for row in cache.iterdir()] == [name.removeprefix("trained:")]
    assert len(advens.load_model(f"{name}?members=1").members) == 1  # type: ignore[arg-type]
    # how it is computed is not what is computed; all else is
    assert trained(create_defense("plain", **QUICK, members=2, stacked="never"), ARCH, data) == name
    others = {
        trained(defense, ARCH, data, seed=1),
        trained(create_defense("plain", **QUICK | {"lr": 1e-3}, members=2), ARCH, data),
        trained(defense, ARCH, advens.load_data("digits:train?limit=16&seed=0")),
    }
    assert len(others | {name}) == 4


def test_threads_change_nothing(data: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, digests = torch.get_num_threads(), set()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            monkeypatch.setenv("ADVENS_CACHE", str(cache.parent / str(threads)))
            name = trained(create_defense("at", **QUICK, members=1, steps=2), ARCH, data)
            digests.add(advens.load_model(name).digest)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(digests) == 1


def test_an_interrupted_one_goes_on(data: Any, cache: Path) -> None:
    def stop(row: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    defense = create_defense("plain", **QUICK, members=2)
    with pytest.raises(KeyboardInterrupt):
        trained(defense, ARCH, data, on_epoch=stop)
    (folder,) = cache.iterdir()
    with pytest.raises(InputError, match="holds no such training"):
        advens.load_model(f"trained:{folder.name}")
    later: list[Any] = []
    name = trained(defense, ARCH, data, on_epoch=later.append)
    assert [row["epoch"] for row in later] == [2]
    about = json.loads((folder / "ensemble" / "training.json").read_text())
    assert about["nested"] == [[1.0], [0.5, 0.5]]
    assert name == f"trained:{folder.name}"


@pytest.mark.parametrize(
    ("name", "said"),
    [("trained:../x", "write trained:DIGEST"), ("trained:abc", "train it again"),
     ("trained:abc?membrs=2", "did you mean 'members'")],
)  # fmt: skip
def test_what_is_not_there(name: str, said: str, cache: Path) -> None:
    with pytest.raises(InputError, match=said):
        advens.load_model(name)


# names that trainings had before the options in ``added`` came
BEFORE = {
    "at": "2f67660b2d3beaa420d8", "adp": "8dbc33e991170a9c0cc2", "dverge": "02566ce948b1b047c58e",
}  # fmt: skip


@pytest.mark.parametrize("name", BEFORE)
def test_options_that_came_later_leave_names_alone(name: str) -> None:
    data = advens.load_data("digits:train?limit=8&seed=0")
    assert name_of(create_defense(name), "digits:mambaout", data) == f"trained:{BEFORE[name]}"
    later = {"at": {"awp": 0.01}, "adp": {"adversarial_eps": 0.1}, "dverge": {"average": "ema"}}[name]
    assert name_of(create_defense(name, **later), "digits:mambaout", data) != f"trained:{BEFORE[name]}"
