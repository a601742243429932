"""The table of white-box attacks: as its page shows it, and as its numbers say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "digits-whitebox.csv"
PAGE = ROOT / "docs" / "reference" / "tables" / "white-box.md"


def test_the_page_holds_the_reference() -> None:
    shown = REFERENCE.with_suffix(".md").read_text().strip()
    assert f"results/reference/{REFERENCE.stem}.md\n" in PAGE.read_text(encoding="utf-8")
    for row in pd.read_csv(REFERENCE).itertuples():
        accuracy = f"{100 * row.robust_accuracy:.1f} [{100 * row.low:.1f}–{100 * row.high:.1f}]"
        model = str(row.model).removeprefix("digits:")
        assert f"| {model} | {row.attack} | {accuracy} |" in shown


def test_what_the_page_says_of_it() -> None:
    table = pd.read_csv(REFERENCE).set_index(["model", "attack"])
    for model, short in (("digits:vit-at", 0.028), ("digits:resnet-at", 0.038)):
        found = table.loc[model]
        auto, pma, plus = (found.loc[name] for name in ("autoattack", "pma", "pma-plus"))
        assert abs(pma["robust_accuracy"] - auto["robust_accuracy"] - short) < 1e-9
        assert pma["total_forwards"] < auto["total_forwards"] / 30
        assert pma["total_backwards"] < auto["total_backwards"] / 8
        assert plus["total_forwards"] < auto["total_forwards"] / 6
        assert set(plus["group"]) & set(auto["group"])
        for stage in ("apgd-ce+apgd-t+fab-t", "autoattack"):
            assert found.loc[stage, "robust_accuracy"] == found.loc["apgd-ce+apgd-t", "robust_accuracy"]
