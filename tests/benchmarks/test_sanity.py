"""The sanity report of runs: failed checks end with exit code 1, after everything is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import advens as package
from advens.benchmarks import defense_goal, tasks
from advens.benchmarks.suites import load, settings_digest, suite_identity
from advens.results.boards.board import read_board
from advens.results.boards.sanity import failed_lines, write_sanity
from advens.trust import trusting

SOUND, MASKED = "toys:centroid?seed=1", "toys:quantised?seed=4"
DATA = ("--data", "digits:test?limit=24", "--eps", "0.3")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defense_goal, "WHITE_BOX", {"pgd": {"name": "pgd-ce", "steps": 3}})
    monkeypatch.setattr(tasks, "between_members", lambda *_: {"diversity": 1.5, "shared": 0.25})


def attacked(advens: Any, out: Path, models: str, *more: object) -> Any:
    attack = ("--attack", "pgd-ce", "--steps", 4)
    return advens("robustness", "--models", models, *DATA, *attack, "--out", out, *more)


def test_a_sound_model_and_a_masked_one(advens: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = attacked(advens, out, f"{SOUND},{MASKED}")
    said.failed("checks of the sanity report failed")
    assert "sanity: toys:centroid?seed=1: 11 of 11 checks passed" in said.out
    line = next(line for line in said.err.splitlines() if "gradient-free beside" in line)
    assert line.startswith(f"{MASKED}: check 'gradient-free beside gradient-based' failed: Square left ")
    board, curves = read_board(out, "sanity"), read_board(out, "curves")
    assert set(board["model"]) == set(curves["model"]) == {SOUND, MASKED}
    assert board[board["model"] == SOUND]["passed"].all()
    assert not board[board["model"] == MASKED]["passed"].all()
    assert set(curves["curve"]) == {"eps", "steps", "restarts"}
    assert package.open_run(out).sanity.equals(board)
    assert (out / "robustness.parquet").is_file()
    checked = advens("verify", out).done()
    assert "the sanity report was not measured again" in checked.out
    advens("verify", out, "--recraft", 1).done()


def test_defend_on_a_masked_model(advens: Any, tmp_path: Path) -> None:
    """The defense is stored with all tables, and then the command fails aloud."""
    out = tmp_path / "out"
    said = advens(
        "defend", MASKED, *DATA, "--surrogates", "toys:centroid?seed=2", "--attacks", "fgsm", "--out", out
    )
    assert said.code == 1
    assert "checks of the sanity report failed" in said.err.splitlines()[-1]
    assert f"{MASKED}: check 'black-box below white-box' failed: " in said.err
    assert "transfer" in said.err
    assert f"sanity: {MASKED}: " in said.out
    assert (out / "defenses.parquet").is_file()
    assert len(read_board(out / "white-box", "sanity")) == 11
    advens("verify", out).done()


def test_a_defense_without_a_report(advens: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = advens(
        "defend", MASKED, *DATA, "--surrogates", "toys:centroid?seed=2", "--attacks", "fgsm", "--out", out,
        "--no-sanity",
    ).done()  # fmt: skip
    assert "sanity: switched off" in said.out
    advens("verify", out).done()


def test_nothing_is_checked_twice(advens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    attacked(advens, out, SOUND).done()
    first = read_board(out, "sanity")
    monkeypatch.setattr("advens.benchmarks.sanity.sanity_report", lambda *_, **__: 1 / 0)
    attacked(advens, out, SOUND).done()
    pd.testing.assert_frame_equal(read_board(out, "sanity"), first)
    (kept,) = (out / "sanity").iterdir()
    kept.write_text("{")
    said = attacked(advens, out, SOUND)
    said.failed("sanity")
    assert f"{SOUND}: check 'report' failed: ZeroDivisionError" in said.err


def test_another_model_joins(advens: Any, tmp_path: Path) -> None:
    attacked(advens, tmp_path / "run", SOUND).done()
    attacked(advens, tmp_path / "run", "toys:centroid?seed=2").done()
    assert set(read_board(tmp_path / "run", "sanity")["model"]) == {SOUND, "toys:centroid?seed=2"}


def test_switched_off(advens: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = attacked(advens, out, MASKED, "--no-sanity").done()
    assert "sanity: switched off" in said.out
    assert "sanity: switched off" in advens("robustness", out).done().out
    assert read_board(out, "sanity").empty
    advens("verify", out).done()
    attacked(advens, out, MASKED).failed("sanity")
    shown = json.loads(advens("robustness", out, "--format", "json").done().out)
    assert {row["model"] for row in shown["rows"]} == {MASKED}


def forged(out: Path, change: Any) -> None:
    board, curves = read_board(out, "sanity"), read_board(out, "curves")
    rows = [change(row) for row in board.to_dict("records")]
    write_sanity(out, [row for row in rows if row], curves.to_dict("records"), off=False)


def test_falsehoods_are_found(advens: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    attacked(advens, out, MASKED).failed("sanity")
    honest = (out / "sanity.parquet").read_bytes()
    forged(out, lambda row: row | {"passed": True, "value": 0.0})
    advens("verify", out, "--recraft", 1).failed("mismatches")
    forged(out, lambda row: row | {"model": SOUND})
    assert "not of the models that were attacked" in advens("verify", out).err
    write_sanity(out, [], [], off=True)
    assert "switched off" in advens("verify", out).err
    (out / "sanity.parquet").unlink()
    assert "MISMATCH  sanity.parquet is missing" in advens("verify", out).err
    (out / "sanity.parquet").write_bytes(honest)
    assert failed_lines(read_board(out, "sanity"))


def test_runs_from_before_there_were_reports(advens: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    attacked(advens, out, SOUND).done()
    for name in ("sanity.parquet", "curves.parquet"):
        (out / name).unlink()
    text = (out / "suite.toml").read_text()
    (out / "suite.toml").write_text(text.replace("sanity = true\n", ""))
    assert "before there were sanity reports" in advens("verify", out).done().out


def test_it_is_no_part_of_what_a_suite_is() -> None:
    plain, off = load("digits-whitebox"), load("digits-whitebox", {"sanity": False})
    assert settings_digest(plain) == settings_digest(off)
    assert suite_identity(plain) == suite_identity(off)


def test_python_warns(tmp_path: Path) -> None:
    suite = {
        "name": "mine", "goal": "robustness", "data": "digits:test?limit=24", "targets": [MASKED],
        "threat": {"eps": 0.3, "steps": 3}, "surrogates": {"masked": [MASKED]},
        "attacks": [{"name": "pgd-ce"}],
    }  # fmt: skip
    with trusting("toys:*"), pytest.warns(package.errors.InputWarning, match="check 'gradients' failed"):
        package.run(suite, tmp_path / "run")
