"""The tables of the catalogue of attacks: as their pages show them, and as their numbers say."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from advens.attacks import create_attack
from advens.benchmarks.studies.catalogue import TABLES, claims, places
from advens.results.boards.front import front, lettered
from advens.results.boards.kept import CATALOGUE, read
from advens.results.boards.outcomes import Contributions

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reference" / "tables" / "catalogue.md").read_text(encoding="utf-8")


@cache
def outcomes() -> tuple[Contributions, pd.DataFrame]:
    return read(CATALOGUE)


@cache
def placed() -> pd.DataFrame:
    return places(*outcomes())


@cache
def judged() -> pd.DataFrame:
    return claims(outcomes()[0])


@pytest.mark.parametrize("what", TABLES)
def test_the_page_holds_what_the_kept_outcomes_give(what: str) -> None:
    file = CATALOGUE.with_name(f"digits-catalogue-{what}.md")
    assert f"results/reference/{file.name}\n" in PAGE
    assert file.read_text(encoding="utf-8") == TABLES[what](*outcomes())


def test_what_the_page_says_of_published_rankings() -> None:
    found = judged().set_index(["surrogates", "attack"])
    assert len(found) == 60
    confirmed = found[found["models"] == "confirmed"]["base"]
    assert dict(confirmed.loc["cnn"]) == {
        "pifgsm": "mifgsm", "gra": "vmifgsm", "anda": "mifgsm", "mumodig": "mig", "difgsm": "mifgsm",
        "dem": "difgsm", "decowa": "mifgsm", "l2t": "mifgsm", "bsr": "mifgsm", "mfi": "mifgsm",
    }  # fmt: skip
    assert len(confirmed) == 10
    assert (found["these"] == "confirmed").sum() == 24
    assert list(found.index[found["models"] == "reversed"]) == [("cnn", "tifgsm")]
    assert {name for _, name in found.index[found["these"] == "reversed"]} == {"tifgsm", "nifgsm", "mef"}
    points = found.loc["cnn", ["published", "difference"]] * [1, 100]
    assert list(points.loc["tifgsm"].round()) == [-3, 27]
    names = ["rap", "ops", "emifgsm", "ilpd", "bfa"]
    assert list(points.loc[names, "published"].round()) == [24, 62, 24, 35, 41]
    assert list(points.loc[names, "difference"].round()) == [-4, 10, 3, 4, 2]


def test_ti_is_above_mi_on_every_target() -> None:
    parts = outcomes()[0]
    ti, mi = (
        parts.value[parts.rows.query(f"attack == '{name} at 120 passes' and surrogates == 'cnn'").index[0]]
        for name in ("tifgsm", "mifgsm")
    )
    assert (np.nanmean(ti, axis=1) > np.nanmean(mi, axis=1)).all()


def test_rap_has_two_steps_of_its_own() -> None:
    attack = create_attack("rap", steps=102)
    assert attack.passes(1).backward == 118
    late = attack.estimator.late
    assert 102 - late == 2


def test_what_the_page_says_of_the_agreement() -> None:
    assert "0.51 over 57 attacks on `cnn`" in TABLES["rankings"](*outcomes())
    assert "-0.20 over 6 attacks on `vit`" in TABLES["rankings"](*outcomes())


def rate(attack: str, surrogates: str = "cnn") -> str:
    rows = placed()[(placed()["attack"] == attack) & (placed()["surrogates"] == surrogates)]
    (found,) = rows["mean_asr"]
    return f"{100 * found:.1f}"


def test_what_the_page_says_of_the_fronts() -> None:
    assert [rate("pifgsm"), rate("mifgsm"), rate("tifgsm", "vit")] == ["46.9", "19.1", "35.7"]
    table = placed()
    for surrogates, rows in table.groupby("surrogates"):
        assert rows.nlargest(3, "mean_asr")["name"].iloc[0] == "dem"
        first = rows[rows["backwards_per_sample"] <= 10].nlargest(1, "mean_asr")["name"].iloc[0]
        assert first == {"cnn": "pifgsm", "vit": "tifgsm"}[surrogates]
        others = rows[~rows["name"].isin(["dem", "dem, steps of eps/T"])]
        published = rows[(rows["name"] == "dem") & rows["budget"].isna()]["mean_asr"].item()
        assert others["mean_asr"].max() < published
    assert table["backwards_per_sample"].max() == 2800
    steps = ["dem at 120 passes", "dem, steps of eps/T at 120 passes", "difgsm at 120 passes",
             "difgsm, steps of eps at 120 passes"]  # fmt: skip
    assert [rate(name) for name in steps] == ["60.8", "56.1", "40.3", "48.1"]
    equal = table[(table["surrogates"] == "cnn") & table["budget"].notna()]["mean_asr"]
    assert [f"{100 * end:.1f}" for end in (equal.min(), equal.max())] == ["4.5", "60.8"]


def test_what_the_readme_says_of_the_fronts() -> None:
    said = (
        "`pifgsm` leads at 10 and at 40 backward passes an image (46.9 %, group b), `dem` from 50 on "
        "(60.5 %, group a), at 120 and 400 too."
    )
    assert said in " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    board = placed()[placed()["surrogates"] == "cnn"]
    for budget, names in ((10, ["pifgsm"]), (40, ["pifgsm"]), (120, ["pifgsm", "dem", "dem"]),
                          (400, ["pifgsm", "dem", "dem"])):  # fmt: skip
        assert list(front(board, budget)["name"]) == names
    found = lettered(front(board, 120), outcomes()[0])
    assert list(found["models_group"]) == list(found["group"]) == ["b", "a", "a"]
    assert rate("dem") == "60.5"
