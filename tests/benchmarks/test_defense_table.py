"""The tables of defenses: as their page shows them, and as their numbers say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from advens.results.boards import BOARDS
from advens.results.display.render import laid_out, render_board
from advens.results.statistics import LEAST_TRAININGS

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "digits-defenses.csv"
PAGE = ROOT / "docs" / "reference" / "tables" / "defenses.md"
SHOWN = {
    "Members that differ": (
        "defense", "members", "clean", "transfer 0.05", "transfer 0.1", "transfer 0.15", "transfer 0.2",
        "pgd", "shared",
    ),
    "Adversarially trained members": (
        "defense", "members", "clean", "transfer 0.2", "pgd", "pma", "adaptive-pgd", "arc", "worst", "MFLOP",
    ),
}  # fmt: skip
"""Columns of the tables on the page."""


def table() -> pd.DataFrame:
    return pd.read_csv(REFERENCE, keep_default_na=False, na_values=[""]).fillna(
        {"transfer 0.2 group": "", "open worst group": ""}
    )


def test_the_page_holds_the_reference() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for part in laid_out(BOARDS.get("study"), table()):
        by = {column.header: column.cells for column in (*part.keys, *part.columns)}
        chosen = [by[header] for header in SHOWN[part.title]]
        for cells in zip(*chosen, strict=True):
            assert "| " + " | ".join(cells) + " |" in page
    assert f"results/reference/{REFERENCE.stem}.md\n" in page
    assert REFERENCE.with_suffix(".md").read_text() == render_board("study", table(), "markdown")


def test_too_few_trainings_have_no_letters() -> None:
    found = table()
    few = found["trainings"] < LEAST_TRAININGS
    assert few.all()
    assert (found.loc[few, ["transfer 0.2 group", "open worst group"]] == "").all(axis=None)


def test_what_the_page_says_of_it() -> None:
    found = table().set_index(["label", "members"])
    transfer, worst = found["transfer 0.2"], found["open worst"]
    assert max(transfer["plain"]) - min(transfer["plain"]) < 0.01
    assert transfer["dverge"].is_monotonic_increasing
    differ = found[found["table"] == "Members that differ"]
    for eps in ("0.1", "0.15"):
        assert differ[f"transfer {eps}"].idxmax() == ("dverge", 8)
    low, high = found["transfer 0.2 low"], found["transfer 0.2 high"]
    assert low["trs", 3] < high["dverge", 8]
    assert low["dverge", 8] < high["trs", 8]
    assert (found.loc["trs", "clean"] < min(found.loc["dverge", "clean"])).all()
    assert max(differ["open worst"]) < 0.05
    assert found.loc[("trs", 3), "open pgd"] - found.loc[("trs", 3), "open pma"] > 0.1

    low, high = found["open worst low"], found["open worst high"]
    assert round(100 * (worst["iat", 4] - worst["iat", 1])) == 4
    assert low["iat", 4] < high["iat", 1]
    assert low["mrboost", 4] < high["barre", 4]
    assert round(found.loc[("mrboost", 4), "mflops"] / found.loc[("barre", 4), "mflops"]) == 4
    drawn = found[found["kind"] == "randomized"]
    gaps = drawn[["open arc", "open adaptive-pgd"]].sub(drawn["open pma"], axis=0)
    assert round(100 * gaps.min().min()) == 6
    assert round(100 * gaps.max().max()) == 13
