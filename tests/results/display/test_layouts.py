"""How a declared board is laid out, to the character: lines, columns turned round, tables, csv and json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from advens.registry import Info
from advens.results.boards import BOARDS, Board, Column
from advens.results.columns import BOOL, INT, REAL, TEXT
from advens.results.display.render import render_board
from advens.results.formats import Flag, Number, Percent, Plain

Show = Callable[..., str]
COLUMNS = (
    Column("model", TEXT, "a model", header="model", format=Plain(8, short=True)),
    Column("rate", REAL, "a rate", header="rate, %", format=Percent()),
    Column("cost *", REAL, "a cost", header="cost *", format=Number()),
    Column("flag", BOOL, "a flag", header="flag", format=Flag()),
    Column("hidden", INT, "in files only"),
    Column("same", TEXT, "a text", header="same", when="several"),
    Column("maybe", REAL, "a number", nullable=True, header="maybe", format=Number(), when="known"),
    Column("part", TEXT, "a table"),
)
FRAME = pd.DataFrame({
    "model": ["zoo:runs/x/a-long", "zoo:runs/x/b", "zoo:runs/y/c"], "rate": [0.5, 0.125, 1.0],
    "hidden": [1, 2, 3], "flag": [True, False, True], "cost [b]": [1.5, 20.0, float("nan")],
    "same": ["s", "s", "s"], "maybe": [None, None, None], "part": ["One*", "Two", "One*"],
})  # fmt: skip
OTHER = FRAME.assign(same=["s", "t", "s"], maybe=[1.0, None, 2.0])


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    """``show(frame, format, width, **declared)``: what a board with these columns looks like."""

    def shown(frame: pd.DataFrame, form: str, width: int | None = None, **declared: object) -> str:
        board = Board(
            "toy", "a toy", COLUMNS, lambda rows: frame, keys=("model",), order=("cost *", "rate"),
            caption=lambda frame: ["A *caption* of [b].", f"{len(frame)} rows"],
        )  # fmt: skip
        monkeypatch.setitem(BOARDS.entries, "toy", (replace(board, **declared), Info("toy")))
        return render_board("toy", frame, form, width)

    return shown


def test_lines(show: Show) -> None:
    """Keys first, then the order; columns without a header, of one value or of none are left out."""
    assert show(FRAME, "table", 40) == (
        "model     cost [b]  rate, %  flag\n"
        "─────────────────────────────────\n"
        "runs/x/        1.5     50.0   yes\n"
        "a-long\n"
        "runs/x/b        20     12.5\n"
        "runs/y/c         -    100.0   yes\n"
        "\n"
        "A *caption* of [b].\n"
        "3 rows\n"
    )
    assert show(FRAME, "markdown") == (
        "| model | cost [b] | rate, % | flag |\n"
        "| --- | --- | --- | --- |\n"
        "| runs/x/a-long | 1.5 | 50.0 | yes |\n"
        "| runs/x/b | 20 | 12.5 |  |\n"
        "| runs/y/c | - | 100.0 | yes |\n"
        "\n"
        "A \\*caption\\* of [b].\n"
        "\n"
        "3 rows\n"
    )


def test_what_is_too_wide_goes_below_with_its_keys(show: Show) -> None:
    shown = show(OTHER, "table", 22, caption=lambda frame: [])
    assert shown == (
        "model     cost [b]\n"
        "──────────────────\n"
        "runs/x/        1.5\n"
        "a-long\n"
        "runs/x/b        20\n"
        "runs/y/c         -\n"
        "\n"
        "model     rate, %\n"
        "─────────────────\n"
        "runs/x/      50.0\n"
        "a-long\n"
        "runs/x/b     12.5\n"
        "runs/y/c    100.0\n"
        "\n"
        "model     flag  same\n"
        "────────────────────\n"
        "runs/x/    yes  s\n"
        "a-long\n"
        "runs/x/b        t\n"
        "runs/y/c   yes  s\n"
        "\n"
        "model     maybe\n"
        "───────────────\n"
        "runs/x/       1\n"
        "a-long\n"
        "runs/x/b      -\n"
        "runs/y/c      2\n"
    )
    wide = "model     cost [b]  rate, %  flag  same  maybe\n"
    assert show(OTHER, "table").startswith(wide), "80 characters by default"
    assert show(OTHER, "table", len(wide) - 1).startswith(wide)
    assert not show(OTHER, "table", len(wide) - 2).startswith(wide)


def test_tables_of_a_board(show: Show) -> None:
    """A column, in the order of its values, each with a title; the caption is below all."""
    assert show(FRAME, "table", 40, tables="part") == (
        "One*\n"
        "model     cost [b]  rate, %  flag\n"
        "─────────────────────────────────\n"
        "runs/x/        1.5     50.0   yes\n"
        "a-long\n"
        "runs/y/c         -    100.0   yes\n"
        "\n"
        "Two\n"
        "model     cost [b]  rate, %  flag\n"
        "─────────────────────────────────\n"
        "runs/x/b        20     12.5\n"
        "\n"
        "A *caption* of [b].\n"
        "3 rows\n"
    )
    assert show(FRAME, "markdown", tables="part") == (
        "**One\\***\n"
        "\n"
        "| model | cost [b] | rate, % | flag |\n"
        "| --- | --- | --- | --- |\n"
        "| runs/x/a-long | 1.5 | 50.0 | yes |\n"
        "| runs/y/c | - | 100.0 | yes |\n"
        "\n"
        "**Two**\n"
        "\n"
        "| model | cost [b] | rate, % | flag |\n"
        "| --- | --- | --- | --- |\n"
        "| runs/x/b | 20 | 12.5 |  |\n"
        "\n"
        "A \\*caption\\* of [b].\n"
        "\n"
        "3 rows\n"
    )


def test_a_column_for_every_row(show: Show) -> None:
    """Names are cut to what differs, the last part of a path where these do."""
    turned = {"layout": "columns", "columns": (replace(COLUMNS[0], header=None), *COLUMNS[1:])}
    assert show(OTHER, "table", **turned) == (
        "          a-long     b      c\n"
        "cost [b]     1.5    20      -\n"
        "rate, %     50.0  12.5  100.0\n"
        "flag         yes          yes\n"
        "same           s     t      s\n"
        "maybe          1     -      2\n"
        "\n"
        "A *caption* of [b].\n"
        "3 rows\n"
    )
    assert show(FRAME, "markdown", **turned) == (
        "|  | a-long | b | c |\n"
        "| --- | --- | --- | --- |\n"
        "| cost [b] | 1.5 | 20 | - |\n"
        "| rate, % | 50.0 | 12.5 | 100.0 |\n"
        "| flag | yes |  | yes |\n"
        "\n"
        "A \\*caption\\* of [b].\n"
        "\n"
        "3 rows\n"
    )
    equal = FRAME.assign(model=["zoo:runs/x/b", "zoo:runs/y/b", "zoo:a-name-that-is-long"])
    header = show(equal, "markdown", **turned).splitlines()[0]
    assert header == "|  | runs/x/b | runs/y/b | a-name-that-is-long |"
    lines = show(equal, "table", 80, **turned).splitlines()
    assert [line.split() for line in lines[:2]] == [["a-name-that-"], ["runs/x/b", "runs/y/b", "is-long"]]


def test_files_have_every_column(show: Show) -> None:
    assert show(OTHER.assign(model=["=1+1", "a,b", "c"]), "csv") == (
        "model,rate,hidden,flag,cost [b],same,maybe,part\n"
        "'=1+1,0.5,1,True,1.5,s,1.0,One*\n"
        '"a,b",0.125,2,False,20.0,t,,Two\n'
        "c,1.0,3,True,,s,2.0,One*\n"
    )
    frame = OTHER.assign(rate=[1.0, float("inf"), 0.5])
    counts = {"images": np.int64(3), "rate": np.float64("nan")}
    frame.attrs = {"notes": ["one", float("nan")], "targets": None, "counts": counts}
    shown = show(frame, "json")
    found = json.loads(shown)
    assert shown == json.dumps(found, indent=2) + "\n"
    assert found["about"] == {
        "notes": ["one", None], "targets": None, "counts": {"images": 3, "rate": None},
    }  # fmt: skip
    assert found["rows"][1] == {
        "model": "zoo:runs/x/b", "rate": None, "hidden": 2, "flag": False, "cost [b]": 20.0, "same": "t",
        "maybe": None, "part": "Two",
    }  # fmt: skip
