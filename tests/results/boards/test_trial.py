"""A folder of defenses: every table follows from the files below it, as the formulas say."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from advens.errors import InputError
from advens.results.boards import board_mismatches, read_board, to_table, write_board
from advens.results.boards.defenses import TRAINING, pooled, white_box, write_models
from advens.results.statistics import wilson
from advens.results.store import RunStore, write_table

BUDGETS = ("0.05", "8/255")
OPEN, ADAPTIVE = ("pgd", "pma-plus"), ("adaptive-pgd", "arc")
NAMES = ("defense:mean", "defense:drawn", "digits:vit")
MADE = ("models", "images", "defenses", "study")


def model(name: str, **more) -> dict:
    kind = {"defense:mean": "mean", "defense:drawn": "randomized"}.get(name, "single")
    pairs = [[0.0, 1.5], [1.5, 0.0]] if kind != "single" else None
    rates = [[0.9, 0.25], [0.5, 0.8]] if kind != "single" else None
    return {
        "defense": name, "kind": kind, "members": 1 if kind == "single" else 2, "mflops": 12.5,
        "diversity": 1.5 if pairs else None, "shared": 0.375 if rates else None, "measured": 200, "eps": 0.2,
        "measure_seed": 0, "pairs": json.dumps(pairs) if pairs else None,
        "rates": json.dumps(rates) if rates else None, "counted": "[10, 10]" if rates else None,
        "digest": "d", "train_forwards": None if kind == "single" else 30.0,
        "train_backwards": None if kind == "single" else 20.0,
        "train_seconds": None if kind == "single" else 1.5, **more,
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path, run, rows):
    """``folder()``: runs of made-up samples with a randomized model, and the models on lines when named."""

    def make(lines=None):
        rng = np.random.default_rng(0)

        def samples(attacks, goal, ids):
            made = []
            for attack, models in attacks.items():
                for name in models:
                    members = ((0, 0.3), (1, 0.7)) if name == "defense:drawn" else ((None, 1.0),)
                    cell = f"{goal}-{attack}-{NAMES.index(name) if goal == 'open' else 0}"
                    for i in ids:
                        for member, weight in members:
                            clean = 1 if rng.random() < 0.9 else 2
                            made.append({
                                "attack": attack, "target": name, "sample_id": f"{i:03}", "member": member,
                                "weight": weight, "clean_pred": clean, "cell": cell,
                                "adv_pred": 3 if rng.random() < 0.4 else clean,
                                "surrogates": name if goal == "open" else "surrogates",
                            })  # fmt: skip
            return rows(made)

        order = rng.permutation(30)
        for eps in BUDGETS:
            run(samples({"mifgsm": NAMES, "smer": NAMES}, "transfer", order),
                f"transfer-{eps.replace('/', '-')}")  # fmt: skip
        attacks = {**dict.fromkeys(OPEN, NAMES), **dict.fromkeys(ADAPTIVE, NAMES[1:2])}
        run(samples(attacks, "open", order[:20]), "white-box", goal="robustness")
        said = {"budgets": BUDGETS, "open": OPEN, "adaptive": ADAPTIVE}
        (tmp_path / "trial.json").write_text(json.dumps(said))
        write_models(tmp_path / "models.parquet", lines or [model(name) for name in NAMES])
        return tmp_path

    return make


LINES = [
    model("defense:mean", table="T", label="mean", seed=0),
    model("defense:drawn", table="T", label="drawn", seed=0, control="mean"),
    model("digits:vit", table="T", label="vit", seed=0),
    model("digits:vit", table="U", label="again", seed=0),
]


def written(directory, names=MADE[1:]):
    return {name: write_board(directory, name) for name in names}


def as_before(directory) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Defenses and images as one plain loop over folders and models, the formulas written out."""

    def expected(samples):
        shares = samples.assign(
            clean=samples["clean_correct"] * samples["weight"],
            left=(samples["clean_correct"] & ~samples["success"]) * samples["weight"],
        )
        keys = ["suite", "target", "attack", "seed", "cell", "sample_id"]
        return shares.groupby(keys, observed=True, sort=False)[["clean", "left"]].sum().reset_index()

    known = {name: model(name) for name in NAMES}
    table = {name: {key: known[name][key] for key in ("defense", "kind", "members")} for name in NAMES}
    images = []
    for part in (*BUDGETS, "white-box"):
        path = "white-box" if part == "white-box" else f"transfer-{part.replace('/', '-')}"
        samples = RunStore(directory / path).read_samples()
        for name in NAMES:
            own = expected(samples[samples["target"] == name])
            n = own["sample_id"].nunique()
            if part == "white-box":
                left = {
                    f"open {attack}": own[own["attack"] == attack].set_index("sample_id")["left"]
                    for attack in (*OPEN, *ADAPTIVE)
                }
                left |= {"open worst": own.groupby("sample_id", observed=True)["left"].min()}
                table[name] |= {"n open": n}
                right = own["clean"].mean()
            else:
                left = {f"transfer {part}": own.groupby("sample_id", observed=True)["left"].min()}
                table[name] |= {"clean": float(own["clean"].mean()), "n": n}
                for measure, values in left.items():
                    low, high = wilson(values.sum(), len(values))
                    table[name] |= {f"{measure} low": low, f"{measure} high": high}
            table[name] |= {measure: float(values.mean()) for measure, values in left.items()}
            if part == BUDGETS[-1]:
                measure = f"transfer {part}"
                table[name][f"right {measure}"] = table[name][measure] / table[name]["clean"]
            elif part == "white-box":
                table[name]["right open worst"] = table[name]["open worst"] / right
            images += [
                values.rename("left").reset_index().assign(defense=name, measure=measure)
                for measure, values in left.items() if len(values)
            ]
    for name in NAMES:
        table[name] |= {key: known[name][key] for key in ("diversity", "shared", "mflops", *TRAINING)}
    found = pd.concat(images, ignore_index=True)
    each = pd.DataFrame(table.values())
    left = found[found["measure"].isin([f"transfer {BUDGETS[-1]}", "open worst"])]
    both = left.pivot_table("left", ["defense", "sample_id"], "measure", observed=True).dropna()
    gap = (both["open worst"] - both[f"transfer {BUDGETS[-1]}"]).clip(lower=0)
    each["missed"] = each["defense"].map(gap.groupby("defense", observed=True).mean())
    return each, found


