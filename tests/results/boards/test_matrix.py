"""The matrix by hand, for every denominator and both goals."""

from __future__ import annotations

import pytest

from advens.errors import InputError, RunError
from advens.results.boards.board import to_table
from advens.results.boards.matrix import COLUMNS, held_out_means, transfer_matrix
from advens.results.statistics import wilson

# four images of class 1; clean and adversarial predictions on two targets
CLEAN = {"A": [1, 1, 1, 2], "B": [1, 1, 2, 2]}
ADV = {"A": [2, 1, 2, 2], "B": [2, 1, 3, 1]}


@pytest.fixture
def untargeted(rows):
    return rows([
        {"target": t, "sample_id": str(i), "clean_pred": CLEAN[t][i], "adv_pred": ADV[t][i]}
        for t in "AB" for i in range(4)
    ])


@pytest.fixture
def targeted(rows):
    return rows([
        {"target": t, "sample_id": str(i), "clean_pred": CLEAN[t][i], "adv_pred": ADV[t][i],
         "target_label": 2}
        for t in "AB" for i in range(4)
    ])


@pytest.mark.parametrize(("denominator", "a", "b"), [
    ("target", (2 / 3, 3), (1 / 2, 2)),  # right on this target: A 0, 1, 2; B 0, 1
    ("all", (3 / 4, 4), (2 / 4, 4)),     # wrong after: A 0, 2, 3; B 0, 2
    ("common", (1 / 2, 2), (1 / 2, 2)),  # right on both: 0, 1
])
def test_untargeted(untargeted, denominator, a, b):
    found = transfer_matrix(untargeted, denominator).set_index("target")
    for target, (asr, n) in {"A": a, "B": b}.items():
        row = found.loc[target]
        assert row["asr"] == pytest.approx(asr)
        assert row["n"] == n
        assert (row["asr_low"], row["asr_high"]) == pytest.approx(wilson(asr * n, n))
    assert found["error_rate"].tolist() == [0.75, 0.5]
    assert found["clean_accuracy"].tolist() == [0.75, 0.5]
    assert found["robust_accuracy"].tolist() == [0.25, 0.25]  # image 3 of B was wrong before


@pytest.mark.parametrize(("denominator", "a", "b"), [
    ("target", (3 / 4, 4), (1 / 4, 4)),  # predicts 2: A 0, 2, 3; B 0; over all images
    ("all", (3 / 4, 4), (1 / 4, 4)),
    ("common", (1 / 2, 2), (1 / 2, 2)),
])
def test_targeted(targeted, denominator, a, b):
    found = transfer_matrix(targeted, denominator).set_index("target")
    assert [(r.asr, r.n) for r in found.itertuples()] == [pytest.approx(a), pytest.approx(b)]


def test_columns_are_those_of_the_schema(untargeted):
    found = transfer_matrix(untargeted)
    assert list(found.columns) == [column.name for column in COLUMNS if not column.optional]
    assert to_table("matrix", found).num_rows == 2
    assert found.attrs["denominator"] == "target"


def test_seeds_are_averaged_and_do_not_shorten_the_interval(rows):
    found = transfer_matrix(rows([
        {"sample_id": str(i), "seed": seed, "adv_pred": 2 if i < 5 + seed else 1}
        for seed in range(3) for i in range(10)
    ])).iloc[0]
    assert (found["asr"], found["n"], found["seeds"]) == (pytest.approx(0.6), 10, 3)
    assert (found["asr_low"], found["asr_high"]) == pytest.approx(wilson(6, 10))


def test_no_image_in_the_denominator(rows):
    found = transfer_matrix(rows([{"clean_pred": 2}]))
    row = found.iloc[0]
    assert row["n"] == 0
    assert row["asr"] != row["asr"]
    assert (row["asr_low"], row["asr_high"]) == (0, 1)
    assert to_table("matrix", found)["asr"].null_count == 1


def test_common_needs_every_target_to_have_seen_the_image(rows):
    found = transfer_matrix(rows([
        {"target": "A", "sample_id": "0"}, {"target": "A", "sample_id": "1"},
        {"target": "B", "sample_id": "0"},
    ]), "common")
    assert found["n"].tolist() == [1, 1]


def test_two_settings_in_one_directory_are_refused(rows):
    twice = rows([{"cell": "c0"}, {"cell": "c1", "attack_params": '{"eps": 1}'}])
    with pytest.raises(RunError, match=r"sample '0' appears twice .* \(cells c0 and c1\)"):
        transfer_matrix(twice)


def test_unknown_denominator(untargeted):
    with pytest.raises(InputError, match="did you mean 'target'"):
        transfer_matrix(untargeted, "targt")


def test_order_of_rows_and_categories_change_nothing(drawn):
    frame = drawn({("pgd", "b"): 0.5, ("cwa", "a"): 0.7}, {"x": 0.5, "w": 1}, n=30)
    shuffled = frame.sample(frac=1, random_state=0).astype(
        {"attack": "category", "target": "category", "suite": "category"}
    )
    assert transfer_matrix(shuffled).equals(transfer_matrix(frame))


def test_held_out_means_skip_white_box_and_compare_like_with_like(rows):
    def row(surrogates, target, adv, white_box=False):
        return {"surrogates": surrogates, "target": target, "adv_pred": adv, "white_box": white_box}

    means, common = held_out_means(transfer_matrix(rows([
        row("s1", "A", 2, True), row("s1", "B", 2), row("s1", "C", 1),
        row("s2", "A", 2), row("s2", "B", 2, True), row("s2", "C", 2),
    ])))
    assert common == ["C"]
    assert means.to_dict() == {("s", "pgd", "s1"): 0.0, ("s", "pgd", "s2"): 1.0}
    own, common = held_out_means(transfer_matrix(rows([
        row("s1", "A", 2, True), row("s1", "B", 2), row("s2", "A", 1), row("s2", "B", 2, True),
    ])))
    assert common is None, "each row has its own"
    assert own.to_dict() == {("s", "pgd", "s1"): 1.0, ("s", "pgd", "s2"): 0.0}
