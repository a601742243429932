"""What each image says about each attack on each target, against one loop over the rows."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from advens.errors import InputError, RunError
from advens.results.boards.outcomes import (
    compared_targets,
    contributions,
    expected,
    held_out_names,
    over,
    sizes,
    target_families,
)

TARGETS = ["zoo:b", "zoo:a", "zoo:drawn"]


@pytest.fixture
def samples(rows):
    """Two attacks, one on two sets; two seeds; a target that draws one of two members; gaps."""
    rng = np.random.default_rng(0)
    made = []
    for attack, surrogates in (("pgd", "one"), ("cwa", "two"), ("cwa", "one")):
        for target in TARGETS:
            for seed in (0, 3):
                for i in range(6):
                    if (attack, target, i) == ("cwa", "zoo:a", 5) or (surrogates, target) == ("two", "zoo:b"):
                        continue
                    members = ((0, 0.25), (1, 0.75)) if target == "zoo:drawn" else ((None, 1.0),)
                    made += [
                        {"attack": attack, "surrogates": surrogates, "target": target, "seed": seed,
                         "sample_id": f"s{5 - i}", "member": member, "weight": weight,
                         "clean_pred": 1 + int(i > 2 and rng.random() < 0.3),
                         "adv_pred": 1 + int(rng.random() < 0.6),
                         "white_box": target == "zoo:b" and attack == "pgd", "cell": f"{attack}-{seed}"}
                        for member, weight in members
                    ]  # fmt: skip
    return rows(made)


def plain(samples: pd.DataFrame, denominator: str) -> dict[tuple[str, ...], float]:
    """(attack, surrogates, target, image) to the rate, over rows that count."""
    listed = samples.to_dict(orient="records")
    everywhere = {
        image for image in {row["sample_id"] for row in listed}
        if all(row["clean_pred"] == 1 for row in listed if row["sample_id"] == image)
        and all(any(row["sample_id"] == image and row["target"] == t for row in listed) for t in TARGETS)
    }
    sums: dict[tuple[str, ...], list[float]] = {}
    for row in listed:
        right = row["clean_pred"] == 1
        counts = {"target": right, "all": True, "common": row["sample_id"] in everywhere}[denominator]
        broken = row["adv_pred"] != 1 if denominator == "all" else right and row["adv_pred"] != 1
        if counts:
            key = (row["attack"], row["surrogates"], row["target"], row["sample_id"])
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += broken * row["weight"]
            total[1] += row["weight"]
    return {key: broken / weight for key, (broken, weight) in sums.items()}


@pytest.mark.parametrize("categorical", [False, True])
@pytest.mark.parametrize("denominator", ["target", "all", "common"])
def test_every_value(samples, denominator, categorical):
    if categorical:  # as they are read from files, with categories that no row has
        for name in ("suite", "attack", "surrogates", "target"):
            kinds = ["zzz", *sorted(set(samples[name]), reverse=True), "aaa"]
            samples[name] = pd.Categorical(samples[name], categories=kinds)
    found, wanted = contributions(samples, denominator), plain(samples, denominator)
    assert found.rows.to_dict(orient="list") == {
        "suite": ["s"] * 3, "attack": ["cwa", "cwa", "pgd"], "surrogates": ["one", "two", "one"],
    }  # fmt: skip
    assert found.targets == ["zoo:a", "zoo:b", "zoo:drawn"]
    assert found.samples == [f"s{i}" for i in range(6)]
    seen = 0
    for r, (attack, surrogates) in enumerate([("cwa", "one"), ("cwa", "two"), ("pgd", "one")]):
        for t, target in enumerate(found.targets):
            own = samples[(samples["attack"] == attack) & (samples["surrogates"] == surrogates)
                          & (samples["target"] == target)]  # fmt: skip
            there = len(own) > 0
            assert found.evaluated[r, t] == there
            assert found.seeds[r, t] == 2 * there
            assert found.white_box[r, t] == (attack == "pgd" and target == "zoo:b")
            assert found.held_out[r, t] == (there and not found.white_box[r, t])
            weight = own["weight"].sum()
            right, stands = own["clean_pred"] == 1, own["adv_pred"] == 1
            for rates, flag in (
                (found.clean_accuracy, right), (found.robust_accuracy, right & stands),
                (found.error_rate, ~stands),
            ):  # fmt: skip
                rate = (own["weight"] * flag).sum() / weight if there else math.nan
                assert rates[r, t] == pytest.approx(rate, nan_ok=True)
            for n, image in enumerate(found.samples):
                value = wanted.get((attack, surrogates, target, image), math.nan)
                assert found.value[r, t, n] == pytest.approx(value, nan_ok=True)
                seen += not math.isnan(value)
    assert seen == len(wanted) > 0
    assert len({value for value in wanted.values() if 0 < value < 1}) > 0


def test_targeted_attacks_count_all_images(rows):
    made = rows([
        {"sample_id": "a", "target_label": 5, "clean_pred": 1, "adv_pred": 5},
        {"sample_id": "b", "target_label": 5, "clean_pred": 2, "adv_pred": 5},
        {"sample_id": "c", "target_label": 5, "clean_pred": 1, "adv_pred": 3},
        {"sample_id": "d", "target_label": 5, "clean_pred": 2, "adv_pred": 2},
    ])  # fmt: skip
    wanted = {"target": [1, 1, 0, 0], "all": [1, 1, 0, 0], "common": [1, None, 0, None]}
    for denominator, values in wanted.items():
        found = contributions(made, denominator).value[0, 0].tolist()
        assert [None if math.isnan(value) else value for value in found] == values


def test_an_image_that_is_there_twice_is_refused(rows):
    row = {"attack": "pgd", "surrogates": "one", "target": "zoo:a", "seed": 2}
    made = rows([
        {**row, "sample_id": "x", "cell": "c1"}, {**row, "sample_id": "y", "cell": "c2"},
        {**row, "sample_id": "y", "cell": "c0"}, {**row, "sample_id": "x", "seed": 1, "cell": "c3"},
    ])  # fmt: skip
    with pytest.raises(RunError) as error:
        contributions(made)
    assert str(error.value) == (
        "sample 'y' appears twice for attack 'pgd' on 'one' against 'zoo:a', seed 2 (cells c0 and c2): two "
        "settings share one directory; give each its own directory or its own label"
    )
    with pytest.raises(InputError, match="unknown denominator 'targt'; did you mean 'target'"):
        contributions(made, "targt")


def test_families(rows):
    """What draws is randomized, what was trained adversarially robust; else the architecture, if known."""
    about = [
        ("zoo:net", "vit", None), ("zoo:net-at", "vit", None), ("zoo:net-at?x=1", "cnn", None),
        ("robustbench:x", "cnn", None), ("zoo:many-at", "cnn", 0), ("zoo:new", None, None),
        ("zoo:at-net", "hybrid", None), ("zoo:net?to=-at", "cnn", None),
    ]  # fmt: skip
    made = rows([
        {"target": name, "target_family": family, "member": member, "sample_id": f"{i}"}
        for i in range(2) for name, family, member in about
    ])  # fmt: skip
    names = [name for name, _, _ in about]
    place = np.array([names.index(name) for name in made["target"]])
    assert target_families(made, place, names) == [
        "vit", "robust", "robust", "robust", "randomized", "", "hybrid", "cnn"
    ]


def test_the_expectation_over_members(rows):
    made = rows([
        {"sample_id": "a", "member": 0, "weight": 0.25, "clean_pred": 1, "adv_pred": 2},
        {"sample_id": "a", "member": 1, "weight": 0.75, "clean_pred": 1, "adv_pred": 1},
        {"sample_id": "b", "member": 0, "weight": 0.25, "clean_pred": 2, "adv_pred": 1},
        {"sample_id": "b", "member": 1, "weight": 0.75, "clean_pred": 1, "adv_pred": 2},
    ])  # fmt: skip
    found = expected(made)
    assert found["sample_id"].tolist() == ["a", "b"]
    assert found["clean"].tolist() == [1.0, 0.75]
    assert found["left"].tolist() == [0.75, 0.0]
    assert {"suite", "target", "attack", "seed", "cell"} <= set(found)


@pytest.mark.parametrize(
    ("held_out", "used", "common"),
    [
        ([[1, 1, 0], [0, 1, 1]], [[0, 1, 0], [0, 1, 0]], True),
        ([[1, 1, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]], True),  # one without any is left alone
        ([[1, 0, 0], [0, 1, 1]], [[1, 0, 0], [0, 1, 1]], False),
        ([[0, 0], [0, 0]], [[0, 0], [0, 0]], False),
    ],
)
def test_targets_that_are_compared(held_out, used, common):
    given = np.array(held_out, bool)
    found, same = compared_targets(given)
    assert found.astype(int).tolist() == used
    assert same is common
    assert found is not given


def test_captions():
    assert held_out_names(None, "others") == "others"
    assert held_out_names(["zoo:a"], "others") == "the 1 target held out from every row (a)"
    both = held_out_names(["zoo:a", "zoo:b"], "others")
    assert both == "the 2 targets held out from every row (a, b)"
    assert sizes(pd.Series([7, 7])) == "7"
    assert sizes(pd.Series([9, 7, 8])) == "7 to 9"
    assert over("all") == "all images, misclassified before or not"
    assert over("of another package") == "the denominator's images"
