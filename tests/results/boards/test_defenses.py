"""Several trainings together: intervals over trainings and images, and letters from five trainings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from advens.results.boards.defenses import of_like_compute, pooled, pooled_notes
from advens.results.display.render import render_board
from advens.results.statistics import over_trainings


@pytest.fixture
def each():
    """Two tables: two defenses in the first, one in the second; five trainings of each."""
    lines = [("T", "one", 0.9), ("T", "two", 0.5), ("U", "three", 0.7)]
    return pd.DataFrame([
        {"table": table, "label": label, "members": 2, "seed": seed, "kind": "mean", "n": 100,
         "n open": 40, "defense": f"{label}{seed}", "clean": clean + 0.01 * seed,
         "clean low": 0.0, "clean high": 1.0, "transfer 0.1": 0.5, "transfer 0.2": clean - 0.1,
         "open pgd": clean - 0.2, "open worst": clean - 0.3, "diversity": 1.5 + seed, "mflops": 12.0,
         "train_forwards": 20.0, "train_backwards": 20.0, "train_seconds": 3.0,
         "right open worst": (clean - 0.3) / (clean + 0.01 * seed), "missed": np.nan}
        for seed in range(5) for table, label, clean in lines
    ])


@pytest.fixture
def images(each):
    """What the rates are means of: the first images are those that are left."""
    return pd.DataFrame([
        {"defense": row["defense"], "measure": measure, "sample_id": f"{i:03}",
         "left": float(i < round(100 * row[measure]))}
        for row in each.to_dict(orient="records")
        for measure in ("transfer 0.1", "transfer 0.2", "open worst")
        for i in range(100)
    ])  # fmt: skip


def test_pooled(each, images):
    table = pooled(each, images)
    assert table["label"].tolist() == ["one", "two", "three"]
    first = table.iloc[0]
    assert (first["trainings"], first["n"], first["n open"], first["kind"]) == (5, 100, 40, "mean")
    assert first["clean"] == pytest.approx(0.92)
    clean = [0.90, 0.91, 0.92, 0.93, 0.94]
    assert (first["clean low"], first["clean high"]) == pytest.approx(over_trainings(clean, 100)[1:])
    assert first["open pgd"] == pytest.approx(0.7)
    assert first["open pgd low"] == pytest.approx(over_trainings([0.7] * 5, 40).low), "over n open images"
    assert first["transfer 0.2 low"] == pytest.approx(over_trainings([0.8] * 5, 100).low)
    student = ttest_1samp([1.5, 2.5, 3.5, 4.5, 5.5], 0).confidence_interval(0.95)
    assert (first["diversity low"], first["diversity high"]) == pytest.approx(tuple(student)), "no share"
    assert first["mflops low"] == first["mflops high"] == 12, "trainings do not change it"
    assert np.isnan(first[["missed", "missed low", "missed high"]].astype(float)).all()
    assert not {"clean low low", "seed", "defense"} & set(table)


def test_letters_are_of_a_table_and_of_the_largest_budget(each, images):
    table = pooled(each, images).set_index("label")
    assert table["transfer 0.2 group"].to_dict() == {"one": "a", "two": "b", "three": ""}
    assert table["open worst group"].to_dict() == {"one": "a", "two": "b", "three": ""}
    assert "transfer 0.1 group" not in table


def test_fewer_than_five_trainings_have_intervals_and_no_letters(each, images):
    kept = each[(each["label"] != "two") | (each["seed"] < 4)]
    table = pooled(kept, images).set_index("label")
    assert table["transfer 0.2 group"].tolist() == ["", "", ""], "one is left, and nobody to compare it with"
    assert (table["transfer 0.2 low"] < table["transfer 0.2"]).all()
    (about, *_) = pooled_notes(pooled(kept, images))
    assert "Lines of fewer than 5 trainings have no letters" in about
    (about, *_) = pooled_notes(pooled(each, images))
    assert "share a letter" in about
    assert "fewer than" not in about
    (about, *_) = pooled_notes(pooled(each[each["seed"] < 3], images))
    assert "share a letter" not in about


def test_written_out(each, images):
    text = render_board("study", pooled(each, images), "markdown")
    first, second = text.split("**U**")
    assert first.startswith("**T**\n\n| defense | members | answers | clean |")
    header, _, one, two = first.split("\n")[2:6]
    assert header.split(" | ")[3:] == [
        "clean", "transfer 0.1", "transfer 0.2", "pgd", "worst", "diversity", "MFLOP", "passes", "seconds",
        "worst of right |",
    ]
    low, high = over_trainings([0.90, 0.91, 0.92, 0.93, 0.94], 100)[1:]
    assert one.split(" | ")[:4] == ["| one", "2", "mean", f"92.0 ±{50 * (high - low):.1f}"]
    assert one.split(" | ")[5].endswith(" a")
    assert two.split(" | ")[5].endswith(" b")
    assert one.split(" | ")[-5:-1] == ["3.5", "12", "20/20", "3"]
    assert "| three |" in second
    assert "the mean over 5 trainings" in second
    assert "transferred images, of 100. The others attack the model itself, on 40" in second
    (note,) = pooled_notes(pooled(each, images))[2:]
    assert "differs by more than 5 points in one table ('T': 52.0 to 92.0)" in note
    close = each.assign(clean=0.9 + 0.01 * each["seed"])
    assert len(pooled_notes(pooled(close, images))) == 2


def test_only_lines_of_like_compute_are_compared(each, images):
    """Within a factor of 1.25 of passes; the number says which are."""
    more = each[each["label"] == "one"].assign(label="longer", defense=lambda f: f["defense"] + "x")
    both = pd.concat([each, more], ignore_index=True)
    extra = images[images["defense"].str.startswith("one")]
    left = pd.concat([images, extra.assign(defense=extra["defense"] + "x")], ignore_index=True)
    both.loc[both["label"] == "longer", ["train_forwards", "train_backwards"]] = 25.1
    table = pooled(both, left).set_index("label")
    assert table["open worst group"].to_dict() == {"one": "a", "two": "b", "three": "", "longer": ""}
    both.loc[both["label"] == "longer", ["train_forwards", "train_backwards"]] = 25.0
    table = pooled(both, left).set_index("label")
    assert table["open worst group"].to_dict() == {"one": "a", "two": "b", "three": "", "longer": "a"}

    # two and longer are twice as long: each group has letters of its own
    both.loc[both["label"].isin(["two", "longer"]), ["train_forwards", "train_backwards"]] = 40.0
    table = pooled(both, left).set_index("label")
    assert table["open worst group"].to_dict() == {"one": "", "two": "b", "three": "", "longer": "a"}
    again = both[both["label"] == "two"].assign(label="third", defense=lambda f: f["defense"] + "y")
    again[["train_forwards", "train_backwards"]] = 20.0
    extra = images[images["defense"].str.startswith("two")]
    left = pd.concat([left, extra.assign(defense=extra["defense"] + "y")], ignore_index=True)
    table = pooled(pd.concat([both, again]), left).set_index("label")
    assert table["open worst group"].to_dict() == {
        "one": "a1", "third": "b1", "longer": "a2", "two": "b2", "three": ""
    }  # fmt: skip
    assert "not compared" in pooled_notes(table.reset_index())[0]


def test_lines_of_unknown_compute_are_compared_with_none(each, images):
    nothing = each.drop(columns=["train_forwards", "train_backwards"])
    for frame in (each.assign(train_forwards=np.nan), nothing):
        assert set(pooled(frame, images)["open worst group"]) == {""}


def test_groups_join_the_nearest_first():
    """A line and its control are not parted by where a group begins."""
    spent = {"a": 50, "b": 62, "control of b": 63, "c": 75}
    assert of_like_compute(spent) == [{"a"}, {"b", "control of b", "c"}]
    assert of_like_compute({"a": 1.0}) == [{"a"}]
    assert of_like_compute({}) == []
