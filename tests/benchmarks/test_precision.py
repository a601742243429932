"""Runs in reduced precision: rows say so, and how they agree with float32 is told and kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from advens.benchmarks.precision import Agreement
from advens.results.store import RunStore, read_cell

DIGITS = {
    "data": "digits:test?limit=20", "targets": ["digits:convmixer", "digits:dverge3"], "shard": 20,
    "surrogates__pair": ["digits:resnet"], "attacks": [{"name": "mifgsm"}],
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("bf16") / "out"


def test_bf16_for_targets_and_surrogates(advens, suite, tmp_path, out, rows):
    path, plain = suite(**DIGITS), tmp_path / "plain"
    advens("run", path, "--out", plain, "--no-report").done()
    before = {file.name for file in plain.rglob("*")}
    given = ["--precision", "bf16", "--craft-precision", "bf16", "--no-report"]
    said = advens("run", path, "--out", out, *given).done()
    assert "agreement.json" not in before
    assert len([line for line in said.out.splitlines() if "outcomes as in float32" in line]) == 3

    ours = rows(out)
    assert set(ours["target"]) == {f"computed:bf16?of={name}" for name in DIGITS["targets"]}
    (cell,) = RunStore(out).cells()
    about = read_cell(RunStore(out).examples_path(cell))
    assert about["surrogate_specs"] == ["computed:bf16?of=digits:resnet"]
    assert cell not in RunStore(plain).cells()

    kept = [Agreement(**each) for each in json.loads((out / "agreement.json").read_text())]
    by_what = {each.what: each for each in kept}
    crafting = by_what["crafting"]
    assert crafting.of == "mifgsm on pair"
    assert crafting.success == pytest.approx(_rate(ours))
    assert crafting.within
    for each in kept:
        assert each.equal > 0.9
        assert each.low <= each.exact <= each.high


def _rate(rows):
    return float(rows["success"].sum() / rows["clean_correct"].sum())


def test_agreement_is_told_again_and_not_measured_again(advens, suite, out, monkeypatch):
    monkeypatch.setattr("advens.benchmarks.precision.Compare.do", None)
    given = ["--precision", "bf16", "--craft-precision", "bf16", "--no-report"]
    said = advens("run", suite(**DIGITS), "--out", out, *given).done()
    assert "nothing to do" in said.out
    assert said.out.count("outcomes as in float32") == 3


def test_verify_and_precisions_are_not_mixed(advens, suite, out):
    advens("verify", out).done()
    advens("run", suite(**DIGITS), "--out", out).refused("surrogates.pair")


def test_evaluation_agrees_with_a_run_in_float32(advens, suite, tmp_path, rows):
    """Both precisions of a target in one run: the comparison is what their rows say."""
    both = [*DIGITS["targets"], *(f"computed:bf16?of={name}" for name in DIGITS["targets"])]
    path, out = suite(**DIGITS | {"targets": both}), tmp_path / "out"
    advens("run", path, "--out", out, "--no-report").done()
    found = rows(out)
    kept = json.loads((out / "agreement.json").read_text())
    assert [each["what"] for each in kept] == ["evaluation"] * 2
    for each in kept:
        ours = found[found["target"] == each["of"]].sort_values("sample_id")
        exact = found[found["target"] == each["of"].partition("of=")[2]].sort_values("sample_id")
        same = {
            name: np.mean(ours[name].to_numpy() == exact[name].to_numpy())
            for name in ("clean_pred", "adv_pred", "success")
        }
        assert each["equal"] == pytest.approx((same["clean_pred"] + same["adv_pred"]) / 2)
        assert each["outcomes"] == pytest.approx(same["success"])
        assert each["success"] == pytest.approx(_rate(ours))
        assert each["exact"] == pytest.approx(_rate(exact))


def test_a_difference_is_told():
    apart = Agreement("evaluation", "x", "c", 40, 0.5, 0.5, 0.9, 0.2, 0.1, 0.4)
    assert not apart.within
    assert apart.line().endswith("in float32 20.0% [10.0%–40.0%]: NOT WITHIN")


def test_where_it_cannot_be(advens, suite, tmp_path):
    built = suite(surrogates__pair={"build": "lgv", "model": "digits:resnet", "epochs": 1})
    said = advens("run", built, "--out", tmp_path / "out", "--craft-precision", "bf16")
    said.refused("surrogates 'pair' are built")
    said = advens("run", "digits-whitebox", "--out", tmp_path / "out", "--precision", "bf16")
    said.refused("goal = 'transfer'")
