"""Surrogate sets that are built: from a suite to names, mistakes, and what counts as white-box."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import advens.benchmarks.plan as planning
from advens.attacks import create_attack
from advens.attacks.parts import PARTS, changed, part
from advens.benchmarks.runner import images_of_both
from advens.benchmarks.suites import load_suite
from advens.classifier import Classifier
from advens.datasets import load_data
from advens.errors import InputError
from advens.models import ModelCard, describe, load_model
from advens.results.store import schema, write_table


@pytest.fixture(autouse=True)
def twins() -> Any:
    """A builder that gives two models, whatever it gets; counts how often it is asked."""
    asked: list[tuple[list[str], int, int]] = []

    @part("builder", "twins")
    class Twins:
        """Two models.

        Args:
            first: seed of the first.
        """

        first: int = 7

        def members(self, models: int) -> int:
            return 2

        def build(
            self, models: Sequence[Classifier], data: Any, *, seed: int = 0, **more: Any
        ) -> list[Classifier]:
            asked.append(([model.name for model in models], len(data), seed))
            return [load_model(f"toys:centroid?seed={self.first + i}") for i in range(2)]

    yield asked
    del PARTS["builder"].entries["twins"]


BUILT = {"build": "twins", "model": "toys:centroid?seed=1", "data": "digits:train?limit=12"}


def test_a_built_set_attacks(advens: Any, suite: Any, tmp_path: Any, rows: Any, twins: Any) -> None:
    path = suite(surrogates={"two": BUILT | {"first": 20, "seed": 3}}, targets=["toys:centroid?seed=4"])
    advens("run", path, "--out", tmp_path / "run").done()
    assert twins == [(["toys:centroid?seed=1"], 12, 3)]
    cells = json.loads((tmp_path / "run" / "plan.json").read_text())["cells"]
    assert all("on two" in title for title in cells.values())
    assert set(rows(tmp_path / "run")["surrogates"]) == {"two"}
    assert "nothing to do" in advens("run", path, "--out", tmp_path / "run").done().out


def test_dry_run_builds_nothing(advens: Any, suite: Any, twins: Any) -> None:
    said = advens("run", suite(surrogates={"two": BUILT}), "--dry-run").done()
    assert "surrogates two: 2 by 'twins' of toys:centroid?seed=1, on digits:train?limit=12" in said.out
    assert not twins


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"build": "twinz"}, ["'twinz'", "'twins'"]),
        ({"frist": 3}, ["'frist'", "'first'"]),
        ({"model": "digits:resnett"}, ["'digits:resnet'"]),
        ({"model": []}, ["'two' is empty"]),
        ({"data": None}, ["needs data"]),
        ({"seed": -1}, ["seed"]),
    ],
)
def test_mistakes_come_before_building(
    advens: Any, suite: Any, twins: Any, tmp_path: Any, change: dict[str, Any], words: list[str]
) -> None:
    table = {k: v for k, v in (BUILT | change).items() if v is not None}
    advens("run", suite(surrogates={"two": table}), "--out", tmp_path / "run").refused(*words)
    assert not twins
    assert not (tmp_path / "run").exists()


def test_embedded_models_know_their_training_data(made: Any) -> None:
    suite = made(surrogates={"two": {"build": "twins", "model": "digits:mambaout"}})
    assert suite.surrogates["two"].source == "digits:train"


def test_what_a_set_was_built_from_is_white_box(
    advens: Any, suite: Any, tmp_path: Any, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = describe("toys:centroid?seed=1").digest

    def card(name: str) -> ModelCard:
        found = describe(name)
        return replace(found, bases=(base,)) if "seed=7" in name else found

    monkeypatch.setattr(planning, "describe", card)
    names = ["toys:centroid?seed=1", "toys:alias?seed=1", "toys:centroid?seed=8", "toys:centroid?seed=4"]
    path = suite(surrogates={"two": BUILT}, targets=names)
    advens("run", path, "--out", tmp_path / "run").done()
    white = rows(tmp_path / "run").groupby("target", observed=True)["white_box"].first()
    assert white.to_dict() == dict(zip(names, [True, True, True, False], strict=True))
    advens("evaluate", tmp_path / "run", "--targets", "toys:alias?seed=1").done()
    found = advens("verify", tmp_path / "run")  # the card above is not that of the model
    assert found.code == 1
    assert "its surrogates were not built from the models it names" in found.err
    alone = suite("b.toml", surrogates={"two": BUILT}, targets=["toys:alias?seed=1"])
    advens("run", alone, "--out", tmp_path / "b").refused("none is held out")


def test_each_lists_models(made: Any) -> None:
    with pytest.raises(ValueError, match="another name"):
        made(surrogates={"each": BUILT})


def test_run_again_with_other_options_is_refused(advens: Any, suite: Any, tmp_path: Any) -> None:
    advens("run", suite(surrogates={"two": BUILT}), "--out", tmp_path / "run").done()
    other = suite("other.toml", surrogates={"two": BUILT | {"first": 9}})
    advens("run", other, "--out", tmp_path / "run").refused("surrogates.two")


def test_names_on_the_boards_of_digits_builders_can_be_typed() -> None:
    suite = load_suite("digits-builders")
    for entry in suite.attacks:
        assert create_attack(entry.title, eps=0.2)


def test_digits_builders_has_every_builder_with_and_without_sharpness() -> None:
    sets = load_suite("digits-builders").surrogates
    attacked = {name for entry in load_suite("digits-builders").attacks for name in entry.surrogates or ()}
    assert attacked == set(sets)
    for kind in ("lgv", "lgv-swa", "lgv-subspace", "snapshots", "fge", "soup", "mba"):
        for lr in (0.05, 0.2):
            plain, sharp = (sets[f"{kind} {lr}{tail}"].builder() for tail in ("", " sharp"))
            trained, flat = (getattr(builder, "of", builder) for builder in (plain, sharp))
            assert (trained.lr, trained.sharpness) == (lr, 0.0)
            assert changed(trained, sharpness=0.1) == flat


def test_unknown_data_is_one_line(made: Any) -> None:
    with pytest.raises(InputError, match="needs data = SOURCE"):
        _ = made(surrogates={"two": {"build": "twins", "model": "toys:centroid"}}).surrogates["two"].source


def test_images_that_are_attacked_build_nothing(advens: Any, suite: Any, tmp_path: Any, twins: Any) -> None:
    attacked = "digits:test?limit=6"
    path = suite(surrogates={"two": BUILT | {"data": "digits:test?limit=9"}}, data=attacked)
    said = advens("run", path, "--out", tmp_path / "run").refused()
    assert "surrogates 'two': 6 of the images in 'digits:test?limit=9' are attacked" in said
    assert not twins
    assert not (tmp_path / "run").exists()


def test_images_of_one_name_may_differ() -> None:
    one, other = (load_data(f"synthetic:shapes?n=4&seed={seed}") for seed in (0, 1))
    assert images_of_both(one, one) == 4
    assert images_of_both(one, other) == 0
    other.sample_ids = one.sample_ids  # another data set may number its images alike
    assert images_of_both(one, other) == 0


def test_built_anew_for_every_seed(advens: Any, suite: Any, tmp_path: Any, twins: Any) -> None:
    sets = {"two": BUILT, "fixed": BUILT | {"first": 30, "seed": 5}}
    path = suite(surrogates=sets, targets=["toys:centroid?seed=4"], seeds=[0, 1])
    advens("run", path, "--out", tmp_path / "run").done()
    assert [seed for _, _, seed in twins] == [0, 1, 5]


def mismatches(advens: Any, folder: Any) -> str:
    said = advens("verify", folder)
    said.failed("mismatch")
    return str(said.err)


@pytest.fixture
def searched() -> Any:
    """A builder of two models that says how it chose them; what it says can be changed."""
    told = [{"model": "toys:centroid?seed=1", "call": k, "head-drop": 0.1 * k, "objective": 2.0 + k % 2,
             "clean_accuracy": 0.9, "allowed": True, "chosen": k == 1} for k in range(3)]  # fmt: skip

    @part("builder", "searched")
    class Searched:
        """Two models."""

        def members(self, models: int) -> int:
            return 2

        def build(self, models: Sequence[Classifier], data: Any, **more: Any) -> list[Classifier]:
            return [load_model(f"toys:centroid?seed={7 + i}") for i in range(2)]

        def history(self, models: Sequence[Classifier], data: Any, *, seed: int) -> pd.DataFrame:
            return pd.DataFrame(told)

    yield told
    del PARTS["builder"].entries["searched"]


def test_a_run_keeps_how_its_surrogates_came_about(
    advens: Any, suite: Any, tmp_path: Any, searched: Any
) -> None:
    built, out = BUILT | {"build": "searched"}, tmp_path / "run"
    path = suite(surrogates={"two": built}, targets=["toys:centroid?seed=4"], seeds=[0, 1])
    advens("run", path, "--out", out).done()
    kept = {each: each.read_bytes() for each in sorted((out / "history").iterdir())}
    assert len(kept) == 2
    frame = pd.read_parquet(next(iter(kept)))
    assert set(frame["surrogates"]) == {"two"}
    assert frame[frame["what"] == "objective"]["value"].tolist() == [2, 3, 2]
    assert frame[frame["what"] == "chosen"]["value"].tolist() == [0, 1, 0]
    page = (out / "report.html").read_text()
    assert "trial 2 of 3 was chosen, with head-drop 0.1" in page
    assert "a mean loss of 3;" in page

    advens("run", path, "--out", tmp_path / "again").done()
    again = sorted((tmp_path / "again/history").iterdir())
    assert [each.read_bytes() for each in again] == list(kept.values())
    assert "not compared" not in advens("verify", out).done().out
    searched[0]["objective"] = 9.0
    assert "is not how surrogates 'two' came about" in mismatches(advens, out)
    searched.clear()
    assert "was not compared" in advens("verify", out).done().out
    first = next(iter(kept))
    first.rename(first.with_name("x.parquet"))
    assert "history/x.parquet is of no set that the suite builds" in mismatches(advens, out)
    (out / "history/x.parquet").unlink()
    advens("verify", out).done()
    advens("report", out).done()


def test_histories_that_were_changed(advens: Any, suite: Any, tmp_path: Any, searched: Any) -> None:
    path, out = suite(surrogates={"two": BUILT | {"build": "searched"}}), tmp_path / "run"
    advens("run", path, "--out", out).done()
    (file,) = (out / "history").iterdir()
    frame = pd.read_parquet(file)
    write_table(file, schema.to_table("history", frame.assign(surrogates="three")))
    assert "is not of surrogates 'two', seed 0, alone" in mismatches(advens, out)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    assert file.name in mismatches(advens, out)
