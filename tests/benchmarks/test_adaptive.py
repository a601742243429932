"""Adaptive attacks in runs: nothing is called without trust, and verifying calls nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advens.results.boards.board import read_board

MASKED = "toys:quantised?seed=4"
MODULE = """
from toys import Centroid

def smooth(model):
    return lambda x: Centroid.forward(model.net, x)
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any) -> str:
    module = f"bpda_{abs(hash(request.node.nodeid))}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return module


@pytest.fixture
def attacked(advens: Any, tmp_path: Path) -> Callable[..., Any]:
    def call(*more: object) -> Any:
        return advens(
            "robustness", "--models", MASKED, "--data", "digits:test?limit=24", "--eps", "0.3", "--out",
            tmp_path / "run", *more,
        )  # fmt: skip

    return call


def test_a_stand_in_breaks_what_the_model_hides(
    attacked: Any, advens: Any, tmp_path: Path, name: str
) -> None:
    attacked("--attack", "pgd-ce", "--steps", 10).failed("sanity")
    options = (f"stand_in={name}:smooth", "adaptive.attack.steps=10")
    adaptive = ("--attack", "adaptive", *(part for each in options for part in ("--set", each)))
    attacked("--steps", 10, *adaptive).refused(f"--trust {name}:smooth", f"would call {name}.smooth")
    attacked("--steps", 10, *adaptive, "--trust", f"{name}:smooth").done()
    board = read_board(tmp_path / "run", "robustness").set_index("attack")["robust_accuracy"]
    assert board["adaptive"] < 0.2 < board["pgd-ce"] - 0.3
    assert read_board(tmp_path / "run", "sanity")["passed"].all()
    advens("verify", tmp_path / "run").done()
    advens("verify", tmp_path / "run", "--recraft", 1).refused(f"--trust {name}:smooth")
    advens("verify", tmp_path / "run", "--recraft", 1, "--trust", f"{name}:smooth").done()
    (tmp_path / f"{name}.py").write_text(MODULE + "\n")
    said = advens("verify", tmp_path / "run", "--recraft", 1, "--trust", f"{name}:smooth")
    assert said.code in (1, 2)
    assert f"stand-in '{name}:smooth': its file is not the one that the attack was made with" in said.err


def test_an_unknown_stand_in_is_one_line(attacked: Any) -> None:
    attacked("--attack", "adaptive", "--set", "stand_in=nowhere:x", "--trust", "nowhere:x").refused(
        "stand-in 'nowhere:x': No module named 'nowhere'"
    )
