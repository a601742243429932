"""Randomized ensembles as targets: expectations are computed from every member, nothing is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from advens.attacks import create_attack
from advens.attacks.expectation import Expectation
from advens.datasets import load_data
from advens.defenses.ensembles import RandomizedEnsemble
from advens.models import load_model
from advens.results.boards.matrix import transfer_matrix
from advens.results.store import RunStore, read_table, write_table

MEMBERS = ("toys:centroid?seed=4", "toys:centroid?seed=9", "toys:centroid?seed=11")
WEIGHTS = (0.25, 0.75, 0.0)


@pytest.fixture
def target(tmp_path: Path) -> str:
    """An ensemble whose third member is never drawn."""
    members = [load_model(name) for name in MEMBERS]
    RandomizedEnsemble(members, list(WEIGHTS)).save(tmp_path / "ensemble")
    return f"defense:{tmp_path}/ensemble"


@pytest.fixture
def run(advens: Any, suite: Any, tmp_path: Path, target: str) -> Path:
    path = suite(targets=[target, *MEMBERS[:2]], seeds=[0, 1])
    advens("run", path, "--out", tmp_path / "run").done()
    return tmp_path / "run"


def test_a_row_for_every_member(run: Path, target: str, rows: Any) -> None:
    found = rows(run)
    drawn = found[found["target"] == target]
    assert sorted(set(drawn["member"])) == [0, 1]
    assert found[found["target"] != target]["member"].isna().all()
    key = ["attack", "surrogates", "seed", "sample_id"]
    for member, name in enumerate(MEMBERS[:2]):
        own = drawn[drawn["member"] == member].set_index(key).sort_index()
        alone = found[found["target"] == name].set_index(key).sort_index()
        assert (own["weight"] == WEIGHTS[member]).all()
        assert (alone["weight"] == 1).all()
        for column in ("clean_pred", "adv_pred", "success"):
            assert own[column].tolist() == alone[column].tolist()


def test_the_matrix_holds_expectations(run: Path, target: str, rows: Any) -> None:
    matrix = transfer_matrix(rows(run)).set_index(["attack", "surrogates", "target"]).sort_index()
    checked = 0
    for (attack, surrogates), _ in matrix.groupby(["attack", "surrogates"]):
        expected, *alone = (matrix.loc[(attack, surrogates, name)] for name in (target, *MEMBERS[:2]))
        for column in ("clean_accuracy", "robust_accuracy", "error_rate"):
            mean = sum(w * one[column] for w, one in zip(WEIGHTS, alone, strict=False))
            assert expected[column] == pytest.approx(mean, abs=1e-12)
        checked += 1
    assert checked > 0


def test_the_board_says_so(advens: Any, run: Path) -> None:
    said = " ".join(advens("matrix", run).done().out.split())
    assert "Randomized, expected over the members: " in said
    assert "no adaptive attack" in said


def test_the_audit_looks_at_every_member(advens: Any, run: Path, target: str) -> None:
    advens("verify", run).done()
    store = RunStore(run)
    path = next(
        path for path in (store.samples_path(*pair) for pair in sorted(store.evaluated()))
        if read_table(path, "samples").column("target")[0].as_py() == target
    )  # fmt: skip
    table = read_table(path, "samples")
    frame = table.to_pandas()
    frame.loc[0, "weight"] = 0.5
    changed = table.set_column(table.schema.get_field_index("weight"), "weight", [frame["weight"].tolist()])
    write_table(path, changed.cast(table.schema))
    said = advens("verify", run)
    assert said.code == 1
    assert "column 'weight'" in said.err


def test_robustness_boards_hold_expectations(advens: Any, tmp_path: Path, target: str) -> None:
    out = tmp_path / "open"
    data = "--data", "digits:test?limit=20", "--eps", "0.2"
    advens("robustness", "--model", target, *data, "--attack", "arc", "--out", out).done()
    samples = RunStore(out).read_samples()
    weighted = (samples["clean_correct"] & ~samples["success"]) * samples["weight"]
    from advens.results.boards.robustness import robustness

    table = robustness(samples, RunStore(out).read_cells())
    left = weighted.groupby(samples["sample_id"].astype(str)).sum()
    assert table["robust_accuracy"].iloc[0] == pytest.approx(float(left.mean()))
    clean = (samples["clean_correct"] * samples["weight"]).groupby(samples["sample_id"].astype(str)).sum()
    assert table["clean_accuracy"].iloc[0] == pytest.approx(float(clean.mean()))
    assert not any("overstated" in note for note in table.attrs["notes"])
    said = advens("robustness", "--model", target, *data, "--attack", "pma", "--out", tmp_path / "b").done()
    assert "'arc', made for that, was not run" in " ".join(said.out.split())


def test_crafting_reports_expectations(advens: Any, tmp_path: Path, target: str) -> None:
    said = advens(
        "craft", "fgsm", "--surrogates", "toys:centroid?seed=1", "--data", "digits:test?limit=8", "--eps",
        "0.3", "--targets", ",".join([target, *MEMBERS[:2]]), "--out", tmp_path / "out", "--no-png",
    ).done()  # fmt: skip
    rates = [float(line.split("%")[0]) / 100 for line in said.out.splitlines()[1:4]]
    assert rates[0] == pytest.approx(0.25 * rates[1] + 0.75 * rates[2], abs=2e-3)


def test_attacks_see_the_expectation(target: str) -> None:
    """The images do not depend on draws: not on calls before, not on micro-batches."""
    model, data = load_model(target), load_data("digits:test?limit=6")
    batch = next(data.batches([slice(0, 6)]))
    x, attack = batch.pixels.float() / 255, create_attack("mifgsm", eps=0.1, steps=3)
    first = attack.run([model], x, batch.labels).x_adv
    model(x)
    assert model.calls == 1, "the attack drew nothing"
    assert torch.equal(attack.run([model], x, batch.labels, micro_batch=2).x_adv, first)
    again = attack(Expectation(model), x, batch.labels)
    assert torch.equal(again, first)
