"""The table of fusions: from runs, from the file kept of them, and as it stands on its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from advens.benchmarks.studies.fusions import BASES, boards, main, markdown, parted, verdict

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "results" / "reference" / "digits-ensembles.parquet"
PAGE = ROOT / "docs" / "reference" / "tables" / "fusions.md"


@pytest.fixture
def table(advens: Any, suite: Any, tmp_path: Path) -> pd.DataFrame:
    names = ["ens-logits", "svre"]
    attacks = [
        {"name": names, "label": f"{base}{{name}}", "update": "mi" if base else "sign"} for base in BASES
    ]
    advens("run", suite(attacks=attacks, threat__steps=1), "--out", tmp_path / "run").done()
    return boards((str(tmp_path / "run"),))


def test_bases_are_told_from_fusions() -> None:
    assert parted("di-mi-ens-logits") == ("di-mi", "ens-logits")
    assert parted("mi-svre") == ("mi", "svre")
    assert parted("svre") == ("", "svre")


def test_one_board_per_base_and_set(table: pd.DataFrame) -> None:
    assert set(zip(table["base"], table["fusion"], strict=True)) == {
        (base, fusion) for base in ("plain", "mi", "di-mi") for fusion in ("ens-logits", "svre")
    }
    assert set(table["rank"]) == {1, 2}  # ranked within the board
    text = markdown(table)
    for row in table.itertuples():
        assert f"{100 * row.mean_asr:.1f}" in text
    assert "svre" in text.rpartition("in columns:")[2]
    assert "For new models:" not in text, "the suite has two targets"
    asked = markdown(table.assign(models_group="a", models_low=0.1, models_high=0.2))
    assert "For new models: above / not told apart from / below uniform" in asked


def test_each_question_is_answered_from_its_own_letters() -> None:
    board = pd.DataFrame({
        "base": "mi", "surrogates": "cnns", "fusion": ["svre", "ens-logits", "cwa"],
        "mean_asr": [0.9, 0.5, 0.1], "models_group": ["a", "a", "b"], "group": ["a", "b", "b"],
    })  # fmt: skip
    assert verdict(board, "models_group").endswith("in columns: cwa 0/0/1, svre 0/1/0.")
    assert verdict(board, "group").endswith("in columns: cwa 0/1/0, svre 1/0/0.")


def test_kept_and_printed_again(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_parquet(tmp_path / "kept.parquet")
    said = CliRunner().invoke(main, [str(tmp_path / "kept.parquet")])
    assert said.output == markdown(table)


def test_of_a_suite_in_two_sources_the_last_counts(table: pd.DataFrame, tmp_path: Path) -> None:
    table.assign(mean_asr=0.5).to_parquet(tmp_path / "old.parquet")
    pd.concat([table, table.assign(suite="another")]).to_parquet(tmp_path / "new.parquet")
    sources = [str(tmp_path / name) for name in ("old.parquet", "new.parquet")]
    said = CliRunner().invoke(main, [*sources, "--out", str(tmp_path / "both.parquet")])
    assert said.output == markdown(pd.read_parquet(sources[1]))
    assert len(pd.read_parquet(tmp_path / "both.parquet")) == 2 * len(table)


def test_the_page_holds_what_the_reference_says() -> None:
    kept = pd.read_parquet(REFERENCE)
    assert f"results/reference/{REFERENCE.stem}.md\n" in PAGE.read_text(encoding="utf-8")
    assert markdown(kept).strip() == (REFERENCE.with_suffix(".md")).read_text().strip()


def test_what_the_page_says_of_new_models() -> None:
    kept = pd.read_parquet(REFERENCE)
    kept = kept[kept["suite"] == "digits-ensembles-budget"]
    above, below, alike = set(), set(), 0
    for column, board in kept.groupby(["base", "surrogates"]):
        rows = {str(r.fusion): r for r in board.itertuples()}
        own = rows.pop("ens-logits")
        alike += set(board["models_group"]) == {"a"}
        for fusion, r in rows.items():
            if not set(r.models_group) & set(own.models_group):
                (above if r.mean_asr > own.mean_asr else below).add((*column, fusion))
    assert above == {
        ("di-mi", "cnns", "smer"), *(("plain", "mixed", each) for each in ("cse", "cwa", "smer", "svre"))
    }
    assert below == {("di-mi", "cnns", each) for each in ("adaea", "ens-probs", "sam")}
    assert alike == 5
