"""Crafting cells again: which are drawn, what is compared, and what may differ elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from advens import open_run
from advens.benchmarks.evaluate import stored_cell
from advens.benchmarks.recraft import Recrafted, Sample
from advens.benchmarks.suites import bundled, load, suite_identity
from advens.cli import invoke
from advens.errors import InputError
from advens.results.store import RunStore, read_cell, read_table, write_examples
from tests.benchmarks.test_forgeries import SUITE, crafted, images_in, stored


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Path:
    folder = tmp_path_factory.mktemp("recraft")
    (folder / "suite.toml").write_text(tomli_w.dumps(SUITE))
    assert invoke(["run", str(folder / "suite.toml"), "--out", str(folder / "run"), "--device", "cpu"]) == 0
    return folder / "run"


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))


def test_cells_are_drawn_by_the_challenge(honest: Path) -> None:
    cells = [stored_cell(RunStore(honest), name) for name in RunStore(honest).cells()]
    assert len(cells) == 6
    drawn = {text: [cell.key for cell in Sample(0.4, text).of(cells)] for text in "abcdefgh"}
    assert {len(keys) for keys in drawn.values()} == {2}
    assert len({tuple(keys) for keys in drawn.values()}) > 3
    assert drawn["a"] == [cell.key for cell in Sample(0.4, "a").of(cells[::-1])][::-1]
    shares = (0.001, 0.05, 0.34, 0.5, 0.99, 1)
    assert [len(Sample(share, "a").of(cells)) for share in shares] == [1, 1, 2, 3, 5, 6]


def test_what_a_sample_is_not(advens: Any, honest: Path) -> None:
    for share in (0, 1.1, -1):
        with pytest.raises(InputError, match="share of the cells"):
            Sample(share, "a")
    advens("verify", honest, "--recraft", 2).refused("share of the cells")
    advens("verify", honest, "--challenge", "x").refused("--recraft SHARE")


def test_a_random_challenge_can_be_repeated(advens: Any, honest: Path) -> None:
    said = advens("verify", honest, "--device", "cpu", "--recraft", 0.2).done().out
    challenge = said.split("--challenge ")[1].split()[0]
    again = advens("verify", honest, "--device", "cpu", "--recraft", 0.2, "--challenge", challenge).done().out
    assert said == again
    assert "1 of 6 cells (17%) crafted again: 12 of 12 images identical" in said


def forged(run: Path, told: dict[str, Any], rows: int) -> None:
    """Another seed's images in place of the first ones of a cell of ``difgsm``."""
    cells = [stored_cell(RunStore(run), name) for name in RunStore(run).cells()]
    cell = next(cell for cell in cells if cell.attack == "difgsm")
    path = RunStore(run).examples_path(cell.key)
    pixels = images_in(run, cell)
    pixels[:rows] = crafted(run, cell, seed=1)[:rows]
    stored(run, cell, pixels, read_cell(path) | told)


@pytest.mark.parametrize(
    "told", [{"threads": 2}, {"device": "cuda"}, {"arithmetic": "torch 1"}, {"threads": None}]
)
def test_a_cell_from_elsewhere_may_differ_a_little(told: dict[str, Any], run: Path, advens: Any) -> None:
    forged(run, told, 1)
    said = advens("verify", run, "--device", "cpu", "--recraft", 1).done().out
    assert "71 of 72 images identical; 1 cells compared by the tolerance, at least 9" in said


def test_a_cell_from_elsewhere_may_not_differ_much(run: Path, advens: Any) -> None:
    forged(run, {"threads": 2}, 12)
    said = advens("verify", run, "--device", "cpu", "--recraft", 1)
    said.failed("1 mismatches")
    assert "its images are not those that its attack makes: " in said.err
    assert "60 of 72 images identical" in said.out


def test_a_cell_from_here_may_not_differ(run: Path, advens: Any) -> None:
    forged(run, {}, 1)
    said = advens("verify", run, "--device", "cpu", "--recraft", 1)
    said.failed("1 mismatches")
    assert "1 of 12 images are not those that its attack makes" in said.err


def test_python_crafts_again(run: Path) -> None:
    assert open_run(run).verify(recraft=1, challenge="x") == []
    forged(run, {}, 1)
    (line,) = open_run(run).verify(recraft=1)
    assert "are not those that its attack makes" in line
    assert open_run(run).verify() == []


def test_sequences_of_white_box_attacks(advens: Any, tmp_path: Path) -> None:
    advens(
        "robustness", "--models", "toys:centroid?seed=1", "--data", "digits:test?limit=12", "--attack",
        "pgd-ce+cw", "--eps", "0.06", "--steps", 3, "--device", "cpu", "--out", tmp_path / "out",
    ).done()  # fmt: skip
    said = advens("verify", tmp_path / "out", "--device", "cpu", "--recraft", 1).done().out
    assert "2 of 2 cells (100%) crafted again: 24 of 24 images identical" in said
    store = RunStore(tmp_path / "out")
    cells = [stored_cell(store, name) for name in store.cells()]
    cell = next(cell for cell in cells if cell.after)
    path = store.examples_path(cell.key)
    told = read_cell(path)
    spent = told["backwards_per_sample"] / 2
    table = read_table(path).replace_schema_metadata(None)
    write_examples(path, table, told | {"backwards_per_sample": spent})
    said = advens("verify", tmp_path / "out", "--device", "cpu", "--recraft", 1)
    assert f"'backwards_per_sample' is {spent}, and " in said.err


