"""The tables of defenses: as their page shows them, and as their numbers say."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from advens.benchmarks.studies.training import TABLES
from advens.results.boards.board import read_board
from advens.results.boards.defenses import pooled
from advens.results.statistics import LEAST_TRAININGS

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "digits-defenses"
PAGE = ROOT / "docs" / "reference" / "tables" / "defenses.md"
TRANSFER, WORST = "transfer 0.2", "open worst"


@cache
def boards() -> tuple[pd.DataFrame, pd.DataFrame]:
    return read_board(REFERENCE, "defenses"), read_board(REFERENCE, "images")


@cache
def lines() -> pd.DataFrame:
    return pooled(*boards()).fillna({"control": ""}).set_index(["label", "members"])


@cache
def compute() -> dict[tuple[str, int], dict[str, str]]:
    """The cells of the table of compute, by defense and members."""
    found, header = {}, None
    for line in TABLES["compute"](*boards()).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "defense":
            header = cells
        elif line.startswith("|") and header and cells[0] != "---":
            found[cells[0], int(cells[1])] = dict(zip(header, cells, strict=True))
    return found


def beside_control(name: tuple[str, int], measure: str) -> tuple[float, bool]:
    """The difference of a line from its control in points, and whether the two are told apart."""
    cell = compute()[name][f"{measure}, minus control"]
    return float(cell.split()[0]), cell.endswith("*")


@pytest.mark.parametrize(("which", "file"), [("lines", "digits-defenses.md"),
                                             ("compute", "digits-defenses-compute.md")])  # fmt: skip
def test_the_page_holds_what_the_kept_outcomes_give(which: str, file: str) -> None:
    assert f"results/reference/{file}\n" in PAGE.read_text(encoding="utf-8")
    assert REFERENCE.with_name(file).read_text(encoding="utf-8") == TABLES[which](*boards())


def test_every_line_has_enough_trainings_and_every_defense_a_control() -> None:
    found = lines()
    assert (found["trainings"] >= LEAST_TRAININGS).all()
    boosted = [name for name in found.index if name[0] in ("mrboost", "barre", "iat", "dverge", "gal", "trs")]
    for name in boosted:
        control = next(found.loc[other] for other in found.index if other[0] == found.loc[name, "control"])
        passes = [row["train_forwards"] + row["train_backwards"] for row in (found.loc[name], control)]
        assert max(passes) / min(passes) < 1.1


def test_what_the_page_says_of_members_that_differ() -> None:
    found = lines()
    differ = found[found["table"] == "Members that differ"]
    gains = [beside_control(name, TRANSFER) for name in differ.index if found.loc[name, "control"]]
    assert all(apart for _, apart in gains)
    assert [round(f([gain for gain, _ in gains])) for f in (min, max)] == [8, 23]
    assert "keep 8 to 23 points more under transfer" in (ROOT / "README.md").read_text(encoding="utf-8")
    transfer = {name: f"{100 * rate:.1f}" for name, rate in found[TRANSFER].items()}
    assert (transfer["dverge", 3], transfer["dverge", 5]) == ("62.1", "69.8")
    assert found.loc[("dverge", 3), f"{TRANSFER} group"] == found.loc[("trs", 3), f"{TRANSFER} group"]
    assert (differ[WORST] < 0.0005).all()
    left = found.loc[("dverge", 5)]
    assert [round(100 * left[f"open {name}"]) for name in ("apgd-t", "arc")] == [14, 26]
    assert round(100 * max(left["open pma-members"], left["open apgd-ce"])) == 0


def test_what_the_page_says_of_adversarially_trained_members() -> None:
    found = lines()
    for name, transfer in (("mrboost", -8.4), ("barre", -5.4)):
        assert beside_control((name, 3), TRANSFER) == (transfer, True)
        assert not beside_control((name, 3), "worst")[1]
    groups = found[f"{WORST} group"]
    assert not set(groups["mrboost", 3]) & set(groups["mrboost, member 3 alone", 1]) - set("0123456789")
    assert groups["barre", 3] == groups["barre, member 3 alone", 1]
    adversarial = ("dverge, adversarial", 3)
    assert not beside_control(adversarial, TRANSFER)[1]
    difference, apart = beside_control(adversarial, "worst")
    assert (round(difference), apart) == (-8, False)
    difference, apart = beside_control(("trades", 1), "worst")
    assert (round(difference), apart) == (3, False)
    assert not beside_control(("at, awp", 1), "worst")[1]
    assert groups["at", 1] == groups["at, ema", 1]


def test_what_the_page_says_of_longer_adversarial_training() -> None:
    found = lines()
    for measure, short, long in (("clean", 94.8, 98.1), (TRANSFER, 78.6, 88.0), (WORST, 53.9, 58.0)):
        rates = found[measure]
        assert (round(100 * rates["at", 1], 1), round(100 * rates["at, 286 epochs", 1], 1)) == (short, long)
    alone = found[found["table"] == "Adversarially trained members"][WORST]
    assert alone.idxmax() == ("at, 127 epochs", 1)
    passes = found["train_forwards"]
    assert [round(passes[label, 1] / epochs) for label, epochs in
            (("at, 127 epochs", 127), ("at, 189 epochs", 189))] == [7, 4]  # fmt: skip


def test_what_the_page_says_of_randomized_ensembles() -> None:
    found = lines()
    drawn = found[found["kind"] == "randomized"]
    assert drawn["mflops"].to_numpy() == pytest.approx(found.loc[("at", 1), "mflops"])
    assert round(found.loc[("mrboost", 3), "mflops"] / found.loc[("barre", 3), "mflops"]) == 3
    gaps = 100 * (drawn["open arc"] - drawn["open pma-members"])
    assert [round(gaps.min()), round(gaps.max())] == [9, 10]
