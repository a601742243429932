"""Tables of attacks in the open: accuracies by hand, the worst of all, letters, totals over stages."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from advens.errors import InputError
from advens.results.boards import BOARDS
from advens.results.boards.board import _frame, to_table
from advens.results.boards.robustness import COLUMNS, SPENT, WORST, _spent, groups, robustness
from advens.results.display.render import render_board
from advens.results.statistics import wilson

N = 20
NAMES = [column.name for column in COLUMNS]


@pytest.fixture
def cell(about):
    """``cell("c1", "pgd", model="m")``: a finished attack on one model."""

    def make(name: str, attack: str, model: str = "m", **more) -> dict:
        return {
            **about(attack=attack, surrogates=model, surrogate_specs=[model]), "cell": name,
            "samples": N, "goal": "robustness", "after": "", "notes": None, **more,
        }

    return make


@pytest.fixture
def attacked(rows):
    """``attacked("c1", "pgd", broken)``: rows of N images of which those in ``broken`` are broken."""

    def make(name: str, attack: str, broken, target: str = "m", surrogates: str = "m", **more):
        return rows([
            {"cell": name, "attack": attack, "target": target, "surrogates": surrogates,
             "sample_id": f"{i:02}", "adv_pred": 2 if i in broken else 1, **more}
            for i in range(N)
        ])

    return make


def by_attack(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index("attack")


def test_attacks_that_break_disjoint_halves_leave_nothing(cell, attacked):
    samples = pd.concat([attacked("c1", "a", range(10)), attacked("c2", "b", range(10, N))])
    table = by_attack(robustness(samples, pd.DataFrame([cell("c1", "a"), cell("c2", "b")])))
    assert table["robust_accuracy"].to_dict() == {"a": 0.5, "b": 0.5, WORST: 0.0}
    assert (table.loc[WORST, "low"], table.loc[WORST, "high"]) == wilson(0, N)
    assert table["n"].tolist() == [N] * 3
    assert (table["clean_accuracy"] == 1).all()


def test_the_worst_of_all_counts_transfer(cell, attacked):
    samples = pd.concat([
        attacked("c1", "a", range(10)), attacked("c1", "a", range(5), target="other"),
        attacked("c2", "a", range(8, 16), target="m", surrogates="other"),
        attacked("c2", "a", range(3), target="other", surrogates="other"),
    ])
    cells = pd.DataFrame([cell("c1", "a"), cell("c2", "a", model="other")])
    table = robustness(samples, cells).set_index(["model", "attack"])["robust_accuracy"]
    assert table.to_dict() == {
        ("m", "a"): 0.5, ("m", WORST): 0.2, ("other", "a"): 0.85, ("other", WORST): 0.75,
    }


def test_one_attack_alone_has_no_worst(cell, attacked):
    table = robustness(attacked("c1", "a", range(4)), pd.DataFrame([cell("c1", "a")]))
    assert table["attack"].tolist() == ["a"]
    assert table["group"].tolist() == [""]


def test_rates_are_means_over_seeds_and_intervals_over_images(cell, attacked):
    samples = pd.concat([
        attacked("c1", "a", range(10), seed=0), attacked("c2", "a", range(6), seed=1),
    ])
    row = robustness(samples, pd.DataFrame([cell("c1", "a"), cell("c2", "a", seed=1)])).iloc[0]
    assert row["robust_accuracy"] == pytest.approx(0.6)
    assert (row["low"], row["high"]) == pytest.approx(wilson(12, N))
    assert row["n"] == N


def test_what_was_wrong_before_is_not_left(cell, attacked):
    samples = attacked("c1", "a", range(4))
    wrong = samples["sample_id"] >= "15"
    samples.loc[wrong, ["clean_pred", "clean_correct", "success"]] = [2, False, False]
    row = robustness(samples, pd.DataFrame([cell("c1", "a")])).iloc[0]
    assert (row["clean_accuracy"], row["robust_accuracy"]) == (0.75, pytest.approx(11 / N))


def test_members_of_a_randomized_model_are_weighted(cell, attacked):
    samples = pd.concat([
        attacked("c1", "arc", range(10), member=0, weight=0.25),
        attacked("c1", "arc", range(2), member=1, weight=0.75),
    ])
    arc = cell("c1", "arc", attack_params={"name": "arc"})
    table = robustness(samples, pd.DataFrame([arc]))
    assert table.loc[0, "robust_accuracy"] == pytest.approx(0.25 * 0.5 + 0.75 * 0.9)
    assert table.attrs["notes"] == []
    (note,) = robustness(samples, pd.DataFrame([arc | {"attack_params": {"name": "pma"}}])).attrs["notes"]
    assert note == (
        "m draws a member for every call; 'arc', made for that, was not run, and the accuracy "
        "may be overstated"
    )


def test_letters_are_corrected_for_the_number_of_pairs(cell, attacked):
    """Neighbours six images apart: p = 1/32 each, which Holm triples or doubles to more than 5 %."""
    broken = {"a": range(12), "b": range(6), "c": range(0)}
    samples = pd.concat([attacked(name, name, images) for name, images in broken.items()])
    table = by_attack(robustness(samples, pd.DataFrame([cell(name, name) for name in broken])))
    assert table["group"].to_dict() == {"c": "a", "b": "ab", "a": "b", WORST: ""}
    left = pd.DataFrame({name: [float(i not in images) for i in range(N)] for name, images in broken.items()})
    assert groups(left[["b", "a"]]) == {"b": "a", "a": "b"}, "one pair needs no correction"


def test_rows_go_from_the_weakest_to_the_strongest_then_by_passes(cell, attacked):
    samples = pd.concat([
        attacked(name, name, range(k)) for name, k in (("x", 5), ("y", 9), ("z", 5), ("w", 5))
    ])
    spent = {"x": 30, "y": 10, "z": 20, "w": 30}
    cells = [cell(name, name, backwards_per_sample=float(b)) for name, b in spent.items()]
    assert robustness(samples, pd.DataFrame(cells))["attack"].tolist() == ["z", "w", "x", "y", WORST]


def test_totals_hold_the_stages_before(cell, attacked):
    samples = pd.concat([
        attacked("c1", "a", range(4)), attacked("c2", "a+b", range(6)), attacked("c3", "a+b+c", range(8)),
    ])
    cells = pd.DataFrame([
        cell("c1", "a", forwards_per_sample=5.0, backwards_per_sample=4.0, seconds_per_image=0.5),
        cell("c2", "a+b", after="c1", forwards_per_sample=20.0, backwards_per_sample=0.0,
             seconds_per_image=0.25),
        cell("c3", "a+b+c", after="c2", forwards_per_sample=100.0, backwards_per_sample=50.0,
             seconds_per_image=1.0),
    ])  # fmt: skip
    table = by_attack(robustness(samples, cells))
    names = ["forwards_per_sample", "backwards_per_sample", "seconds_per_image"]
    totals = ["total_forwards", "total_backwards", "total_seconds"]
    assert table.loc["a+b+c", names].tolist() == [100, 50, 1]
    assert table.loc["a+b+c", totals].tolist() == [125, 54, 1.75]
    assert table.loc["a+b", totals].tolist() == [25, 4, 0.75]
    assert table.loc["a", totals].tolist() == [5, 4, 0.5]
    assert np.isnan(table.loc[WORST, [*names, *totals]].astype(float)).all()


def test_passes_are_means_over_shards_by_their_size(cell, attacked):
    first, second = attacked("c1", "a", range(2)), attacked("c2", "a", range(2))
    second["sample_id"] = "more" + second["sample_id"]
    cells = pd.DataFrame([
        cell("c1", "a", samples=30, forwards_per_sample=10.0),
        cell("c2", "a", samples=10, forwards_per_sample=50.0),
    ])
    row = robustness(pd.concat([first, second]), cells).iloc[0]
    assert row["forwards_per_sample"] == row["total_forwards"] == 20
    assert row["n"] == 2 * N


def test_masked_gradients_are_said(cell, attacked):
    def notes(transferred) -> list[str]:
        samples = pd.concat([
            attacked("c1", "a", range(10)),
            attacked("c2", "a", transferred, target="m", surrogates="other"),
        ])
        return robustness(samples, pd.DataFrame([cell("c1", "a"), cell("c2", "a", "other")])).attrs["notes"]

    assert notes(range(10)) == []
    (said,) = notes(range(8, 13))
    assert "images crafted on other models break 3 samples that no attack on the model itself broke" in said


def test_what_cells_noted_is_passed_on_once(cell, attacked):
    samples = pd.concat([attacked("c1", "a", range(4)), attacked("c2", "b", range(4))])
    cells = [cell("c1", "a", notes=["flat", "flat"]), cell("c2", "b", notes=[])]
    assert robustness(samples, pd.DataFrame(cells)).attrs["notes"] == ["m, a: flat"]


def test_cells_of_another_goal_are_left_out(cell, attacked):
    samples = pd.concat([attacked("c1", "a", range(4)), attacked("c2", "b", range(9))])
    cells = pd.DataFrame([cell("c1", "a"), cell("c2", "b", goal="transfer")])
    assert robustness(samples, cells)["attack"].tolist() == ["a"]
    with pytest.raises(InputError, match="no attack of a robustness run is finished here"):
        robustness(samples, cells[cells["goal"] == "transfer"])


def in_rounds(cell, attacked, broken, until=0.1, **more):
    """Rows and cells of an attack and of the rounds after it, given how many images each leaves broken."""
    rows, cells, after, place = [], [], "", more.get("seed", 0)
    for number, count in enumerate(broken):
        name, label = f"c{place}{number}", f"a, round {number}" if number else "a"
        rows.append(attacked(name, label, range(count), **more))
        said = {"round": number, "until": until} if number else {}
        cells.append(cell(name, label, after=after, backwards_per_sample=4.0, **said, **more))
        after = name
    return pd.concat(rows), cells


def test_rounds_are_one_row_with_the_slope_and_the_total(cell, attacked):
    samples, cells = in_rounds(cell, attacked, [4, 8, 11, 12])
    table = by_attack(robustness(samples, pd.DataFrame(cells)))
    assert table["robust_accuracy"].to_dict() == {"a": 0.8, "a, rounds": 0.4, WORST: 0.4}
    row = table.loc["a, rounds"]
    assert (row["rounds"], row["converged"]) == (3, True)
    assert row["last_broke"] == pytest.approx(1 / N)
    assert (row["backwards_per_sample"], row["total_backwards"]) == (12, 16)
    assert table.loc[["a", WORST], ["rounds", "last_broke", "converged"]].isna().all(axis=None)
    assert table.attrs["notes"] == []
    shown = render_board("robustness", table.reset_index()[NAMES], width=200)
    assert re.search(r"a, rounds +40\.0 \[.*\] +-5\.0 \(3\) +yes", shown)
    stored = _frame(BOARDS.get("robustness"), to_table("robustness", table.reset_index()[NAMES]))
    assert stored["rounds"].tolist() == [pd.NA, 3, pd.NA]


def test_a_last_round_that_breaks_as_much_as_stated_is_not_the_end(cell, attacked):
    samples, cells = in_rounds(cell, attacked, [4, 8, 10])
    table = by_attack(robustness(samples, pd.DataFrame(cells)))
    assert table.loc["a, rounds", "converged"] == False  # noqa: E712
    (note,) = table.attrs["notes"]
    assert note == (
        "m: 'a' has not converged: the last of 2 rounds still broke 10.0 % of all images; the accuracy is "
        "overstated"
    )
    assert "-10.0 (2)" in (shown := render_board("robustness", table.reset_index(), width=200))
    assert re.search(r"-10\.0 \(2\) +no", shown)


def test_rounds_of_several_seeds_and_shards(cell, attacked):
    """Seeds may take different numbers of rounds; a round that lacks a shard is not the last."""
    one, cells_of_one = in_rounds(cell, attacked, [4, 8, 9], seed=0)
    two, cells_of_two = in_rounds(cell, attacked, [4, 5], seed=1)
    table = by_attack(robustness(pd.concat([one, two]), pd.DataFrame(cells_of_one + cells_of_two)))
    row = table.loc["a, rounds"]
    assert row["robust_accuracy"] == pytest.approx(1 - (9 + 5) / 2 / N)
    assert (row["rounds"], row["converged"], row["last_broke"]) == (2, True, pytest.approx(1 / N))
    assert (row["backwards_per_sample"], row["total_backwards"]) == (6, 10)

    cells_of_one[-1]["samples"] = N - 1
    table = by_attack(robustness(one, pd.DataFrame(cells_of_one)))
    assert not table.loc["a, rounds", "converged"]


def test_rounds_count_expected_accuracy(cell, attacked):
    """A member that is drawn once in four times and broken is a quarter of an image."""
    def rows(name, label, weak, strong):
        return pd.concat([
            attacked(name, label, range(weak), member=0, weight=0.25),
            attacked(name, label, range(strong), member=1, weight=0.75),
        ])

    samples = pd.concat([rows("c1", "arc", 4, 0), rows("c2", "arc, round 1", 8, 0)])
    cells = [cell("c1", "arc", attack_params={"name": "arc"}), cell("c2", "arc, round 1", after="c1", round=1,
             until=0.1, attack_params={"name": "arc"})]  # fmt: skip
    row = by_attack(robustness(samples, pd.DataFrame(cells))).loc["arc, rounds"]
    assert (row["last_broke"], row["converged"]) == (pytest.approx(0.25 * 4 / N), True)


def test_no_columns_of_rounds_without_rounds(cell, attacked):
    table = robustness(attacked("c1", "a", range(4)), pd.DataFrame([cell("c1", "a")]))
    assert not {"rounds", "last_broke", "converged"} & set(table)
    assert "in rounds" not in render_board("robustness", table)


def test_stages_before_count_by_their_images():
    """Shards differ in size: nine images at ten passes and one at none are nine passes an image."""
    cells = pd.DataFrame({
        "suite": "s", "attack": ["a", "a", "a+b", "a+b"], "surrogate_specs": [["m"]] * 4,
        "samples": [9, 1, 9, 1], "after": [None, None, "c0", "c1"],
        **{name: [10.0, 0.0, 20.0, 10.0] for name in SPENT},
    }, index=["c0", "c1", "c2", "c3"])  # fmt: skip
    found = _spent(cells, cells.loc[["c2", "c3"]])
    assert {found[name] for name in SPENT} == {19.0}
    assert {found[name] for name in SPENT.values()} == {28.0}
