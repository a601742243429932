"""Sentences say what the board says, and no more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advens.results.report.collect import (
    Attacked,
    Cell,
    Check,
    Defenses,
    Left,
    Line,
    Part,
    Rate,
    Recipe,
    Robustness,
    Transfer,
)
from advens.results.report.findings import baseline, of_defenses, of_robustness, of_transfer, terms
from tests.results.report.conftest import PLAIN, row, transfer


def said(made: Transfer) -> dict[str, str]:
    return {finding.about: finding.text for finding in of_transfer(made, Part("", transfer=made))}


def test_the_first_row_and_both_intervals() -> None:
    text = said(transfer([row(1, 0.5)]))["Strongest transfer"]
    assert text == (
        "attack-1 on cnns has the highest mean success rate over 6 held-out targets: 50.0 % of the images. "
        "For new models and new images the 95 % interval is 10.0–90.0 %; for these targets and new images it "
        "is 30.0–60.0 %."
    )
    assert "Told apart" not in said(transfer([row(1, 0.5)]))


def test_told_apart_from_the_next() -> None:
    text = said(transfer([row(1, 0.5), row(2, 0.3, p_first=0.003, these_letters="b")]))["Told apart"]
    assert "20.0 points behind" in text
    assert "For new models and new images they are told apart (p = 0.003" in text
    assert "For these very targets they are told apart" in text


def test_not_told_apart() -> None:
    text = said(transfer([row(1, 0.5), row(2, 0.49, p_first=0.4), row(3, 0.4, p_first=0.2)]))["Told apart"]
    assert "cannot be told apart (p = 0.4" in text
    assert "the same holds of 1 more of the 2 rows" in text
    assert "For these very targets they cannot be told apart" in text


def test_below_five_targets_nothing_is_said_of_new_models() -> None:
    rows = [
        row(1, 0.5, new=Rate(0.5), p_first=None, ranks=None, new_letters="", targets=4),
        row(2, 0.3, new=Rate(0.3), p_first=None, ranks=None, new_letters="", these_letters="b", targets=4),
    ]  # fmt: skip
    found = said(transfer(rows, [[0.5] * 4] * 2, out_of_reach=True))
    assert "nothing can be said of new models" in found["Strongest transfer"]
    assert all("For new models" not in text for text in found.values())
    assert "For these targets and new images they are told apart" in found["Told apart"]


def test_rows_over_other_targets_are_not_compared() -> None:
    rows = [row(1, 0.5), row(2, 0.3, p_first=None, these_letters="b", new_letters="b")]
    found = said(transfer(rows, held_out=None))
    assert "not compared" in found["Told apart"]
    assert "over its own 6 held-out targets" in found["Strongest transfer"]


def test_no_held_out_target() -> None:
    made = transfer([row(1, None, new=Rate(None), targets=0)])
    (only,) = of_transfer(made, Part("", transfer=made))
    assert "No target is held out" in only.text


def test_a_cheaper_row_that_is_as_good() -> None:
    rows = [
        row(1, 0.5, forwards=40.0, backwards=40.0), row(2, 0.45, p_first=0.01),
        row(3, 0.4, p_first=0.3), row(4, 0.3, p_first=0.2, forwards=20.0),
    ]  # fmt: skip
    text = said(transfer(rows))["Cost"]
    assert "takes 40 forward and 40 backward passes per image" in text
    assert "attack-3 on cnns, which cannot be told apart from it for new models, takes 25 % of that" in text


def test_without_one_the_share_of_the_next() -> None:
    text = said(transfer([row(1, 0.5, forwards=40.0, backwards=40.0), row(2, 0.45, p_first=0.01)]))["Cost"]
    assert text.endswith("attack-2 on cnns takes 25 % of that.")
    assert "told apart" not in text


def test_the_hardest_target_is_named_with_its_interval() -> None:
    text = said(transfer([row(1, 0.5), row(2, 0.3)], [[0.9, 0.2, 0.4], [0.8, 0.25, 0.3]]))["Hardest target"]
    assert text.startswith("Of the held-out targets t1 withstands most")
    assert "more than 25.0 % [20.0–30.0] of the images (attack-2 on cnns)" in text
    assert "Next is t2, where attack-1 on cnns reaches 40.0 % [35.0–45.0]." in text
    text = said(transfer([row(1, 0.5)], [[0.9, 0.2, 0.22]]))["Hardest target"]
    assert "the order of the two is open" in text


def test_white_box_targets_are_not_hard() -> None:
    made = transfer([row(1, 0.5)], [[0.1, 0.5, 0.6]])
    white = Cell(Rate(0.1, 0.0, 0.2), 100, 1.0, 0.9, 0.1, True, False)
    made = replace(made, cells=((white, *made.cells[0][1:]),), held_out=("m:t1", "m:t2"))
    assert said(made)["Hardest target"].startswith("Of the held-out targets t1 ")


def test_the_plain_baseline() -> None:
    strong = row(1, 0.5, recipe=Recipe((), (), '{"transforms": [{"name": "di"}]}'))
    made = transfer([strong, row(2, 0.4, surrogates="vits", set="vits"), row(3, 0.3, p_first=0.04)])
    assert baseline(made) is made.rows[2]
    assert said(made)["Plain baseline"] == (
        "The plain attack-3 on cnns stands at rank 3 with 30.0 %, 20.0 points behind the first; for new "
        "models and new images it is told apart from it (p = 0.04)."
    )
    assert "is the plain baseline itself" in said(transfer([row(1, 0.5), row(2, 0.3)]))["Plain baseline"]


@pytest.mark.parametrize("changed", [
    {"transforms": [{"name": "di"}]}, {"filters": [{"name": "ti"}]}, {"fusion": {"name": "svre"}},
    {"estimator": {"name": "vmi"}}, {"name": "apgd"},
])  # fmt: skip
def test_what_is_not_plain(changed: dict[str, object]) -> None:
    import json

    recipe = Recipe((), (), json.dumps(PLAIN | changed, sort_keys=True))
    assert baseline(transfer([row(1, 0.5, recipe=recipe)])) is None


def left(attack: str, value: float, letters: str, **given: object) -> Left:
    known = dict.fromkeys(list(Left.__dataclass_fields__)[4:]) | given
    return Left(attack, Rate(value, value - 0.1, value + 0.1), letters, 50, **known)  # type: ignore[arg-type]


def test_robust_accuracy() -> None:
    attacks = (left("pgd", 0.6, "a"), left("apgd", 0.5, "b"), left("pma", 0.45, "b", converged=False))
    model = Attacked("m:r", "r", 50, 0.9, attacks, Rate(0.4, 0.3, 0.5))
    check = Check("r", "steps", False, 3.0, 1.0, "")
    part = Part("", robustness=Robustness((model,), ("r: masked",), (check, replace(check, passed=True))))
    found = {finding.about: finding.text for finding in of_robustness(part)}
    text = found["Robust accuracy"]
    assert "r keeps 40.0 % [30.0–50.0] of all 50 images right under the worst of 3 attacks" in text
    assert "right on 90.0 %" in text
    assert "pma (45.0 %); one attack cannot be told apart from it" in text
    assert "not converged" in text
    assert found["Sanity report"].startswith("One check of the sanity report failed (r): ")
    assert found["Warnings"].startswith("One warning should be read")


def line(label: str, value: float, letters: str, trainings: int = 5) -> Line:
    rates = {"transfer 0.1": Rate(value, value - 0.1, value + 0.1), "open worst": Rate(value)}
    return Line(label, "mean", "", 3, trainings, rates, {}, {"transfer 0.1": letters} if letters else {})


@pytest.mark.parametrize(("letters", "words"), [
    (("a", "b"), "told apart from one other line trained with about as much compute"),
    (("a", "ab"), "One other line trained with about as much compute cannot be told apart"),
    (("a2", "a1"), "No other line was trained with about as much compute"),
    (("a2", "b2", "a1", "a2"), "Of two other lines trained with about as much compute, one line cannot"),
    (("", ""), "No other line was trained with about as much compute"),
])  # fmt: skip
def test_defenses(letters: tuple[str, ...], words: str) -> None:
    lines = tuple(line(f"l{k}", 0.6 - 0.1 * k, own) for k, own in enumerate(letters))
    found = of_defenses(Defenses({"T": lines}, ("0.1",), (), (), True))
    begin = "Table T: l0 of 3 keeps most under transferred images: 60.0 % [50.0–70.0]"
    assert found[0].text.startswith(begin)
    assert words in found[0].text


@pytest.mark.parametrize(("pooled", "words"), [
    (True, "fewer than 5 trainings"), (False, "nothing is said of the defense trained again"),
])  # fmt: skip
def test_defenses_that_were_trained_too_rarely(pooled: bool, words: str) -> None:
    lines = (line("plain", 0.3, "", 3), line("dverge", 0.6, "", 3))
    assert words in of_defenses(Defenses({"T": lines}, ("0.1",), (), (), pooled))[0].text


def test_lines_that_keep_the_same_share_the_sentence() -> None:
    (found, _) = of_defenses(Defenses({"": (line("a", 0.3, ""), line("b", 0.3, ""))}, ("0.1",), (), (), True))
    assert found.text.startswith("a of 3 and b of 3 keep the same and most under transferred images: 30.0 %")


def test_terms_for_those_who_are_new() -> None:
    models = tuple(f"m:{name}" for name in "abc")
    made = row(1, 0.5, set="trio", recipe=replace(row(1, 0.5).recipe, surrogates=models))
    part = Part("", transfer=transfer([made, row(2, 0.4)]))
    said = "The set trio is a, b and c. It succeeds on an image that a target classifies correctly"
    assert said in terms(part)
    assert "gives the class that the attacker wants" in terms(replace(part, targeted=True))
    many = replace(made, recipe=replace(made.recipe, surrogates=models * 3))
    assert "The set trio has 9 of them." in terms(replace(part, transfer=transfer([many])))
    assert "The set" not in terms(replace(part, transfer=transfer([row(1, 0.5)])))
    assert terms(Part("")) == ""


def test_the_cheapest_of_the_strongest_attacks_is_named() -> None:
    def left(attack: str, rate: float) -> Left:
        numbers = (10, 1.0, 1.0, 1.0, 1.0, 1.0, None, None, None)
        return Left(attack, Rate(rate, 0.0, 0.3), "a", *numbers)

    model = Attacked("m:r", "r", 10, 1.0, (left("a", 0.2), left("b", 0.0), left("c", 0.0)), Rate(0.0, 0, 0.3))
    (found,) = of_robustness(Part("", robustness=Robustness((model,), (), ())))
    assert "No attack alone leaves less than b (0.0 %)" in found.text
