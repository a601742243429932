"""Several trainings together: intervals over trainings and images, and letters from five trainings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from advens.results.boards.defenses import pooled, pooled_notes
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
         "missed": np.nan}
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
    (about, _) = pooled_notes(pooled(kept, images))
    assert "Lines of fewer than 5 trainings have no letters" in about
    (about, _) = pooled_notes(pooled(each, images))
    assert "share a letter" in about
    assert "fewer than" not in about
    (about, _) = pooled_notes(pooled(each[each["seed"] < 3], images))
    assert "share a letter" not in about


def test_written_out(each, images):
    text = render_board("study", pooled(each, images), "markdown")
    first, second = text.split("**U**")
    assert first.startswith("**T**\n\n| defense | members | answers | clean |")
    header, _, one, two = first.split("\n")[2:6]
    assert header.split(" | ")[3:] == [
        "clean", "transfer 0.1", "transfer 0.2", "pgd", "worst", "diversity", "MFLOP |"
    ]
    low, high = over_trainings([0.90, 0.91, 0.92, 0.93, 0.94], 100)[1:]
    assert one.split(" | ")[:4] == ["| one", "2", "mean", f"92.0 ±{50 * (high - low):.1f}"]
    assert one.split(" | ")[5].endswith(" a")
    assert two.split(" | ")[5].endswith(" b")
    assert one.split(" | ")[-2:] == ["3.5", "12 |"]
    assert "| three |" in second
    assert "the mean over 5 trainings" in second
    assert "transferred images, of 100. The others attack the model itself, on 40" in second
    assert len(pooled_notes(pooled(each, images))) == 2
