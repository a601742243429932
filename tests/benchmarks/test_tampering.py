"""A falsehood in every kind of file that a run or a folder of defenses can hold: `advens verify` finds each.

Tables are changed with the package's own writers, so that seals and digests are right.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tomli_w
from PIL import Image

from advens.benchmarks import defense_goal
from advens.benchmarks.suites import tomllib  # tomli before Python 3.11
from advens.cli import invoke
from advens.defenses.ensembles import RandomizedEnsemble
from advens.models import load_model
from advens.results.boards import BOARDS
from advens.results.store import read_table, write_table

PAIR = "toys:centroid?seed=1,toys:centroid?seed=2"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, _surroundings: None) -> Path:
    """Honest runs of every kind; copied before they are touched."""
    folder = tmp_path_factory.mktemp("tampering")
    members = [load_model(f"toys:centroid?seed={seed}") for seed in (4, 9)]
    RandomizedEnsemble(members, [0.25, 0.75]).save(folder / "drawn")
    with pytest.MonkeyPatch.context() as patch:
        own = {"pgd": {"name": "pgd-ce", "steps": 2}, "arc": {"name": "arc", "steps": 2}}
        patch.setattr(defense_goal, "WHITE_BOX", own)
        for command in (
            ["craft", "adaea", "--surrogates", PAIR, "--data", "digits:test?limit=6", "--eps", "0.2",
             "--steps", "2", "--trace", "--targets", "toys:centroid?seed=3", "--out", "crafted"],
            ["craft", "fgsm", "--surrogates", PAIR, "--data", "digits:test?limit=6", "--eps", "0.2",
             "--no-png", "--store", "images", "--out", "whole"],
            ["robustness", "--models", "toys:centroid?seed=1", "--data", "digits:test?limit=6", "--attack",
             "pgd-ce", "--eps", "0.1", "--steps", "2", "--out", "robustness"],
            ["defend", str(folder / "drawn"), "toys:centroid?seed=5", "--surrogates", PAIR, "--attacks",
             "fgsm", "--data", "digits:test", "--limit", "6", "--eps", "0.1,0.2", "--out", "defended"],
        ):  # fmt: skip
            assert invoke([*command[:-1], str(folder / command[-1])]) == 0
    return folder


@pytest.fixture
def copied(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    own = {"pgd": {"name": "pgd-ce", "steps": 2}, "arc": {"name": "arc", "steps": 2}}
    monkeypatch.setattr(defense_goal, "WHITE_BOX", own)

    def copy(name: str) -> Path:
        shutil.copytree(runs / name, tmp_path / name)
        return tmp_path / name

    return copy


def edited(path: Path, name: str, change: Callable[[Any], Any], row: int = 0) -> None:
    """One value of a table changed, sealed again."""
    table = read_table(path)
    index = table.schema.get_field_index(name)
    values = table.column(name).to_pylist()
    values[row] = change(values[row])
    field = table.schema.field(name)
    write_table(path, table.set_column(index, field, pa.array(values, field.type)))


def rewritten(path: Path, change: Callable[[Any], Any]) -> None:
    """A JSON or TOML file changed."""
    toml = path.suffix == ".toml"
    content = tomllib.loads(path.read_text()) if toml else json.loads(path.read_text())
    change(content)
    path.write_text(tomli_w.dumps(content) if toml else json.dumps(content))


def first(folder: Path, pattern: str) -> Path:
    return sorted(folder.glob(pattern))[0]


def grown(folder: Path) -> None:
    """A run of another comparison added to a folder of defenses."""
    shutil.copytree(folder / "transfer-0.1", folder / "transfer-0.15")


def shown_elsewhere(folder: Path) -> None:
    with Image.open(first(folder, "images/*.png")) as picture:
        pixels = np.asarray(picture).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(first(folder, "images/*.png"))


def noted(folder: Path) -> None:
    cell = first(folder, "examples/*.parquet").stem
    (folder / "failures").mkdir()
    (folder / "failures" / f"{cell}.json").write_text('{"task": "x", "error": "y"}')


FALSEHOODS: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "images": (
        "whole", lambda d: edited(first(d, "examples/*"), "image", lambda v: bytes(len(v))),
        "was changed after it was written",
    ),
    "differences": (
        "crafted", lambda d: edited(first(d, "examples/*"), "difference", lambda v: bytes(len(v))),
        "was changed after it was written",
    ),
    "digest of an image": (
        "crafted", lambda d: edited(first(d, "examples/*"), "sha256", lambda v: v[::-1]),
        "was changed after it was written",
    ),
    "an image beside its difference": (
        "crafted", lambda d: edited(first(d, "examples/*"), "image", lambda v: bytes(3 * 32 * 32)),
        "neither all images nor all differences",
    ),

    "predictions": (
        "crafted", lambda d: edited(first(d, "samples/*"), "adv_pred", lambda v: 9 - v),
        "adv_pred",
    ),
    "matrix": ("crafted", lambda d: edited(d / "matrix.parquet", "n", lambda v: v + 1), "matrix.parquet"),
    "leaderboard": (
        "crafted", lambda d: edited(d / "leaderboard.parquet", "mean_linf", lambda v: v / 2), "leaderboard"
    ),
    "likeness": (
        "crafted", lambda d: edited(d / "likeness.parquet", "near_duplicate", lambda v: not v),
        "the likeness of",
    ),
    "no matrix": ("crafted", lambda d: (d / "matrix.parquet").unlink(), "matrix.parquet is missing"),
    "a board of another goal": (
        "crafted", lambda d: shutil.copy(d / "matrix.parquet", d / "robustness.parquet"), "no table of this"
    ),
    "suite": (
        "crafted", lambda d: rewritten(d / "suite.toml", lambda s: s["threat"].update(eps=0.1)), "suite.toml"
    ),
    "suite without a target": (
        "crafted", lambda d: rewritten(d / "suite.toml", lambda s: s["targets"].pop()), "does not ask for"
    ),
    "suite with another seed": (
        "crafted", lambda d: rewritten(d / "suite.toml", lambda s: s.update(seeds=[0, 1])), "are missing"
    ),
    "garbage for a suite": ("crafted", lambda d: (d / "suite.toml").write_text("x ="), "suite.toml"),
    "no suite": ("crafted", lambda d: (d / "suite.toml").unlink(), "suite.toml is missing"),
    "plan": (
        "crafted", lambda d: rewritten(d / "plan.json", lambda p: p["cells"].update(x="y")), "plan.json"
    ),
    "plan without cells": (
        "crafted", lambda d: rewritten(d / "plan.json", lambda p: p["cells"].clear()), "plan.json"
    ),
    "environment": (
        "crafted", lambda d: rewritten(d / "environment.json", lambda e: e["models"].update(
            {"toys:centroid?seed=1": "0"})), "environment.json"
    ),
    "environment's data": (
        "crafted", lambda d: rewritten(d / "environment.json", lambda e: e["data"].update(other="0")),
        "environment.json names other",
    ),
    "failures": ("crafted", noted, "notes a failure of what is finished"),
    "trace": ("crafted", lambda d: edited(first(d, "traces/*"), "sample_id", lambda v: "x"), "traces/"),
    "trace of no cell": (
        "crafted", lambda d: first(d, "traces/*").rename(d / "traces" / "x.parquet"),
        "no cell",
    ),
    "picture": ("crafted", shown_elsewhere, "no image that is stored for its sample"),
    "picture of nothing": ("crafted", lambda d: (d / "images" / "x.png").write_bytes(b""), "images/x.png"),
    "robustness": (
        "robustness", lambda d: edited(d / "robustness.parquet", "robust_accuracy", lambda v: 0.9),
        "robustness",
    ),
    "robustness of another model": (
        "robustness", lambda d: edited(d / "robustness.parquet", "model", lambda v: "x"), "robustness.parquet"
    ),
    "a check": (
        "robustness", lambda d: edited(d / "sanity.parquet", "value", lambda v: 1.0), "sanity.parquet"
    ),
    "a curve": (
        "robustness", lambda d: edited(d / "curves.parquet", "accuracy", lambda v: 0.5), "curves.parquet"
    ),
    "a report": (
        "robustness", lambda d: rewritten(first(d, "sanity/*"), lambda r: r["checks"][0].update(value=1.0)),
        "sanity.parquet",
    ),
    "a report of nobody": (
        "robustness", lambda d: shutil.copy(first(d, "sanity/*"), d / "sanity" / "x.json"), "sanity/x.json"
    ),
    "what a defense leaves": (
        "defended", lambda d: edited(d / "defenses.parquet", "transfer 0.1", lambda v: 0.99),
        "defenses.parquet",
    ),
    "what an image leaves": (
        "defended", lambda d: edited(d / "images.parquet", "left", lambda v: 0.5), "images.parquet"
    ),
    "members of a model": (
        "defended", lambda d: edited(d / "models.parquet", "members", lambda v: 7),
        "models.parquet: 'members'",
    ),
    "diversity": (
        "defended", lambda d: edited(d / "models.parquet", "diversity", lambda v: 9.0), "models.parquet"
    ),
    "cost": ("defended", lambda d: edited(first(d, "measures/*"), "mflops", lambda v: 9.0), "measures/"),
    "a model of nobody": (
        "defended", lambda d: shutil.copy(first(d, "measures/*"), d / "measures" / "x.parquet"), "measures/x"
    ),
    "trial": (
        "defended", lambda d: rewritten(d / "trial.json", lambda t: t.update(budgets=["0.1"])), "trial.json"
    ),
    "suite of defenses": (
        "defended", lambda d: rewritten(d / "suite.toml", lambda s: s["attacks"].append("mifgsm")),
        "suite.toml",
    ),
    "no suite of defenses": ("defended", lambda d: (d / "suite.toml").unlink(), "suite.toml is missing"),
    "a run more": ("defended", grown, "transfer-0.15/ is no run"),
    "a run less": ("defended", lambda d: shutil.rmtree(d / "transfer-0.1"), "transfer-0.1/suite.toml"),
    "a run's rows": (
        "defended", lambda d: edited(first(d, "white-box/samples/*"), "adv_pred", lambda v: 9 - v),
        "white-box: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ["crafted", "robustness", "defended"])
def test_honest_runs(name: str, copied: Any, advens: Any) -> None:
    said = advens("verify", copied(name)).done()
    assert "not to be seen from files" in said.out


@pytest.mark.parametrize("falsehood", FALSEHOODS)
def test_every_falsehood_is_found(falsehood: str, copied: Any, advens: Any) -> None:
    name, tamper, words = FALSEHOODS[falsehood]
    folder = copied(name)
    tamper(folder)
    said = advens("verify", folder)
    said.failed("mismatches")
    told = [line for line in said.err.splitlines() if line.startswith("MISMATCH  ")]
    assert any(words in line for line in told), said.err


def test_every_kind_of_file_is_tampered_with(runs: Path) -> None:
    """The kinds of files that runs hold are those above; a new kind needs a check, and a line here."""
    kinds = set()
    for path in runs.rglob("*"):
        if path.is_file() and not path.is_relative_to(runs / "drawn") and path.name != ".lock":
            inside = path.parent.name
            own = inside in ("examples", "samples", "traces", "images", "measures", "sanity", "failures")
            kinds.add(inside if own else path.name)
    boards = {BOARDS.get(name).file for name in BOARDS.names()} - {"study.parquet"}
    assert kinds == boards | {
        "examples", "samples", "traces", "images", "measures", "sanity", "suite.toml", "plan.json",
        "environment.json", "trial.json", "likeness.parquet",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        *(("crafted", f"{each}*") for each in ("examples/", "samples/", "traces/", "matrix", "leaderboard",
                                               "likeness")),
        *(("robustness", f"{each}.parquet") for each in ("robustness", "sanity", "curves")),
        *(("defended", f"{each}*") for each in ("images", "models", "measures/", "defenses")),
    ],
)
def test_a_flipped_byte(name: str, pattern: str, copied: Any, advens: Any) -> None:
    """Of every kind of table: the byte in the middle."""
    folder = copied(name)
    path = first(folder, pattern)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    said = advens("verify", folder)
    said.failed("mismatches")
    assert path.name in said.err
