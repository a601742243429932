"""What boards say for new models and new images, beside what they say for these targets and new images."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import t

from advens.errors import RunError
from advens.results.boards import read_board, to_table, write_board
from advens.results.boards.compare import compare
from advens.results.boards.leaderboard import COLUMNS, _caption, leaderboard
from advens.results.boards.matrix import transfer_matrix
from advens.results.boards.outcomes import contributions
from advens.results.columns import Layout
from advens.results.commands import _stored
from advens.results.display.render import render_board
from advens.results.store import CorruptFile, schema, write_table

RATES = {  # of ten targets
    "strong": (0.9, 0.8, 0.9, 0.8, 0.9, 0.8, 0.9, 0.8, 0.9, 0.8),
    "even": (0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35, 0.35),
    "uneven": (0.05, 0.9, 0.05, 0.3, 0.05, 0.35, 0.05, 0.5, 0.05, 0.5),
}
N = 200


@pytest.fixture
def made(rows):
    """A run in which an attack fools the same images of every target first: no luck, no image left out."""

    def make(rates=RATES, n=N, **given):
        return rows([
            {"attack": attack, "target": f"T{k}", "sample_id": f"{i:04d}",
             "adv_pred": 2 if (i * 7 + 13 * k) % n < rate * n else 1, **given}
            for attack, row in rates.items() for k, rate in enumerate(row) for i in range(n)
        ])  # fmt: skip

    return make


def two_way_by_hand(table):
    """Mean, standard error and the images' part of its square, by the textbook's sums, without gaps."""
    n, targets = table.shape
    mean, of_image, of_target = table.mean(), table.mean(axis=1), table.mean(axis=0)
    left = sum((table[i, k] - of_image[i] - of_target[k] + mean) ** 2
               for i in range(n) for k in range(targets)) / ((n - 1) * (targets - 1))  # fmt: skip
    v_image, v_target = of_image.var(ddof=1) / n, of_target.var(ddof=1) / targets
    v_residual = left / (n * targets)
    return mean, np.sqrt(max(v_image + v_target - v_residual, v_image, v_target)), v_image - v_residual


def values(frame, attack):
    return contributions(frame[frame["attack"] == attack]).value[0].T


def test_the_interval_for_new_models_is_two_way_and_wide(made):
    frame = made()
    board = leaderboard(frame).set_index("attack")
    for attack in RATES:
        row = board.loc[attack]
        mean, error, of_images = two_way_by_hand(values(frame, attack))
        hits = np.array(RATES[attack]) * N
        logits = np.log((hits + 0.5) / (N - hits + 0.5))
        slope = mean * (1 - mean)
        apart = logits.var(ddof=1) / 10 + max(of_images, 0) / slope**2
        half = t.ppf(0.975, 9) * max(error / slope, np.sqrt(apart))
        ends = [1 / (1 + (1 / mean - 1) * np.exp(-side * half)) for side in (-1, 1)]
        assert row["mean_asr"] == pytest.approx(mean)
        assert row[["models_low", "models_high"]].tolist() == pytest.approx(ends, abs=1e-6)
    wide = board["models_high"] - board["models_low"]
    assert wide["uneven"] > 5 * (board["asr_high"] - board["asr_low"])["uneven"]
    assert wide["uneven"] > 2 * wide["even"]


def test_what_differs_on_these_targets_need_not_differ_on_others(made):
    """By hand: even against uneven are 7 points apart, with a standard deviation over targets of 27."""
    frame = made()
    board = leaderboard(frame).set_index("attack")
    assert board["group"].tolist() == ["a", "b", "c"]
    assert board["models_group"].to_dict() == {"strong": "a", "even": "b", "uneven": "b"}
    found = compare(frame, "even", "uneven")
    mean, error, _ = two_way_by_hand(values(frame, "even") - values(frame, "uneven"))
    assert found["difference"] == pytest.approx(mean)
    assert found["models_p"] == pytest.approx(2 * t.sf(mean / error, 9))
    half = t.ppf(0.975, 9) * error
    assert (found["models_low"], found["models_high"]) == pytest.approx((mean - half, mean + half))
    assert found["p"] < 0.01 < 0.05 < found["models_p"]
    assert found["low"] > 0 > found["models_low"]
    assert found["each"][0]["models_p"] == found["models_p"]


def test_letters_for_new_models_are_corrected_for_the_number_of_pairs(made):
    """Two attacks whose test gives p between 2.5 and 5 % differ alone, and not among three."""
    low = (0.5, 0.47, 0.5, 0.42, 0.4)
    frame = made({"a": (0.6, 0.5, 0.6, 0.45, 0.6), "b": low, "c": low})
    assert 0.025 < compare(frame, "a", "b")["models_p"] < 0.05
    alone = leaderboard(frame[frame["attack"] != "c"]).set_index("attack")
    assert alone["models_group"].to_dict() == {"a": "a", "b": "b"}
    together = leaderboard(frame).set_index("attack")
    assert together["models_group"]["a"] == together["models_group"]["b"] == "a"


def test_p_to_the_first_row_is_holms_over_all_pairs(made):
    frame = made()
    board = leaderboard(frame).set_index("attack")
    p = sorted((compare(frame, *pair)["models_p"], pair) for pair in combinations(RATES, 2))
    adjusted, worst = {}, 0.0
    for k, (value, pair) in enumerate(p):
        worst = max(worst, value * (3 - k))
        adjusted[frozenset(pair)] = min(worst, 1)
    assert np.isnan(board["p_first"]["strong"])
    for other in ("even", "uneven"):
        assert board["p_first"][other] == pytest.approx(adjusted[frozenset(("strong", other))])


def test_ranks_have_intervals(made):
    board = leaderboard(made()).set_index("attack")
    ranks = board[["rank_low", "rank_high"]].astype(int).agg(tuple, axis=1).to_dict()
    assert ranks == {"strong": (1, 1), "even": (2, 3), "uneven": (2, 3)}


@pytest.mark.parametrize(("targets", "known"), [(4, False), (5, True)])
def test_below_five_targets_new_models_are_out_of_reach(made, targets, known):
    frame = made({attack: row[:targets] for attack, row in RATES.items()})
    board = leaderboard(frame)
    for name in ("models_low", "models_high", "rank_low", "rank_high"):
        assert board[name].notna().tolist() == [known] * 3
    assert board["p_first"].notna().tolist() == [False, known, known]
    assert board["models_group"].ne("").tolist() == [known] * 3
    assert board["asr_low"].notna().all()
    assert board["group"].ne("").all()
    caption = " ".join(_caption(board))
    assert ("new models are out of reach" in caption) is not known
    assert ("New models and new images: targets and images both count" in caption) is known
    shown = render_board("leaderboard", board, "markdown").splitlines()[0]
    assert ("new models" in shown) is known
    found = compare(frame, "strong", "even")
    assert (found["models_p"] is not None) is (found["models_low"] is not None) is known
    matrix = render_board("matrix", transfer_matrix(frame), "markdown")
    assert ("| new models | these targets |" in matrix) is known
    assert ("out of reach with fewer than five" in matrix) is not known


def test_a_mean_and_its_tests_are_over_the_same_targets(rows):
    """On the target held out from all, A is ahead of B; on five others, where C is white-box, far behind.

    A test over all that A and B have in common would put B 25 points above A, while A is ranked first.
    """
    rates = {"A": (0.5, *[0.2] * 5), "B": (0.45, *[0.51] * 5), "C": (0.1, *[1.0] * 5)}
    frame = rows([
        {"attack": attack, "surrogates": f"set {attack}", "target": f"T{k}", "sample_id": f"{i:03d}",
         "adv_pred": 2 if i < rate * 100 else 1, "white_box": attack == "C" and k > 0}
        for attack, row in rates.items() for k, rate in enumerate(row) for i in range(100)
    ])  # fmt: skip
    board = leaderboard(frame).set_index("attack")
    assert board["rank"].to_dict() == {"A": 1, "B": 2, "C": 3}
    assert set(board["targets"]) == {1}
    assert compare(frame, "A@set A", "B@set B")["difference"] == pytest.approx((0.05 - 5 * 0.31) / 6)
    part = leaderboard(frame[frame["target"] == "T0"]).set_index("attack")
    assert board["group"].to_dict() == part["group"].to_dict()
    for one, other in combinations(board.index, 2):
        if not set(board["group"][one]) & set(board["group"][other]):
            assert board["mean_asr"][one] > board["mean_asr"][other]


def own_targets(rows, rates, n=60):
    """Rows on set ``x`` hold out X0 to X5, rows on set ``y`` Y0 to Y5; nothing is held out from both."""
    return rows([
        {"attack": attack, "surrogates": surrogates, "target": f"{held}{k}", "sample_id": f"{i:03d}",
         "adv_pred": 2 if (i * 7 + 11 * k) % n < rate * n else 1, "white_box": held != surrogates.upper()}
        for (attack, surrogates), rate in rates.items() for held in "XY" for k in range(6) for i in range(n)
    ])  # fmt: skip


def test_rows_over_other_targets_are_not_compared(rows):
    rates = {("a", "x"): 0.9, ("b", "x"): 0.3, ("b", "y"): 0.3, ("a", "y"): 0.6, ("c", "y"): 0.59}
    board = leaderboard(own_targets(rows, rates)).set_index(["attack", "surrogates"])
    assert board.attrs["targets"] is None
    for name in ("group", "models_group"):
        group = board[name].map(set)
        for one, other in combinations(board.index, 2):
            assert bool(group[one] & group[other]) is ({one, other} == {("a", "y"), ("c", "y")})
        assert group.map(bool).all()
    assert board["rank_low"].isna().all(), "there is no rank over other targets"
    first = board["p_first"]
    assert first[("b", "x")] < 0.05
    assert first.drop(("b", "x")).isna().all()
    (_, said) = board.attrs["notes"]
    one, other = ("".join(sorted(set("".join(part["group"])))) for _, part in board.groupby("surrogates"))
    assert said.startswith("rows without common data are not compared")
    assert f"within {one}" in said
    assert f"within {other}" in said


def test_rows_without_a_common_image_are_not_compared(made):
    frame = made({"a": (0.5,) * 5, "b": (0.5,) * 5, "c": (0.5,) * 5}, n=40)
    half = frame["sample_id"] < "0020"
    kept = (frame["attack"] == "c") | (half == (frame["attack"] == "a"))
    board = leaderboard(frame[kept]).set_index("attack")
    for name in ("group", "models_group"):
        group = board[name].map(set)
        assert not group["a"] & group["b"]
        assert group["a"] & group["c"]
        assert group["b"] & group["c"]
    assert any(note.startswith("rows without common data are not compared") for note in board.attrs["notes"])


def test_above_forty_rows_are_ranks_and_p_values(made, monkeypatch):
    rates = {f"a{k:02}": tuple(0.9 - 0.015 * k - 0.04 * (j % 3) for j in range(6)) for k in range(41)}
    frame = made(rates, n=50)
    forty = leaderboard(frame[frame["attack"] != "a40"])
    assert forty["group"].ne("").all()
    assert forty["models_group"].ne("").all()
    monkeypatch.setattr("advens.results.boards.leaderboard.paired_tests", None)  # needed by letters alone
    board = leaderboard(frame)
    assert set(board["group"]) == set(board["models_group"]) == {""}
    assert board["rank_low"].notna().all()
    assert (board["rank_low"] <= board["rank"]).all()
    assert (board["rank"] <= board["rank_high"]).all()
    p = {name: compare(frame, "a00", name)["models_p"] for name in ("a20", "a30", "a40")}
    ordered = sorted(compare(frame, "a00", f"a{k:02}")["models_p"] for k in range(1, 41))
    for name, value in board.set_index("attack")["p_first"].loc[list(p)].items():
        steps = [q * (820 - k) for k, q in enumerate(ordered) if q <= p[name]]
        assert value == pytest.approx(min(1, max(steps))), "780 pairs without the first count as 1"
    header = render_board("leaderboard", board, "markdown").splitlines()[0]
    assert "| # | ranks | p, to first | attack |" in header
    assert "letters" not in header
    assert "p, to first" not in render_board("leaderboard", forty, "markdown").splitlines()[0]
    caption = " ".join(_caption(board))
    assert "There are no letters above 40 rows" in caption
    assert "Holm over all pairs" in caption


def families(made, kinds, rates=RATES):
    frame = made({attack: row[: len(kinds)] for attack, row in rates.items()})
    frame["target_family"] = frame["target"].map({f"T{k}": kind for k, kind in enumerate(kinds)})
    return frame


def test_families_of_targets_stand_apart(made):
    frame = families(made, ["cnn", "vit", "cnn", "vit", "cnn", None])
    frame["target"] = frame["target"].replace({"T4": "digits:resnet-at", "T3": "robustbench:Some2020"})
    frame["member"] = frame["member"].mask(frame["target"] == "T2", 0)
    board = leaderboard(frame).set_index("attack")
    assert [name for name in board if name.startswith("asr ")] == [
        "asr cnn", "asr randomized", "asr robust", "asr vit"
    ]
    row = board.loc["uneven"]
    assert row["asr cnn"] == pytest.approx(0.05)
    assert row["asr vit"] == pytest.approx(0.9)
    assert row["asr robust"] == pytest.approx((0.3 + 0.05) / 2)
    assert row["asr randomized"] == pytest.approx(0.05)
    shown = render_board("leaderboard", board.reset_index(), "markdown")
    assert "| cnn | randomized | robust | vit |" in shown


def test_a_family_is_over_the_targets_in_the_mean(made):
    frame = families(made, ["cnn", "cnn", "vit", "vit", "mlp"])
    frame["white_box"] = frame["target"].isin(["T0", "T4"])
    board = leaderboard(frame).set_index("attack")
    assert [name for name in board if name.startswith("asr ")] == ["asr cnn", "asr vit"]
    assert board["asr cnn"]["strong"] == pytest.approx(0.8)


def test_a_first_rank_that_one_family_bought_is_said(made):
    rates = {"wide": (0.5, 0.5, 0.5, 0.5, 0.5), "narrow": (0.9, 0.9, 0.9, 0.1, 0.1)}
    board = leaderboard(families(made, ["cnn", "cnn", "cnn", "vit", "mlp"], rates))
    assert board["attack"][0] == "narrow"
    assert board.attrs["notes"] == [
        "if every family of targets counted the same, wide on cnns would be first (50.0 %; narrow on cnns "
        "36.7 %)"
    ]
    assert leaderboard(families(made, ["cnn", "vit", "mlp", "cnn", "vit"], rates)).attrs["notes"] == []


def test_the_matrix_has_both_intervals_of_the_mean(made, run):
    frame = made()
    store = run(frame)
    write_board(store.directory, "matrix")
    matrix, board = read_board(store.directory, "matrix"), leaderboard(frame)
    for record, row in zip(matrix.attrs["means"], board.sort_values("attack").itertuples(), strict=True):
        assert record["attack"] == row.attack
        for name in ("mean_asr", "models_low", "models_high", "asr_low", "asr_high"):
            assert record[name] == pytest.approx(getattr(row, name), abs=1e-8)
    shown = render_board("matrix", matrix, "markdown")
    row = board.set_index("attack").loc["uneven"]
    for name in ("models", "asr"):
        assert f"[{100 * row[f'{name}_low']:.1f}–{100 * row[f'{name}_high']:.1f}]" in shown
    part = matrix[matrix["target"] != "T1"]
    header = render_board("matrix", part, "markdown").splitlines()[0]
    assert "these targets" not in header, "other means, no intervals"
    for forged in (5, [3], [{"attack": 1}], [dict.fromkeys(matrix.attrs["means"][0], "x")]):
        matrix.attrs["means"] = forged
        assert "these targets" not in render_board("matrix", matrix, "markdown").splitlines()[0]


def test_boards_of_older_versions_are_made_again_or_say_how(made, run):
    store = run(made())
    for name in ("matrix", "leaderboard"):
        write_board(store.directory, name)
    new = ("asr *", "models_", "rank_", "p_first")
    old = Layout("leaderboard", tuple(each for each in COLUMNS if not each.name.startswith(new)))
    write_table(store.leaderboard, schema.to_table(old, leaderboard(made())[old.names]))
    write_table(store.matrix, to_table("matrix", transfer_matrix(made()), denominator="target"))
    remedy = r"columns are not those .* in this version; make it again with 'advens run' and --out"
    with pytest.raises(CorruptFile, match=remedy) as error:
        read_board(store.directory, "leaderboard")
    assert "\n" not in str(error.value)
    assert isinstance(error.value, RunError)
    assert _stored(store.directory, "leaderboard") is None, "the command computes it"
    matrix = read_board(store.directory, "matrix")
    assert matrix.attrs["means"] is None
    assert "these targets" not in render_board("matrix", matrix, "markdown").splitlines()[0]


def test_several_sets_are_one_comparison_over_the_targets_of_all(rows):
    """The mean over sets, a target's values averaged over them; without common targets no claim."""
    frame = rows([
        {"attack": attack, "surrogates": surrogates, "target": f"T{k}", "sample_id": f"{i:03d}",
         "adv_pred": 2 if (i + 3 * k) % 40 < 40 * rate + 2 * k * (attack == "a") else 1,
         "white_box": surrogates == "y" and k == 5}
        for attack, surrogates, rate in (("a", "x", 0.5), ("b", "x", 0.3), ("a", "y", 0.4), ("b", "y", 0.4))
        for k in range(6) for i in range(40)
    ])  # fmt: skip
    found = compare(frame, "a", "b")
    assert found["targets"] == [f"T{k}" for k in range(5)]
    on = {each: frame[frame["surrogates"] == each] for each in "xy"}
    x, y = (values(part, "a") - values(part, "b") for part in on.values())
    mean, error, _ = two_way_by_hand((x[:, :5] + y[:, :5]) / 2)
    assert found["difference"] == pytest.approx(mean)
    assert found["models_p"] == pytest.approx(2 * t.sf(mean / error, 4))
    apart = frame[~((frame["surrogates"] == "x") & (frame["target"] < "T5"))]
    assert compare(apart, "a", "b")["models_p"] is None