def test_numbers_columns_and_order_are_those_of_the_formulas(folder):
    directory = folder()
    found = written(directory, ("images", "defenses"))
    each, images = as_before(directory)
    pd.testing.assert_frame_equal(found["images"], images, check_dtype=False, check_exact=True)
    pd.testing.assert_frame_equal(found["defenses"], each, check_dtype=False, check_exact=True)
    for name, frame in found.items():
        pd.testing.assert_frame_equal(read_board(directory, name), frame, check_dtype=False, check_exact=True)
        stored = pd.read_parquet(directory / f"{name}.parquet")
        pd.testing.assert_frame_equal(stored, frame, check_dtype=False, check_exact=True)
    drawn = each.set_index("defense").loc["defense:drawn"]
    assert 0 < drawn["open arc"] < 1
    assert (each["missed"] > 0).any()


def test_of_a_study_every_line_has_a_row_and_the_pool_follows(folder):
    directory = folder(LINES)
    found = written(directory)
    plain, images = as_before(directory)
    lines = pd.DataFrame(LINES)[["table", "label", "members", "seed", "control", "defense"]]
    each = lines.merge(plain.drop(columns="members"), on="defense", how="left", validate="many_to_one")
    pd.testing.assert_frame_equal(found["defenses"], each, check_dtype=False, check_exact=True)
    table = pooled(each, images)
    pd.testing.assert_frame_equal(found["study"], table, check_dtype=False, check_exact=True)
    pd.testing.assert_frame_equal(
        read_board(directory, "study"), table, check_dtype=False, check_exact=True
    )
    for name in MADE:
        assert board_mismatches(directory, name) == []


def test_models_without_lines_make_no_study(folder):
    directory = folder()
    written(directory, ("images", "defenses"))
    with pytest.raises(InputError, match="are no lines of tables"):
        write_board(directory, "study")
    assert board_mismatches(directory, "study") == []


def test_what_follows_from_pairs_is_derived_again(folder):
    directory = folder()
    for change, column in (({"shared": 0.4}, "shared"), ({"diversity": 1.0}, "diversity")):
        write_models(directory / "models.parquet", [model(name, **change) for name in NAMES[:2]])
        assert board_mismatches(directory, "models") == [
            "models.parquet is not what the measured pairs of members give: "
            f"column '{column}', 2 of 2 rows"
        ]
    for pairs in ("[[1.0]]", "{}", "[[1, 2]]", "["):
        write_models(directory / "models.parquet", [model(NAMES[0], pairs=pairs)])
        (said,) = board_mismatches(directory, "models")
        assert said == "models.parquet: column 'pairs' does not hold a square of numbers"


@pytest.mark.parametrize("text", ["{", "[]", '{"budgets": [1], "open": [], "adaptive": []}'])
def test_a_damaged_trial_is_said(folder, text):
    directory = folder()
    (directory / "trial.json").write_text(text)
    (said,) = board_mismatches(directory, "images")
    assert "trial.json is damaged" in said
    with pytest.raises(InputError):
        write_board(directory, "images")


def test_files_below_that_are_missing_are_named(folder):
    directory = folder(LINES)
    written(directory)
    (directory / "images.parquet").unlink()
    assert board_mismatches(directory, "images") == ["images.parquet is missing"]
    assert "holds no images.parquet" in board_mismatches(directory, "defenses")[0]
    (directory / "models.parquet").unlink()
    assert board_mismatches(directory, "models") == ["models.parquet is missing"]


def test_other_folders_have_no_defenses(tmp_path):
    for name in MADE:
        assert board_mismatches(tmp_path, name) == []
        with pytest.raises(InputError):
            write_board(tmp_path, name)


def test_a_table_that_was_copied_from_elsewhere_is_a_mismatch(folder, tmp_path):
    directory = folder()
    frame = written(directory, ("images", "defenses"))["defenses"]
    other = tmp_path / "other"
    other.mkdir()
    write_table(other / "defenses.parquet", to_table("defenses", frame))
    (said,) = board_mismatches(other, "defenses")
    assert said == "defenses.parquet: no board of this kind follows from what is stored here"


def test_the_worst_is_of_each_image():
    """Two attacks that break disjoint halves leave nothing."""
    own = pd.DataFrame([
        {"attack": attack, "sample_id": f"{i}", "left": float((i < 5) == (attack == "a"))}
        for attack in "ab" for i in range(10)
    ])  # fmt: skip
    left = white_box(own, ["a", "b"])
    assert {name: values.mean() for name, values in left.items()} == {
        "open a": 0.5, "open b": 0.5, "open worst": 0.0
    }
