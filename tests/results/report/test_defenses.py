"""The page of a folder of defenses: its tables, charts and the runs below it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from advens.results.formats import number, percent
from advens.results.report.page import write_report
from tests.results.boards.test_trial import LINES, folder, written
from tests.results.report.conftest import Page

__all__ = ["folder"]


@pytest.fixture
def made(folder: Callable[..., Path]) -> Callable[..., Path]:
    """``made(lines)``: a folder of defenses with all boards below it."""
    from advens.results.boards import write_board

    def make(lines: Any = None) -> Path:
        directory = folder(lines)
        for part in directory.glob("transfer-*"):
            for name in ("matrix", "leaderboard"):
                write_board(part, name)
        write_board(directory / "white-box", "robustness")
        written(directory, ("images", "defenses", *(["study"] if lines else [])))
        return directory

    return make


def test_models_that_were_given(made: Callable[..., Path]) -> None:
    directory = made()
    board = pd.read_parquet(directory / "defenses.parquet")
    page = Page.of(html := write_report(directory).read_text())
    header, *rows = page.tables[0]
    assert [row[1] for row in rows] == list(board["kind"])
    for cells, at in zip(rows, board.to_dict(orient="records"), strict=True):
        shown = dict(zip(header, cells, strict=True))
        assert shown["clean"] == percent(at["clean"], 1)
        for eps in ("0.05", "8/255"):
            low, high = at[f"transfer {eps} low"], at[f"transfer {eps} high"]
            wanted = f"{percent(at[f'transfer {eps}'], 1)} {percent(low, 1)}–{percent(high, 1)}"
            assert shown[f"transfer, eps {eps}"] == wanted
        assert shown["arc"].replace("–", "-") == percent(at["open arc"], 1)
        assert shown["worst white-box"] == percent(at["open worst"], 1)
        assert shown["MFLOP"] == number(at["mflops"])
        assert shown["training, s"].replace("–", "-") == number(at["train_seconds"])
    assert html.count('class="square"') == 2  # transfer between the members of both ensembles
    for title in ("Transfer, eps = 0.05", "Transfer, eps = 8/255", "White-box attacks"):
        assert title in html
    assert "one model, so that nothing is said of the defense trained again" in html


def test_lines_of_a_study(made: Callable[..., Path]) -> None:
    directory = made(LINES)
    board = pd.read_parquet(directory / "study.parquet")
    page = Page.of(html := write_report(directory).read_text())
    lines = [row for table in page.tables[:2] for row in table[1:]]
    assert len(lines) == len(board) == 4
    for cells, at in zip(lines, board.to_dict(orient="records"), strict=True):
        assert cells[0].startswith(at["label"])
        ends = f"{percent(at['clean low'], 1)}–{percent(at['clean high'], 1)}"
        assert f"{percent(at['clean'], 1)} {ends}" in cells
    assert "control: mean" in html
    assert "too few to tell defenses apart" in html
