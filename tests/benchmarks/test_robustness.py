"""``advens robustness``: stages on what still stands, the same store, one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tomli_w

from advens.results.store import RunStore
from advens.results.store.files import read_cell

MODELS = "toys:centroid?seed=1,toys:centroid?seed=2"


@pytest.fixture
def attacked(advens: Any, tmp_path: Path) -> Any:
    """``attacked("pgd-ce")``: two models attacked on 30 digits, in shards of 10."""

    def call(attack: str, *more: object, out: str = "run") -> Any:
        return advens(
            "robustness", "--models", MODELS, "--data", "digits:test?limit=30", "--attack", attack,
            "--eps", "0.06", "--steps", 8, "--shard", 10, "--out", tmp_path / out, *more,
        )

    return call


def left(folder: Path) -> dict[tuple[str, str], dict[str, bool]]:
    """Which samples of each model still stand after each attack on itself."""
    frame = RunStore.open(folder).read_samples()
    own = frame[frame["surrogates"] == frame["target"]]
    return {
        key: dict(zip(group["sample_id"], group["clean_correct"] & ~group["success"], strict=True))
        for key, group in own.groupby(["target", "attack"])
    }


def test_a_stage_attacks_what_still_stands(attacked: Any, advens: Any, tmp_path: Path) -> None:
    said = attacked("pgd-ce+cw").done()
    found = left(tmp_path / "run")
    for model in MODELS.split(","):
        first, second = found[model, "pgd-ce"], found[model, "pgd-ce+cw"]
        assert all(first[name] for name, stands in second.items() if stands)
        assert 0 < sum(second.values()) <= sum(first.values()) < 30
    assert "pgd-ce+cw" in said.out
    assert "worst of all" in said.out
    advens("verify", tmp_path / "run").done()


@pytest.mark.parametrize(
    ("norm", "eps", "attacks"),
    [("l2", 1.5, "autoattack,pma-plus-plus,pma-members,arc,adaptive-pgd"),
     ("L1", 12, "autoattack,pma-plus-plus,pma-members,adaptive-pgd")],
)  # fmt: skip
def test_white_box_attacks_in_other_norms(
    norm: str, eps: float, attacks: str, advens: Any, tmp_path: Path
) -> None:
    """Every part of the sequences runs, and its images are found in the ball when they are verified."""
    few = ["square.queries=8", "fab-t.targets=1", "apgd-t.targets=1", "apgd-ce.restarts=1"]
    advens(
        "robustness", "--models", MODELS, "--data", "digits:test?limit=8", "--attack", attacks,
        "--norm", norm, "--eps", eps, "--steps", 4, "--out", tmp_path / "run",
        *[option for value in few for option in ("--set", value)],
    ).done()  # fmt: skip
    found = RunStore.open(tmp_path / "run").read_samples()
    assert found["attack"].nunique() == (4 + 5 + 3 if norm == "l2" else 4 + 5 + 2)
    assert found[norm.lower()].max() > 0.9 * eps
    assert found[norm.lower()].max() <= eps + 1e-9
    advens("verify", tmp_path / "run").done()


def test_a_stronger_attack_joins_later(attacked: Any, tmp_path: Path) -> None:
    attacked("pgd-ce").done()
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "examples").iterdir()}
    assert "6 cells crafted" in attacked("pgd-ce+cw").done().out  # only the new stage
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "examples").iterdir()}
    assert {name: after[name] for name in before} == before
    both = {p.name: p.read_bytes() for p in (tmp_path / "run" / "examples").iterdir()}
    attacked("pgd-ce+cw", out="once").done()
    assert {p.name for p in (tmp_path / "once" / "examples").iterdir()} == set(both)
    assert left(tmp_path / "once") == left(tmp_path / "run")
    assert "nothing to do" in attacked("pgd-ce+cw").done().out


def test_broken_samples_spend_less_and_later_stages_nothing_on_them(
    attacked: Any, tmp_path: Path
) -> None:
    attacked("pgd-ce+cw").done()
    store = RunStore.open(tmp_path / "run")
    cells = {name: read_cell(store.examples_path(name)) for name in store.cells()}
    for cell in cells.values():
        assert 0 < cell["backwards_per_sample"] < 8
        if cell["after"]:
            assert cells[cell["after"]]["surrogates"] == cell["surrogates"]
            assert cell["stood"] <= 10
            assert cell["backwards_per_sample"] <= 8 * cell["stood"] / 10


def test_batch_and_workers_change_nothing(attacked: Any, tmp_path: Path) -> None:
    attacked("pgd-ce+cw").done()
    attacked("pgd-ce+cw", "--batch-size", 3, out="small").done()
    assert left(tmp_path / "run") == left(tmp_path / "small")


def test_any_attack_takes_part(attacked: Any, tmp_path: Path) -> None:
    attacked("mifgsm+pgd-ce").done()
    found = left(tmp_path / "run")
    for model in MODELS.split(","):
        first, second = found[model, "mifgsm"], found[model, "mifgsm+pgd-ce"]
        assert sum(second.values()) <= sum(first.values()) < 30


def test_steps_without_a_gradient_are_counted(advens: Any, tmp_path: Path) -> None:
    """Of the samples that are attacked: those the model is right on; an attack row by row counts none."""
    said = advens(
        "robustness", "--models", "toys:numb?seed=1", "--data", "digits:test?limit=12", "--eps", "0.06",
        "--attack", "mifgsm+pgd-ce", "--steps", 3, "--shard", 10, "--out", tmp_path / "out", "--no-sanity",
    ).done()  # fmt: skip
    store = RunStore.open(tmp_path / "out")
    cells = [read_cell(store.examples_path(name)) for name in store.cells()]
    first = [cell for cell in cells if not cell["after"]]
    assert sum(cell["stood"] for cell in first) > 6
    assert all(cell["silent_images"] == cell["stood"] for cell in first)
    assert all(cell["silent_steps"] == 3 * cell["stood"] for cell in first)
    assert not any("silent_images" in cell for cell in cells if cell["after"])
    assert "the surrogates' gradient was zero for" in said.err


def test_formats_and_showing_again(attacked: Any, advens: Any, tmp_path: Path) -> None:
    said = json.loads(attacked("pgd-ce", "--format", "json").done().out.rpartition("}")[0] + "}")
    again = json.loads(advens("robustness", tmp_path / "run", "--format", "json").done().out)
    assert said == again
    rows = {(row["model"], row["attack"]): row for row in again["rows"]}
    for (model, attack), samples in left(tmp_path / "run").items():
        row = rows[model, attack]
        assert row["robust_accuracy"] == pytest.approx(np.mean(list(samples.values())))
        assert row["low"] < row["robust_accuracy"] < row["high"]
    assert "robust accuracy" in advens("robustness", tmp_path / "run").done().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "digits:test"], ["--models"]),
        ([], ["--models"]),
        (["nowhere"], ["nowhere", "does not exist"]),
        (["--models", "digits:resnet", "--data", "digits:test", "--attack", "pgd-cd"], ["pgd-ce"]),
        (["--models", "digits:resnet", "--data", "digits:test", "--attack", "pma+squares"], ["square"]),
        (["--models", "digits:resnot", "--data", "digits:test"], ["digits:resnet"]),
        (["--models", "digits:resnet", "--data", "digits:test", "--attack", "pgd-ce", "--set", "stops=3"],
         ["stops", "steps"]),
        (["--models", "digits:resnet", "--data", "digits:test", "--eps", "8"], ["8/255"]),
    ],
)  # fmt: skip
def test_refused(
    advens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    advens("robustness", *arguments).refused(*words)
    assert not (tmp_path / "runs").exists()


def test_a_transfer_run_has_no_such_table(advens: Any, suite: Any, tmp_path: Path) -> None:
    advens("run", suite(), "--out", tmp_path / "run").done()
    advens("robustness", tmp_path / "run").refused("robustness")


def test_traces_of_every_stage(advens: Any, tmp_path: Path) -> None:
    path, out = tmp_path / "suite.toml", tmp_path / "run"
    path.write_text(tomli_w.dumps({
        "name": "traced", "goal": "robustness", "data": "digits:test", "limit": 12, "crossed": False,
        "sanity": False, "targets": ["toys:centroid?seed=1"],
        "surrogates": {"each": ["toys:centroid?seed=1"]},
        "threat": {"norm": "linf", "eps": 0.06},
        "attacks": [{"name": "pgd-ce+mifgsm", "pgd-ce.steps": 2}, {"name": "apgd-ce"}],
    }))  # fmt: skip
    advens("run", path, "--out", out, "--trace").done()
    store = RunStore.open(out)
    for cell in store.cells():
        about = read_cell(store.examples_path(cell))
        trace = pd.read_parquet(store.path("traces", f"{cell}.parquet"))
        assert trace["sample_id"].nunique() == about["stood"]
        if about["attack"] == "pgd-ce+mifgsm":
            assert 0 < about["stood"] < 12
            assert "closeness" in set(trace["what"])
            continue
        broken = trace[trace["what"] == "broken"]
        last = broken[broken["step"] == broken["step"].max()].set_index("sample_id")["value"]
        rows = store.read_samples().query("cell == @cell").set_index("sample_id")
        assert last.astype(bool).to_dict() == rows["success"][last.index].to_dict()
    advens("verify", out).done()
    page = (out / "report.html").read_text()
    assert "attacked images that are broken, %" in page
    assert "step size, in eps" in page
    assert "nothing to do" in advens("run", path, "--out", out, "--trace").done().out
