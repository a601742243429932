"""Measures of defenses, each a small table by hand: of images, of pairs of members, over trainings."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from advens.errors import InputError, RunError
from advens.results.boards.defenses import (
    _by_image,
    _mean_of_pairs,
    interval,
    missed,
    pooled,
    read_trial,
    transferred,
)
from advens.results.boards.rows import NoRows
from advens.results.statistics import over_trainings, wilson


def line(label: str, table: str, members: int, seed: int, **measures: float) -> dict:
    return {
        "table": table, "label": label, "members": members, "seed": seed, "kind": "mean", "n": 100,
        "n open": 40, "defense": f"{label}-{members}-{seed}", "transfer 0.2": 0.5, "open worst": 0.4,
        "train_forwards": 10.0, "train_backwards": 10.0,
        **measures,
    }  # fmt: skip


def images_of(each: pd.DataFrame) -> pd.DataFrame:
    """What the rates are means of: the first images are those that are left."""
    return pd.DataFrame([
        {"defense": row["defense"], "measure": measure, "sample_id": f"{i:03}",
         "left": float(i < round(100 * row[measure]))}
        for row in each.to_dict(orient="records") for measure in ("transfer 0.2", "open worst")
        for i in range(100)
    ])  # fmt: skip


def test_lines_are_pooled_in_their_order():
    """Not that of the alphabet; sizes of one defense are lines of their own; trainings come in any order."""
    names = [("zeta", "Z", 2), ("alpha", "Z", 2), ("mu", "A", 2), ("zeta", "Z", 1)]
    each = pd.DataFrame([
        line(*name, seed, clean=0.5 + 0.1 * k + 0.02 * seed)
        for seed in (1, 0) for k, name in enumerate(names)
    ])  # fmt: skip
    table = pooled(each, images_of(each))
    assert list(zip(table["label"], table["table"], table["members"], strict=True)) == names
    assert table["clean"].tolist() == pytest.approx([0.51, 0.61, 0.71, 0.81])
    assert table["trainings"].tolist() == [2, 2, 2, 2]
    assert list(table)[:6] == ["table", "label", "members", "kind", "trainings", "n"]


def test_every_table_has_letters_of_its_own():
    each = pd.DataFrame([
        line(label, table, 2, seed, **{"transfer 0.2": rate + 0.01 * seed, "open worst": rate + 0.01 * seed})
        for seed in range(6) for table, label, rate in
        (("Z", "zeta", 0.85), ("Z", "alpha", 0.2), ("A", "mu", 0.1), ("A", "nu", 0.9))
    ])  # fmt: skip
    table = pooled(each, images_of(each))
    assert table["open worst group"].tolist() == ["a", "b", "b", "a"]
    assert table["transfer 0.2 group"].tolist() == ["a", "b", "b", "a"]


def test_a_measure_that_some_trainings_lack():
    """Those that have it are pooled, over the images of its kind; the trainings of a line are all."""
    each = pd.DataFrame([
        line("one", "T", 2, seed, missed=value, mflops=12.0 + seed)
        for seed, value in enumerate((0.2, None, 0.4))
    ])  # fmt: skip
    (row,) = pooled(each, images_of(each)).to_dict(orient="records")
    assert row["trainings"] == 3
    assert row["missed"] == pytest.approx(0.3)
    assert (row["missed low"], row["missed high"]) == pytest.approx(over_trainings([0.2, 0.4], 40)[1:])
    assert (row["mflops"], row["mflops high"]) == pytest.approx((13, 13 + 4.302652729911275 / 3**0.5))


def test_transferred_is_the_worst_of_each_image():
    own = pd.DataFrame({"sample_id": ["a", "b", "a", "b"], "left": [1.0, 0.25, 0.5, 0.75]})
    (left,) = transferred(own, "8/255").items()
    assert left[0] == "transfer 8/255"
    assert left[1].to_dict() == {"a": 0.5, "b": 0.25}


def test_what_is_missed_is_the_mean_over_images_of_both():
    """Only what transfer took beyond the worst white-box attack; images of one measure alone do not count."""
    rows = [
        ("one", "transfer 0.2", "a", 0.2), ("one", "open worst", "a", 1.0),
        ("one", "transfer 0.2", "b", 0.9), ("one", "open worst", "b", 0.3),
        ("one", "transfer 0.2", "c", 0.0), ("one", "transfer 0.1", "a", 0.0),
        ("two", "transfer 0.2", "a", 0.5), ("two", "open worst", "a", 0.5),
        ("three", "open worst", "a", 1.0),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["defense", "measure", "sample_id", "left"])
    assert missed(frame, "transfer 0.2") == pytest.approx({"one": 0.4, "two": 0.0})


def test_images_of_a_model_by_measure():
    """A measure without any is left out; of no measure at all there is a table without rows."""
    left = {"transfer 1": pd.Series([1.0, 0.5], index=pd.Index(["a", "b"], name="sample_id")),
            "open x": pd.Series([], dtype=float)}  # fmt: skip
    found = _by_image("one", left)
    assert found.to_dict(orient="list") == {
        "sample_id": ["a", "b"], "left": [1.0, 0.5], "defense": ["one"] * 2, "measure": ["transfer 1"] * 2,
    }  # fmt: skip
    empty = _by_image("one", {"open x": left["open x"]})
    assert (list(empty), len(empty)) == (["sample_id", "left", "defense", "measure"], 0)


def test_intervals_by_measure():
    found = interval({"transfer 0.1": pd.Series([1.0, 0.0, 0.5, 0.5]), "none": pd.Series([], dtype=float)})
    assert list(found) == ["transfer 0.1 low", "transfer 0.1 high", "none low", "none high"]
    assert (found["transfer 0.1 low"], found["transfer 0.1 high"]) == pytest.approx(wilson(2, 4))


@pytest.mark.parametrize(
    ("said", "budgets", "attacks"),
    [
        ({"budgets": ["0.1", "8/255"], "open": ["a", "b"], "adaptive": ["c"]}, ("0.1", "8/255"),
         ("a", "b", "c")),
        ({"budgets": ["1"], "open": ["a", "b"], "adaptive": ["b", "a"], "more": 1}, ("1",), ("a", "b")),
        ({"budgets": ["1"], "open": [], "adaptive": []}, ("1",), ()),
        ({"budgets": ["1"], "open": ["a"]}, ("1",), ("a",)),
    ],
)  # fmt: skip
def test_a_trial(said, budgets, attacks, tmp_path):
    (tmp_path / "trial.json").write_text(json.dumps(said))
    trial = read_trial(tmp_path)
    assert (trial.budgets, trial.attacks) == (budgets, attacks)
    assert trial.folders == {eps: "transfer-" + eps.replace("/", "-") for eps in budgets}


@pytest.mark.parametrize(
    "said",
    [
        {"budgets": [], "open": [], "adaptive": []}, {"budgets": ["1"], "open": [1], "adaptive": []},
        {"budgets": ["1"], "open": ["a"], "adaptive": [None]}, {"budgets": ["1"], "adaptive": ["a"]}, [], 3,
        {"budgets": 1, "open": [], "adaptive": []},
    ],
)  # fmt: skip
def test_a_trial_that_says_nothing(said, tmp_path):
    (tmp_path / "trial.json").write_text(json.dumps(said))
    with pytest.raises(InputError) as error:
        read_trial(tmp_path)
    assert str(error.value) == f"{tmp_path / 'trial.json'} is damaged; run the same command again"
    with pytest.raises(NoRows) as missing:
        read_trial(tmp_path / "elsewhere")
    assert str(missing.value) == (
        f"{tmp_path / 'elsewhere'} holds no trial.json, so that no defenses were evaluated there"
    )


def test_the_mean_of_pairs_leaves_out_the_diagonal():
    assert _mean_of_pairs("rates", "[[9, 1, 2], [3, 9, 4], [5, 6, 9]]", 0.5) == pytest.approx(3.5)
    assert _mean_of_pairs("rates", "[[0, 1], [2, 0]]", 0.5) == 1.5
    assert _mean_of_pairs("rates", None, 0.5) == 0.5
    for text in ("[[1]]", "[1, 2]", "[[1, 2], [3, 4], [5, 6]]", '[["a", 1], [1, 2]]', "{"):
        with pytest.raises(RunError) as error:
            _mean_of_pairs("rates", text, 0.5)
        assert str(error.value) == "models.parquet: column 'rates' does not hold a square of numbers"
