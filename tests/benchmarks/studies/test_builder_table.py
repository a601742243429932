"""The tables of builders: from runs, from the file kept of them, and as they stand on their page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from advens.benchmarks.studies.builders import boards, main, markdown, parted

ROOT = Path(__file__).parents[3]
REFERENCE = ROOT / "results" / "reference" / "digits-builders.parquet"
PAGE = ROOT / "docs" / "reference" / "tables" / "builders.md"


@pytest.fixture
def table(advens: Any, suite: Any, tmp_path: Path) -> pd.DataFrame:
    sets = {"resnet": ["digits:resnet"], "lgv 0.05 sharp": ["digits:convnext"], "vits": ["digits:vit"]}
    attacks = [
        {"name": "mi-lgv", "surrogates": ["resnet", "lgv 0.05 sharp"]},
        {"name": "mi-ens-loss", "surrogates": ["vits"]},
    ]
    advens("run", suite(attacks=attacks, surrogates=sets, threat__steps=1), "--out", tmp_path / "run").done()
    return boards(str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("attack", "surrogates", "place"),
    [
        ("mi-lgv", "resnet", ("resnet", "")),
        ("mi-lgv", "lgv-swa 0.2", ("lgv-swa", "0.2")),
        ("mi-lgv", "mba 0.05 sharp", ("mba", "0.05 sharp")),
        ("mi-lgv", "mba 0.05 sharp once", ("mba, drawn once", "0.05 sharp")),
        ("mi-mba", "mba 0.2", ("mba, all 20 in every step", "0.2")),
    ],
)
def test_names_are_taken_apart(attack: str, surrogates: str, place: tuple[str, str]) -> None:
    assert parted(attack, surrogates) == place


def test_one_board_for_each_table(table: pd.DataFrame) -> None:
    assert table["table"].tolist() == ["cnn", "cnn", "vits"]
    assert table["rank"].tolist() == [1, 2, 1]  # ranked within the table
    rate = {r.surrogates: f"{100 * r.mean_asr:.1f} ({r.group})" for r in table.itertuples()}
    text = markdown(table)
    assert f"| lgv |  | {rate['lgv 0.05 sharp']} |  |  |" in text
    assert f"| vits | mi-ens-loss | {rate['vits']} |" in text
    assert f"Without further training: resnet {rate['resnet']}." in text
    assert "New models are not asked" in text
    assert "Letters without parentheses" not in text


def test_both_questions_stand_side_by_side(table: pd.DataFrame) -> None:
    ends = {"models_low": [0.1, 0.2, 0.3], "models_high": [0.3, 0.6, 0.7]}
    asked = table.assign(models_group=["x", "y", "z"], **ends)
    text = markdown(asked)
    vits = table.iloc[2]
    assert f"| vits | mi-ens-loss | {100 * vits.mean_asr:.1f} z ({vits.group}) |" in text
    assert "for new models and new images (two-way test; half a 95 % interval is 20.0 points" in text
    old = table.drop(columns=[name for name in table if name.startswith(("models_", "rank_"))])
    assert markdown(old) == markdown(table), "as of boards whose samples are gone"


def test_kept_and_printed_again(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_parquet(tmp_path / "kept.parquet")
    said = CliRunner().invoke(main, [str(tmp_path / "kept.parquet")])
    assert said.output == markdown(table)


def test_the_page_holds_what_the_reference_says() -> None:
    kept, page = pd.read_parquet(REFERENCE), PAGE.read_text(encoding="utf-8")
    assert f"results/reference/{REFERENCE.stem}.md\n" in page
    assert markdown(kept) == REFERENCE.with_suffix(".md").read_text()
    cnn = kept[kept["table"] == "cnn"].set_index(["attack", "surrogates"])
    rate = (100 * cnn["mean_asr"]).round(1)
    gain = f"takes LGV from {rate['mi-lgv', 'lgv 0.05']} to {rate['mi-lgv', 'lgv 0.05 sharp']} %"
    assert gain in page
    assert gain in (ROOT / "README.md").read_text(encoding="utf-8")
    sharp = rate["mi-lgv"].filter(regex=r"0.05 sharp$").drop("lgv 0.05 sharp")
    assert f"every other builder there reaches {sharp.min()} to {sharp.max()}" in page
    group = cnn["group"]["mi-lgv"]
    assert set(group["mba 0.05 sharp"]) & set(group["mba 0.05 sharp once"])
    assert set(kept[kept["table"] == "vits"]["group"]) == {"a"}
