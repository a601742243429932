"""The example of the page on adaptive attacks: the stand-in breaks what gradient attacks leave standing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from advens.cli import invoke
from advens.results.boards.board import read_board

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "guide" / "examples"


def test_the_commands_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On fewer images, with fewer steps."""
    page = (FOLDER.parent / "adaptive.md").read_text(encoding="utf-8")
    for name in ("quantised:defended", "quantised:without_rounding"):
        assert f"--trust {name}" in page
    monkeypatch.syspath_prepend(str(FOLDER))
    command = [
        "robustness", "--models", "quantised:defended", "--trust", "quantised:defended", "--data",
        "digits:test?limit=12&seed=0", "--eps", "0.2", "--out", str(tmp_path / "run"), "--no-sanity",
    ]  # fmt: skip
    assert invoke([*command, "--attack", "pgd-ce,apgd-ce", "--steps", "20"]) == 0
    stand_in = ["--set", "stand_in=quantised:without_rounding", "--trust", "quantised:without_rounding"]
    assert invoke([*command, "--attack", "adaptive", "--steps", "20", *stand_in]) == 0
    left = read_board(tmp_path / "run", "robustness").set_index("attack")["robust_accuracy"]
    assert left["adaptive"] == 0
    assert min(left["pgd-ce"], left["apgd-ce"]) > 0.8


def test_the_board_of_the_page_says_the_same() -> None:
    board = (FOLDER / "quantised.txt").read_text(encoding="utf-8")
    left = {name: float(value) for name, value in re.findall(r"^defended +(\S+) +(\d+\.\d) \[", board, re.M)}
    assert left.pop("adaptive") == 0
    assert {"pgd-ce", "apgd-ce", "apgd-ce+apgd-t"} <= set(left)
    assert min(left.values()) > 80
    assert "11 of 11 checks passed" in board
