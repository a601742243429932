"""The Pareto front within a budget, against every pair of rows; its letters; `advens attacks --front`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from advens.cli import invoke
from advens.results.boards import kept
from advens.results.boards.front import front, lettered
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.outcomes import contributions


@pytest.fixture
def board():
    """Thirty rows on two sets of surrogates, with ties in passes and in success."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({
        "suite": "s", "attack": [f"a{k}" for k in range(30)], "surrogates": ["one", "four"] * 15,
        "forwards_per_sample": rng.integers(1, 6, 30) * 10.0,
        "backwards_per_sample": rng.integers(1, 6, 30) * 10.0,
        "mean_asr": rng.integers(1, 9, 30) / 10, "models_group": "abc", "group": "a",
    })  # fmt: skip


@pytest.mark.parametrize("budget", [None, 10, 30])
def test_nothing_on_the_front_is_dominated(board, budget):
    found = front(board, budget)
    most = budget or np.inf
    able = [row for row in board.to_dict("records") if row["backwards_per_sample"] <= most]

    def cost(row):
        return row["forwards_per_sample"] + 2 * row["backwards_per_sample"]

    wanted = {
        row["attack"] for row in able
        if not any(
            other["surrogates"] == row["surrogates"] and other["mean_asr"] >= row["mean_asr"]
            and cost(other) <= cost(row) and (other["mean_asr"], cost(other)) != (row["mean_asr"], cost(row))
            for other in able
        )
    }
    assert set(found["attack"]) == wanted
    assert (found["models_group"] == "").all()
    for _, rows in found.groupby("surrogates"):
        assert rows["backwards_per_sample"].is_monotonic_increasing
    if budget is not None:
        assert found["backwards_per_sample"].max() <= budget


def spent(frame, passes):
    return pd.DataFrame([
        {"suite": "s", "attack": name, "surrogates": frame["surrogates"].iloc[0], "samples": 200,
         "family": "fusion", "norm": "linf", "eps": "0.1",
         "forwards_per_sample": f, "backwards_per_sample": f, "seconds_per_image": 0.1}
        for name, f in passes.items()
    ])  # fmt: skip


def test_letters_are_those_of_the_front_alone(drawn):
    """A third row that is not on the front takes no letter from the two that are."""
    strength = {("cheap", "s"): 0.3, ("wasteful", "s"): 0.31, ("dear", "s"): 0.8}
    frame = drawn(strength, {"A": 1.0, "B": 0.9}, n=200)
    board = leaderboard(frame, spent(frame, {"cheap": 10, "wasteful": 50, "dear": 40}))
    found = lettered(front(board), contributions(frame))
    assert list(found["attack"]) == ["cheap", "dear"]
    assert list(found["group"]) == ["b", "a"]
    assert list(found) == list(board)


def test_command(run, drawn, capsys):
    store = run(drawn({("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.7}, {"a": 1, "b": 1}, n=20))
    where = str(store.directory)
    assert invoke(["attacks", "--front", "--run", where]) == 0
    out = capsys.readouterr().out
    assert "cwa" in out
    assert invoke(["attacks", "*gd", "--front", "--run", where, "--budget", "1"]) == 2
    assert "no attack '*gd' takes at most 1 backward passes an image here" in capsys.readouterr().err


def test_without_a_run_it_is_the_reference(run, drawn, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "CATALOGUE", tmp_path / "kept.parquet")
    frame = drawn({("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.7}, {"a": 1, "b": 1}, n=20)
    board = leaderboard(frame, spent(frame, {"pgd": 10, "cwa": 20}))
    kept.write(kept.CATALOGUE, kept.as_table(contributions(frame), board))
    assert invoke(["attacks", "--front", "--budget", "10"]) == 0
    out = capsys.readouterr().out
    assert "pgd" in out
    assert "cwa" not in out
    assert "the reference runs of digits-catalogue" in out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [(["--budget", "4"], "--budget and --run go with --front"),
     (["--front", "--parts"], "ask for one"), (["--front", "--run", "nowhere"], "nowhere"),
     (["--front", "--budget", "0"], "budget")],
)  # fmt: skip
def test_wrong_input(arguments, why, capsys):
    assert invoke(["attacks", *arguments]) == 2
    captured = capsys.readouterr()
    assert why in captured.err
    assert len(captured.err.strip().splitlines()) == 1
