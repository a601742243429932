"""Tables of compute and of epochs: every number is that of the boards."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from advens.benchmarks.studies.training import compute_tables, epochs_tables
from advens.errors import InputError

LINES = (
    ("at", 1, 10.0, None, 0.4), ("at, 66 epochs", 1, 30.0, None, 0.5),
    ("boosted", 3, 31.0, "at, 66 epochs", 0.6),
)  # fmt: skip


def boards(lines: tuple = LINES, trainings: int = 5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The boards of a suite: each line keeps a share of 200 images, a little more with every training."""
    each, images = [], []
    for label, members, passes, control, share in lines:
        for seed in range(trainings):
            name = f"{label} {members} {seed}"
            left = {"transfer 0.2": share + 0.2 + 0.005 * seed, "open worst": share + 0.005 * seed}
            each.append({
                "table": "one", "label": label, "members": members, "seed": seed, "kind": "mean", "n": 200,
                "n open": 200, "defense": name, "clean": 0.95, "train_forwards": passes,
                "train_backwards": passes, "control": control, **left,
            })  # fmt: skip
            images += [
                {"defense": name, "measure": measure, "sample_id": f"i{k:03}", "left": float(k < 200 * rate)}
                for measure, rate in left.items() for k in range(200)
            ]  # fmt: skip
    return pd.DataFrame(each), pd.DataFrame(images)


def cells(text: str, label: str) -> list[str]:
    row = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_lines_stand_by_compute_beside_their_controls() -> None:
    text = compute_tables(*boards())
    order = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert order == ["defense", "---", "at", "at, 66 epochs", "boosted"]
    found = cells(text, "boosted")
    assert found[1:3] == ["3", "62"]
    assert found[6].startswith("61.0 ±")
    low, high = map(float, re.findall(r"[+-]\d+\.\d", found[7])[1:])
    assert found[7].startswith("+10.0 [")
    assert 0 < low < 10 < high
    assert found[7].endswith("]\\*")
    assert found[8] == "at, 66 epochs"
    assert cells(text, "at, 66 epochs")[7] == "-"


def test_a_control_may_be_one_of_several_sizes() -> None:
    boosted = ("boosted", 3, 31.0, "at, 66 epochs of 1", 0.6)
    lines = (*LINES[:2], ("at, 66 epochs", 2, 60.0, None, 0.3), boosted)
    assert cells(compute_tables(*boards(lines)), "boosted")[7].startswith("+10.0 [")


def test_what_equals_its_control_has_no_star() -> None:
    same = tuple((*line[:4], 0.5) for line in LINES)
    assert cells(compute_tables(*boards(same)), "boosted")[7].startswith("+0.0 [")
    assert "*" not in cells(compute_tables(*boards(same)), "boosted")[7]


def test_too_few_trainings_have_no_star() -> None:
    assert not cells(compute_tables(*boards(trainings=3)), "boosted")[7].endswith("*")


def test_epochs_beside_each_other() -> None:
    lines = tuple(
        (f"{label}, {epochs} epochs", 1, float(epochs), None, share)
        for label, epochs, share in (("at", 72, 0.7), ("at", 36, 0.5), ("dverge", 36, 0.4))
    )
    text = epochs_tables(*boards(lines, trainings=1))
    header = cells(text, "defense")
    assert header[4:] == ["worst, 36 epochs", "worst, 72 epochs"]
    assert [cell.split(" ")[0] for cell in cells(text, "at")[4:]] == ["50.0", "70.0"]
    assert cells(text, "dverge")[5] == "-"
    half = float(cells(text, "at")[4].split("±")[1]) / 100
    assert half == pytest.approx(1.96 * np.sqrt(0.25 / 200), abs=0.002)


def test_labels_without_epochs_are_refused() -> None:
    with pytest.raises(InputError, match="N epochs"):
        epochs_tables(*boards())
