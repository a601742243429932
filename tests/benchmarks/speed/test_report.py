"""Made-up runs are runs: their pages and sites can be measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from advens.benchmarks.speed.report import measure_page, measure_site, write_run
from advens.results.boards import read_board


def test_made_up_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in range(2):
        write_run(tmp_path / f"run{k}", attacks=3, targets=6, images=8, seeds=2, shard=4, first=3 * k)
    board = read_board(tmp_path / "run1", "leaderboard")
    assert sorted(board["attack"]) == ["attack3", "attack4", "attack5"]
    assert set(board["n"]) == {4}  # images of the first shard
    measure_page(tmp_path / "run0")
    measure_site(tmp_path)
    said = capsys.readouterr().out
    assert "without images" in said
    assert "pages of 2 runs" in said
