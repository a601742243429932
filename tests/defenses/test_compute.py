"""The compute of trainings: counted passes against formulas, for every kind of objective."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import advens
from advens.defenses import create_defense
from advens.defenses.training import train

N, B, STEPS = 16, 8, 2
QUICK = {"epochs": 1, "batch_size": B, "optimizer": "adam", "lr": 1e-3}


@pytest.fixture(scope="module")
def data() -> Any:
    return advens.load_data(f"digits:train?limit={N}&seed=0")


def history(name: str, data: Any, out: Path, **options: Any) -> pd.DataFrame:
    train(create_defense(name, **QUICK | options), "digits:mambaout", data, out)
    return pd.read_parquet(out / "history.parquet")


# of every image in an epoch: passes through one member each
PER_IMAGE = {
    "plain": ({"members": 2}, (2, 2)),
    "at": ({"members": 2, "steps": STEPS}, (2 * (STEPS + 1), 2 * (STEPS + 1))),
    # one pass more with, and one without, for the direction in which weights are moved
    "at with awp": ({"members": 1, "steps": STEPS, "awp": 0.01}, (STEPS + 2, STEPS + 2)),
    # the clean answer that the divergence is of; then steps, and two passes to learn from
    "trades": ({"members": 1, "steps": STEPS}, (1 + STEPS + 2, STEPS + 2)),
    "adp": ({"members": 3}, (3, 3)),
    "adp with PGD": ({"members": 2, "adversarial": 1, "adversarial_steps": STEPS},
                     (2 * (STEPS + 2), 2 * (STEPS + 2))),
    # gradients over images and, through these, over weights
    "gal": ({"members": 2}, (2 * 2, 2 * 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", PER_IMAGE)
def test_passes(case: str, data: Any, tmp_path: Path) -> None:
    options, (forwards, backwards) = PER_IMAGE[case]
    row = history(case.split()[0], data, tmp_path / "out", **options).iloc[0]
    assert (row["forwards"], row["backwards"]) == (N * forwards, N * backwards)
    assert row["seconds"] > 0


def test_dverge(data: Any, tmp_path: Path) -> None:
    """Every member distils one image and learns from those of the two others; one image shows the layers."""
    rows = history("dverge", data, tmp_path / "out", members=3, steps=STEPS, stacked="never")
    assert rows["forwards"].tolist() == [3 * N, N * 3 * (1 + STEPS + 2) + 1]
    assert rows["backwards"].tolist() == [3 * N, N * 3 * (STEPS + 2)]


def test_stacked_members_count_as_much(data: Any, tmp_path: Path) -> None:
    one, other = (
        history("dverge", data, tmp_path / how, members=2, steps=STEPS, stacked=how)
        for how in ("never", "always")
    )
    for what in ("forwards", "backwards"):
        assert one[what].tolist() == other[what].tolist()


def test_boosting_and_what_its_first_members_cost(data: Any, tmp_path: Path) -> None:
    """Member m learns on images that fool the first m + 1: these are passes, too."""
    rows = history("mrboost", data, tmp_path / "out", members=3, steps=STEPS)
    each = [N * ((m + 1) * STEPS + 1) for m in range(3)]
    assert rows["forwards"].tolist() == rows["backwards"].tolist() == each
    said = json.loads((tmp_path / "out" / "training.json").read_text())["compute"]
    assert [entry["forwards"] for entry in said] == [each[0], sum(each[:2]), sum(each)]


def test_members_that_are_independent_share_the_cost(data: Any, tmp_path: Path) -> None:
    history("at", data, tmp_path / "out", members=2, steps=STEPS)
    said = json.loads((tmp_path / "out" / "training.json").read_text())["compute"]
    assert [entry["backwards"] for entry in said] == [N * (STEPS + 1), 2 * N * (STEPS + 1)]


def test_early_stopping_is_counted(data: Any, tmp_path: Path) -> None:
    """A quarter of the images is left out and attacked for ten steps."""
    row = history("at", data, tmp_path / "out", members=1, steps=STEPS, validation=0.25,
                  validation_eps=0.1, average="ema").iloc[0]  # fmt: skip
    learned, held = 3 * N // 4, N // 4
    assert row["backwards"] == learned * (STEPS + 1) + held * 10
    assert row["forwards"] == learned * (STEPS + 1) + held * 11
