"""The board: what enters a mean, who is ranked where, who shares a letter."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from advens.errors import InputError
from advens.results.boards.board import to_table
from advens.results.boards.compare import compare
from advens.results.boards.leaderboard import COLUMNS, _caption, leaderboard
from advens.results.boards.matrix import transfer_matrix
from advens.results.boards.rows import load
from advens.results.statistics import wilson

TARGETS = {"A": 1.0, "B": 0.8, "C": 0.6, "D": 0.5}
WHITE = {"ab": ["A", "B"], "ac": ["A", "C"]}


@pytest.fixture
def samples(drawn):
    strengths = {
        ("weak", "ab"): 0.4, ("strong", "ab"): 0.9, ("twin", "ab"): 0.9, ("strong", "ac"): 0.6,
    }
    return drawn(strengths, TARGETS, WHITE, n=300)


def keyed(board):
    return board.set_index(["attack", "surrogates"])


def test_mean_is_over_targets_held_out_from_every_row(samples):
    board = leaderboard(samples)
    matrix = transfer_matrix(samples).set_index(["attack", "surrogates", "target"])
    assert board.attrs["targets"] == ["D"]
    assert set(board["targets"]) == {1}
    for row in board.itertuples():
        assert row.mean_asr == pytest.approx(matrix.loc[(row.attack, row.surrogates, "D"), "asr"])
        assert row.asr_low < row.mean_asr < row.asr_high
        white = [matrix.loc[(row.attack, row.surrogates, t), "asr"] for t in WHITE[row.surrogates]]
        assert row.white_box_asr == pytest.approx(np.mean(white))


def test_without_a_common_target_each_row_has_its_own(samples):
    board = leaderboard(samples[samples["target"] != "D"])
    matrix = transfer_matrix(samples).set_index(["attack", "surrogates", "target"])["asr"]
    assert board.attrs["targets"] is None
    assert "no target is held out from every row" in board.attrs["notes"][0]
    means = keyed(board)["mean_asr"]
    assert means["weak", "ab"] == pytest.approx(matrix["weak", "ab", "C"])
    assert means["strong", "ac"] == pytest.approx(matrix["strong", "ac", "B"])


def test_a_row_that_is_white_box_everywhere_has_no_mean_and_hurts_nobody(drawn):
    frame = drawn(
        {("pgd", "all"): 0.9, ("pgd", "ab"): 0.5}, TARGETS, {"all": list("ABCD"), "ab": ["A", "B"]}
    )
    board = leaderboard(frame)
    assert board.attrs["targets"] == ["C", "D"]
    last = board.iloc[-1]
    assert (last["surrogates"], last["rank"], last["group"], last["targets"], last["n"]) == (
        "all", 2, "", 0, 0
    )
    assert np.isnan(last["mean_asr"])
    assert last["white_box_asr"] > 0.9
    assert to_table("leaderboard", board).num_rows == 2


def test_no_white_box_row_enters_a_mean(samples):
    board = leaderboard(samples)
    spoilt = samples.copy()
    spoilt.loc[spoilt["white_box"], ["success", "adv_pred"]] = [True, 9]
    again = leaderboard(spoilt)
    columns = ["attack", "surrogates", "rank", "group", "mean_asr", "asr_low", "asr_high", "n"]
    pd.testing.assert_frame_equal(board[columns], again[columns])
    assert (again["white_box_asr"] >= board["white_box_asr"]).all()


def test_ranks_and_groups(samples):
    board = keyed(leaderboard(samples))
    assert board["rank"].tolist() == [1, 2, 3, 4]
    assert board["rank"]["weak", "ab"] == 4
    group = board["group"]
    assert group["strong", "ab"] == group["twin", "ab"] == "a"
    assert not set(group["weak", "ab"]) & set(group["strong", "ac"])


def test_letters_are_corrected_for_the_number_of_pairs(rows):
    """Neighbours six images apart: p = 1/32 each, which Holm doubles to more than 5 %."""
    def frame(counts):
        return rows([
            {"attack": name, "sample_id": f"{i:02}", "adv_pred": 2 if i < k else 1}
            for name, k in counts.items() for i in range(20)
        ])

    three = leaderboard(frame({"a": 12, "b": 6, "c": 0})).set_index("attack")
    assert three["group"].to_dict() == {"a": "a", "b": "ab", "c": "b"}
    two = leaderboard(frame({"a": 12, "b": 6})).set_index("attack")
    assert two["group"].to_dict() == {"a": "a", "b": "b"}, "one pair needs no correction"


def test_ties_are_ranked_by_name_and_share_a_letter(rows):
    board = leaderboard(rows([
        {"attack": name, "sample_id": str(i), "adv_pred": 1 + i % 2}
        for name in ("zeta", "alpha") for i in range(8)
    ]))
    assert board["attack"].tolist() == ["alpha", "zeta"]
    assert board["group"].tolist() == ["a", "a"]


def test_compute_is_averaged_over_shards_by_their_size(samples):
    cells = pd.DataFrame([
        {"suite": "s", "attack": "weak", "surrogates": "ab", "family": "fusion", "samples": size,
         "forwards_per_sample": passes, "backwards_per_sample": passes, "norm": "linf",
         "seconds_per_image": None, "eps": "8/255"}
        for size, passes in ((30, 10.0), (10, 20.0))
    ])
    board = keyed(leaderboard(samples, cells))
    assert board.loc[("weak", "ab"), "forwards_per_sample"] == 12.5
    assert board.loc[("weak", "ab"), "family"] == "fusion"
    assert np.isnan(board.loc[("weak", "ab"), "seconds_per_image"])
    assert np.isnan(board.loc[("strong", "ab"), "forwards_per_sample"])
    names = [column.name for column in COLUMNS if not column.pattern]
    assert list(leaderboard(samples).columns) == [*names, "asr cnn"]


def test_different_budgets_are_said(samples):
    cells = pd.DataFrame([
        {"suite": "s", "attack": a, "surrogates": "ab", "family": "f", "samples": 1, "norm": "linf",
         "eps": eps, **dict.fromkeys(
             ["forwards_per_sample", "backwards_per_sample", "seconds_per_image"], 1.0)}
        for a, eps in (("weak", "8/255"), ("strong", "4/255"))
    ])
    notes = leaderboard(samples, cells).attrs["notes"]
    assert notes == ["budgets differ between rows: linf 4/255, linf 8/255"]


def test_an_unfinished_run_is_said(samples):
    part = samples[(samples["attack"] != "weak") | (samples["sample_id"] < "0100")]
    assert "not complete" in " ".join(leaderboard(part).attrs["notes"])


def test_same_samples_same_board(samples):
    assert leaderboard(samples).equals(leaderboard(samples.sample(frac=1, random_state=1)))


def test_compare_by_hand(rows):
    frame = rows([
        {"attack": attack, "target": target, "sample_id": str(i), "adv_pred": 2 if i < k else 1,
         "white_box": target == "W"}
        for attack, counts in {"a": (9, 7, 0), "b": (5, 5, 10)}.items()
        for target, k in zip("XYW", counts, strict=True) for i in range(10)
    ])
    found = compare(frame, "a", "b")
    assert found["difference"] == pytest.approx((0.4 + 0.2) / 2)
    assert found["targets"] == ["X", "Y"]
    assert found["n"] == 10
    assert found["low"] < 0.3 < found["high"]
    assert found["surrogates"] == ["cnns"]
    back = compare(frame, "b", "a")
    assert back["difference"] == pytest.approx(-0.3)
    assert back["p"] == found["p"]


def test_compare_agrees_with_the_board(samples):
    board = keyed(leaderboard(samples))
    found = compare(samples[samples["target"] == "D"], "strong@ab", "strong@ac")
    means = board["mean_asr"]
    assert found["difference"] == pytest.approx(means["strong", "ab"] - means["strong", "ac"])
    assert found["p"] < 0.001


def test_compare_does_not_find_what_is_not_there(samples):
    found = compare(samples, "strong", "twin")
    assert found["p"] > 0.05
    assert found["low"] <= 0 <= found["high"]
    same = compare(samples.assign(success=True), "strong@ab", "twin")
    assert (same["difference"], same["p"]) == (0, 1)
    assert same["low"] == -same["high"] < 0


@pytest.mark.parametrize(("a", "b", "said"), [
    ("strng", "weak", "did you mean 'strong'"),
    ("weak", "weak", "are the same rows"),
    ("strong@xy", "weak", "did you mean 'strong@"),
])
def test_compare_says_what_is_wrong(samples, a, b, said):
    with pytest.raises(InputError, match=said):
        compare(samples, a, b)


def test_compare_without_a_shared_target(drawn):
    frame = drawn({("a", "x"): 0.5, ("b", "x"): 0.5}, {"T": 1}, {"x": ["T"]})
    with pytest.raises(InputError, match="nothing to compare"):
        compare(frame, "a", "b")


def test_pareto_marks_what_nothing_cheaper_beats(drawn):
    frame = drawn({("cheap", "s"): 0.3, ("dear", "s"): 0.9, ("wasteful", "s"): 0.5}, {"A": 1.0}, n=300)
    spent = {"cheap": (10, 10), "dear": (40, 20), "wasteful": (80, 80)}
    cells = pd.DataFrame([
        {"suite": "s", "attack": name, "surrogates": "s", "samples": 300, "family": "fusion", "norm": "linf",
         "eps": "0.1", "forwards_per_sample": f, "backwards_per_sample": b, "seconds_per_image": 0.1}
        for name, (f, b) in spent.items()
    ])
    board = keyed(leaderboard(frame, cells))
    assert {name: bool(board.loc[(name, "s"), "pareto"]) for name in spent} == {
        "cheap": True, "dear": True, "wasteful": False
    }
    assert not leaderboard(frame)["pareto"].any()  # nothing is known of the compute


def test_a_backward_pass_counts_as_two_forward_passes(rows):
    """A = 10 F + 10 B is 30 forward passes, B = 25 F is 25: as strong and cheaper."""
    frame = rows([
        {"attack": name, "sample_id": str(i), "adv_pred": 2 if i < 4 else 1}
        for name in "AB" for i in range(8)
    ])

    def marked(a, b):
        cells = pd.DataFrame([
            {"suite": "s", "attack": name, "surrogates": "cnns", "samples": 8, "family": "fusion",
             "norm": "linf", "eps": "0.1", "forwards_per_sample": f, "backwards_per_sample": k,
             "seconds_per_image": 0.1}
            for name, (f, k) in (("A", a), ("B", b))
        ])
        return leaderboard(frame, cells).set_index("attack")["pareto"].to_dict()

    assert marked((10, 10), (25, 0)) == {"A": False, "B": True}
    assert marked((10, 10), (31, 0)) == {"A": True, "B": False}
    assert marked((10, 10), (30, 0)) == {"A": True, "B": True}, "neither is cheaper"


def test_a_cell_of_one_sample_has_its_compute(samples):
    cells = pd.DataFrame([
        {"suite": "s", "attack": "weak", "surrogates": "ab", "family": None, "samples": size,
         "forwards_per_sample": passes, "backwards_per_sample": passes, "norm": "linf",
         "seconds_per_image": 2.0, "eps": "8/255"}
        for size, passes in ((1, 7.0), (0, 100.0))
    ])
    row = keyed(leaderboard(samples, cells)).loc[("weak", "ab")]
    assert (row["forwards_per_sample"], row["seconds_per_image"], row["family"]) == (7, 2, "")
    assert keyed(leaderboard(samples, cells))["family"].tolist() == [""] * 4


def test_norms_are_means_over_all_rows(rows):
    board = leaderboard(rows([
        {"attack": name, "sample_id": str(i), "linf": linf + i, "l2": 10 * linf, "white_box": i > 1}
        for name, linf in (("a", 1.0), ("b", 2.0)) for i in range(4)
    ])).set_index("attack")
    assert board["mean_linf"].to_dict() == {"a": 2.5, "b": 3.5}
    assert board["mean_l2"].to_dict() == {"a": 10, "b": 20}


def test_what_is_said_of_a_board(rows):
    def frame(*cases):
        return rows([
            {"attack": a, "surrogates": s, "target": t, "white_box": w, "sample_id": str(i)}
            for a, s, t, w, n in cases for i in range(n)
        ])

    own = frame(("a", "x", "X", False, 3), ("a", "x", "Y", True, 3), ("a", "y", "X", True, 3),
                ("a", "y", "Y", False, 3))  # fmt: skip
    assert leaderboard(own).attrs["notes"] == [
        "no target is held out from every row: means are over each row's own targets",
        "rows without common data are not compared: their ranks and letters do not say which is stronger; "
        "letters compare only within a and within b",
    ]
    none = frame(("a", "x", "X", True, 3), ("b", "x", "X", False, 3))
    assert leaderboard(none).attrs["notes"] == ["rows without a held-out target have no mean"]
    fewer = frame(("a", "x", "X", False, 3), ("b", "x", "X", False, 2))
    assert leaderboard(fewer).attrs["notes"] == [
        "rows differ in the number of images: the run is not complete"
    ]
    assert leaderboard(frame(("a", "x", "X", False, 3))).attrs["notes"] == []


def test_attacks_of_two_suites_are_compared_on_sets_of_one_name(rows):
    frame = rows([
        {"suite": suite, "attack": attack, "surrogates": sets, "sample_id": str(i),
         "adv_pred": 2 if i < k else 1}
        for suite, attack, sets, k in (
            ("s", "a", "x", 8), ("t", "b", "x", 4), ("s", "a", "y", 6), ("t", "c", "z", 1)
        ) for i in range(10)
    ])  # fmt: skip
    found = compare(frame, "a", "b")
    assert (found["surrogates"], found["difference"]) == (["x"], pytest.approx(0.4))
    assert [each["surrogates"] for each in found["each"]] == [["x"]]
    one = compare(frame, "b", "c")
    assert (one["surrogates"], one["difference"]) == (["x / z"], pytest.approx(0.3))
    with pytest.raises(InputError, match="'a' and 'c' share no surrogate set; name one of each"):
        compare(frame, "a", "c")
    assert compare(frame, "a@y", "c")["difference"] == pytest.approx(0.5)


def test_a_comparison_over_two_sets_is_their_mean(rows):
    frame = rows([
        {"attack": attack, "surrogates": sets, "sample_id": str(i), "adv_pred": 2 if i < k else 1}
        for attack, sets, k in (("a", "x", 8), ("b", "x", 4), ("a", "y", 6), ("b", "y", 6))
        for i in range(10)
    ])
    found = compare(frame, "a", "b")
    assert (found["surrogates"], found["n"], found["difference"]) == (["x", "y"], 10, pytest.approx(0.2))
    assert [each["difference"] for each in found["each"]] == pytest.approx([0.4, 0.0])
    same = found["each"][1]
    assert (same["p"], same["low"], same["high"]) == (1, -wilson(0, 10)[1], wilson(0, 10)[1])
    assert (found["a"], found["b"], found["denominator"]) == ("a", "b", "target")


def test_images_without_a_gradient_are_noted(drawn, run):
    """The cells of a row together; those from before it was counted say nothing."""
    frame = drawn({("pgd", "ab"): 0.5}, TARGETS, WHITE, n=20, seeds=2)
    store = run(frame, silent_images=3, silent_steps=1200)
    (note,) = leaderboard(frame, store.read_cells()).attrs["notes"]
    assert note.startswith(
        "pgd on ab: the surrogates' gradient was zero for 6 of 40 images, in 2,400 steps"
    )
    for about in ({}, {"silent_images": 0, "silent_steps": 0}):
        store = run(frame, f"run{len(about)}", **about)
        assert leaderboard(frame, store.read_cells()).attrs["notes"] == []


def test_intervals_stay_what_they_were(samples):
    """The bootstrap's draws are named and follow from the samples: a rerun gives these numbers."""
    board = keyed(leaderboard(samples))
    for row, wanted in {
        ("twin", "ab"): (0.457746479, 0.402046152, 0.519037819),
        ("strong", "ac"): (0.306338028, 0.255319149, 0.361013337),
        ("weak", "ab"): (0.214788732, 0.167856518, 0.263157895),
    }.items():
        found = board.loc[row, ["mean_asr", "asr_low", "asr_high"]].astype(float)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


def test_a_board_without_notes_has_a_caption(samples):
    board = leaderboard(samples)
    board.attrs.pop("notes")
    assert not any(line.startswith("Note") for line in _caption(board))


def test_cells_of_two_runs_are_counted_through(drawn, run):
    strengths = {("weak", "ab"): 0.4, ("strong", "ab"): 0.9}
    stores = [run(drawn(strengths, TARGETS, WHITE, n=5), name) for name in ("one", "two")]
    samples, cells = load([store.directory for store in stores])
    assert cells.index.tolist() == list(range(len(cells)))
    assert samples.index.tolist() == list(range(len(samples)))
    assert len(cells) == 2 * len(stores[0].read_cells())