def test_surrogates_that_are_built(
    advens: Any, suite: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    built = {
        "build": "lgv", "model": "toys:centroid?seed=1", "data": "digits:train?limit=32", "epochs": 1,
        "per_epoch": 2, "batch_size": 8,
    }  # fmt: skip
    path = suite(surrogates={"set": built}, targets=["toys:centroid?seed=3"])
    advens("run", path, "--out", tmp_path / "run", "--device", "cpu").done()
    verify = ("verify", tmp_path / "run", "--device", "cpu", "--trust", "toys:*")
    assert "'set': taken from the cache" in advens(*verify, "--recraft", 1).done().out
    shutil.rmtree(tmp_path / "cache")
    advens(*verify).refused("build it again")
    assert "'set': built again" in advens(*verify, "--recraft", 1).done().out


def test_a_run_is_held_to_a_suite(advens: Any, honest: Path, tmp_path: Path) -> None:
    (tmp_path / "same.toml").write_text(tomli_w.dumps(SUITE | {"batch_size": 5}))
    said = advens("verify", honest, "--suite", tmp_path / "same.toml").done().out
    digest = suite_identity(load(str(tmp_path / "same.toml")))["digest"]
    assert f"held to suite 'honest', version 1, settings {digest}" in said
    fewer = SUITE | {"targets": [*SUITE["targets"], "toys:centroid?seed=7"], "attacks": SUITE["attacks"][:2]}
    (tmp_path / "more.toml").write_text(tomli_w.dumps(fewer | {"version": 2}))
    said = advens("verify", honest, "--suite", tmp_path / "more.toml")
    said.failed("2 mismatches")
    assert "MISMATCH  not suite 'honest', version 2: version is 1, not 2" in said.err
    assert "version 2: targets is [" in said.err
    assert "beyond suite 'honest', version 2: uniform" in said.out
    advens("verify", honest, "--suite", "quickstarts").refused("'quickstart'")


def test_nothing_to_craft_again() -> None:
    assert Recrafted().line() == "0 of 0 cells (0%) crafted again: 0 of 0 images identical"


IDENTITIES = {
    "digits-builders": (1, "2c05d5e6815b"),
    "digits-catalogue": (3, "1d4e9ae3359a"),
    "digits-catalogue-budget": (3, "c621793452ef"),
    "digits-catalogue-mixed": (3, "49688a09dc9b"),
    "digits-catalogue-mixed-budget": (1, "64238277fb01"),
    "digits-crossed": (1, "95972024f470"),
    "digits-defenses": (2, "681b4278c837"),
    "digits-defenses-epochs": (1, "84a321f541e3"),
    "digits-ensembles-budget": (1, "542955504f44"),
    "digits-ensembles": (1, "f428ab8c0a18"),
    "digits-small": (1, "1c4d68027e59"),
    "digits-square": (1, "39adba7d5738"),
    "digits-targeted": (2, "4ace4f571c2e"),
    "digits-whitebox": (1, "2c42f627c39c"),
    "imagenet-catalogue": (1, "9c39e5fd744d"),
    "imagenet-ensembles": (1, "0693d0626a66"),
    "imagenet-targeted": (2, "e846feeea397"),
    "imagenet-transfer": (1, "d9df37509319"),
    "paper-adaea": (1, "3c41f2c4bcee"),
    "paper-barre": (1, "f6c1b42bddcf"),
    "paper-cwa": (1, "efd54c12e981"),
    "paper-dverge": (1, "54cbbe89f9de"),
    "paper-lgv": (1, "db30f560ad3e"),
    "paper-pma": (1, "a68104bbfbb7"),
    "paper-smer": (1, "62a50a78eb94"),
    "paper-svre": (1, "8de9ab83f317"),
    "paper-transferattack": (1, "6db0de5354a1"),
    "paper-vit-ensemble": (1, "2f0455e9e3e2"),
    "quickstart": (1, "778c8570f31c"),
    "robustbench-cifar10-l2": (1, "d1d20fff9a74"),
    "robustbench-cifar10-linf": (1, "dfdf6195fbfc"),
}


@pytest.mark.parametrize("name", bundled())
def test_settings_of_a_version_stay_as_they_are(name: str) -> None:
    """When settings of a bundled suite change, its version is raised, and the line here."""
    about = suite_identity(load(name))
    assert IDENTITIES[name] == (about["version"], about["digest"][:12])
