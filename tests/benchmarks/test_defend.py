"""``advens defend``: one command, runs that can be verified, a table that follows from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from advens.benchmarks import defense_goal, tasks
from advens.defenses.ensembles import Ensemble, RandomizedEnsemble
from advens.models import load_model
from advens.results.store import RunStore

NAMES = ("toys:centroid?seed=4", "toys:centroid?seed=9")
BASE = (
    "--surrogates", "toys:centroid?seed=1,toys:centroid?seed=2", "--attacks", "fgsm,mifgsm", "--data",
    "digits:test?limit=20", "--eps", "0.2,0.05",
)  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, and members that cost something."""
    own = {"pgd": {"name": "pgd-ce", "steps": 3}, "arc": {"name": "arc"}}
    monkeypatch.setattr(defense_goal, "WHITE_BOX", own)
    monkeypatch.setattr(tasks, "between_members", lambda *_: {"diversity": 1.5, "shared": 0.25})


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    members = [load_model(name) for name in NAMES]
    Ensemble(members).save(tmp_path / "mean")
    RandomizedEnsemble(members, [0.25, 0.75]).save(tmp_path / "drawn")
    return str(tmp_path / "mean"), str(tmp_path / "drawn")


def test_the_whole_trial(advens: Any, tmp_path: Path, pair: tuple[str, str]) -> None:
    out = tmp_path / "out"
    said = advens("defend", *pair, NAMES[0], *BASE, "--out", out).done()
    table = pd.read_parquet(out / "defenses.parquet").set_index("defense")
    assert list(table["kind"]) == ["mean", "randomized", "single"]
    assert [name for name in table if name.endswith(("0.05", "0.2"))] == [
        "transfer 0.05", "transfer 0.2", "right transfer 0.2"
    ]  # fmt: skip
    right = table["transfer 0.2"] / table["clean"]
    assert table["right transfer 0.2"].tolist() == pytest.approx(right.tolist())
    drawn, single = table.loc[f"defense:{pair[1]}"], table.loc[NAMES[0]]
    assert drawn["open worst"] <= min(drawn["open pgd"], drawn["open arc"])
    assert single["open worst"] <= single["open arc"] < 1, "every model meets the same attacks"
    assert drawn["mflops"] <= table.loc[f"defense:{pair[0]}", "mflops"]
    assert (table["transfer 0.2"] <= table["transfer 0.05"]).all()
    for words in ("randomized of 2", "transfer 0.05", "arc", "diversity", "MFLOP"):
        assert words in said.out
    for folder in ("transfer-0.05", "transfer-0.2", "white-box"):
        advens("verify", out / folder).done()
    advens("verify", out).done()


def test_transfer_is_the_worst_of_each_image(advens: Any, tmp_path: Path, pair: tuple[str, str]) -> None:
    out = tmp_path / "out"
    advens("defend", pair[1], *BASE, "--out", out).done()
    samples = RunStore(out / "transfer-0.2").read_samples()
    samples["left"] = (samples["clean_correct"] & ~samples["success"]) * samples["weight"]
    per_attack = samples.groupby(["attack", "sample_id"], observed=True)["left"].sum()
    wanted = per_attack.groupby("sample_id", observed=True).min().mean()
    table = pd.read_parquet(out / "defenses.parquet")
    assert table.loc[0, "transfer 0.2"] == pytest.approx(float(wanted))


def test_again_does_nothing_and_a_new_defense_joins(
    advens: Any, tmp_path: Path, pair: tuple[str, str]
) -> None:
    out = tmp_path / "out"
    first = advens("defend", *pair, *BASE, "--out", out, "--format", "json").done()
    stored = {path: path.stat().st_mtime_ns for path in out.rglob("examples/*.parquet")}
    again = advens("defend", *pair, *BASE, "--out", out, "--format", "json").done()
    assert json.loads(again.out) == json.loads(first.out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("examples/*.parquet")} == stored


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("toys:centroid?seed=1",), "models that are not attacked themselves"),
        (("nothing",), "model 'nothing' has no source"),
        ((NAMES[0], "--eps", "x"), "eps = 'x' is not a number"),
        ((NAMES[0], "--attacks", "fgms"), "unknown attack 'fgms'"),
        ((NAMES[0], "--white-box", "pgdd"), "unknown attack 'pgdd'"),
        ((NAMES[0], "--limit", "0"), "--limit"),
    ],
)
def test_mistakes(advens: Any, tmp_path: Path, more: tuple[str, ...], words: str) -> None:
    said = advens("defend", *BASE, *more, "--out", tmp_path / "out").refused()
    assert words in said
    assert not (tmp_path / "out").exists()


def test_attackers_are_named_where_none_can_be_taken(advens: Any, tmp_path: Path) -> None:
    said = advens(
        "defend", NAMES[0], "--data", "synthetic:shapes?n=4&seed=0", "--out", tmp_path / "out"
    ).refused()
    assert "--surrogates A,B" in said


def test_another_randomized_defense_joins(advens: Any, tmp_path: Path, pair: tuple[str, str]) -> None:
    """Adaptive attacks get more models; what was crafted stays, and the tables hold all defenses."""
    out, more = tmp_path / "out", tmp_path / "more"
    RandomizedEnsemble([load_model(name) for name in NAMES], [0.5, 0.5]).save(more)
    advens("defend", pair[1], *BASE, "--out", out).done()
    stored = {path: path.stat().st_mtime_ns for path in out.rglob("examples/*.parquet")}
    advens("defend", str(more), *BASE, "--out", out).done()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("examples/*.parquet")}
    assert stored.items() < kept.items()
    table = pd.read_parquet(out / "defenses.parquet")
    assert set(table["defense"]) == {f"defense:{pair[1]}", f"defense:{more}"}
    assert table["open arc"].notna().all()
    advens("verify", out).done()


def test_old_names_of_options_work(advens: Any, tmp_path: Path) -> None:
    said = advens(
        "defend", NAMES[0], *BASE, "--data", "digits:test", "--limit", 10, "--open", "pgd",
        "--open-limit", 6, "--out", tmp_path / "out",
    ).done()  # fmt: skip
    assert "'--open' is called '--white-box' now" in said.err
    assert "'--open-limit' is called '--white-box-limit' now" in said.err
    assert pd.read_parquet(tmp_path / "out" / "defenses.parquet").loc[0, "n open"] == 6
