"""The table of builders: as the README shows it, and as its numbers say."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "results" / "reference" / "digits-builders.csv"
README = (ROOT / "README.md").read_text()


def test_the_readme_holds_the_reference() -> None:
    full = REFERENCE.with_suffix(".md").read_text()
    for row in pd.read_csv(REFERENCE).itertuples():
        rate = f"{100 * row.mean_asr:.1f} [{100 * row.asr_low:.1f}–{100 * row.asr_high:.1f}]"
        assert f"| {row.surrogates} | {row.attack} | {rate} | {row.group} |" in README
        assert f"| {row.group} | {row.attack} | {row.surrogates} | {rate} |" in full


def test_what_the_readme_says_of_it() -> None:
    table = pd.read_csv(REFERENCE).set_index(["surrogates", "attack"]).sort_index()
    rate = table["mean_asr"]
    plain = rate["resnet", "mi-cycle"]
    assert rate["lgv 0.2", "mi-cycle"] > 3 * plain
    assert round(100 * (rate["lgv 0.05", "mi-cycle"] - plain)) == 3
    assert round(100 * (rate["lgv 0.2", "mi-cycle"] - plain)) == 35
    assert rate["lgv-swa", "mi-cycle"] > 0.9 * rate["lgv 0.2", "mi-cycle"]
    vits = set(table["group"]["vits", "vit-ensemble"])
    for name in ("head-drop", "score-scale", "token-mix", "all", "unsearched"):
        assert vits & set(table["group"][name, "vit-ensemble"])
    for label in ("without reweighting", "without enlargement"):
        assert vits & set(table["group"]["all", label])
