"""Tables that can be read on any terminal, and formats that can be read by programs."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest

from advens.errors import InputError
from advens.results import formats
from advens.results.boards.compare import compare
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.matrix import transfer_matrix
from advens.results.display.comparison import render_comparison
from advens.results.display.render import render_board

NAMES = ["resnet", "convnext", "efficientnet", "vit", "resnet-at", "efficientnet-at", "mambaout"]
TARGETS = {f"digits:{name}": 0.9 - 0.1 * k for k, name in enumerate(NAMES)}
WHITE = {"cnns": ["digits:resnet", "digits:convnext"]}


@pytest.fixture
def samples(drawn):
    strengths = {(a, "cnns"): 0.5 + k / 10 for k, a in enumerate(["pgd", "[bold]cwa", "a, b c"])}
    return drawn(strengths, TARGETS, WHITE, n=60)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_nothing_is_wider_than_the_terminal_and_nothing_is_lost(samples, width):
    matrix, board = transfer_matrix(samples), leaderboard(samples)
    for name, frame in (("matrix", matrix), ("leaderboard", board)):
        shown = render_board(name, frame, width=width)
        assert max(map(len, shown.splitlines())) <= width
        assert "…" not in shown
    shown = render_board("matrix", matrix, width=width)
    for row in matrix.itertuples():
        cell = (row.asr, row.asr_low, row.asr_high, 0, "*" if row.white_box else "")
        assert formats.interval(*cell) in shown or formats.plus_minus(*cell) in shown
    assert "[bold]cwa" in shown  # a name is no markup


def test_wide_is_one_table_and_narrow_is_blocks(samples):
    matrix = transfer_matrix(samples)
    assert render_board("matrix", matrix, width=200).count("attack ") == 1
    assert render_board("matrix", matrix, width=80).count("target   ") == 1  # turned round: three rows
    five = pd.concat([matrix, matrix[matrix["attack"] != "pgd"].assign(attack=lambda f: "x" + f["attack"])])
    five.attrs = matrix.attrs
    shown = render_board("matrix", five, width=66)
    assert shown.count("target   ") == 1
    assert "± the longer half of the 95 % Wilson interval" in " ".join(shown.split())
    many = pd.concat([matrix.assign(attack=matrix["attack"] + str(k)) for k in range(3)])
    many.attrs = matrix.attrs
    assert render_board("matrix", many, width=80).count("attack  ") > 1


def test_the_shared_source_is_left_out_of_tables_only(samples):
    matrix = transfer_matrix(samples)
    assert "digits:" not in render_board("matrix", matrix)
    assert "digits:resnet" in render_board("matrix", matrix, "csv")
    assert formats.shorten(["digits:a", "timm:b"]) == ["digits:a", "timm:b"]
    assert formats.shorten(["a", "digits:b"]) == ["a", "digits:b"]


def test_captions_say_over_what(samples):
    matrix = " ".join(render_board("matrix", transfer_matrix(samples, "common"), width=300).split())
    assert "over images that every target gets right" in matrix
    assert "the 5 targets held out from every row" in matrix
    assert "* white-box, not in the mean" in matrix
    board = " ".join(render_board("leaderboard", leaderboard(samples, None, "all"), width=300).split())
    assert "all images, misclassified before or not, n = 60" in board


def test_csv_and_json_are_exact(samples):
    matrix, board = transfer_matrix(samples), leaderboard(samples)
    for name, frame in (("matrix", matrix), ("leaderboard", board)):
        again = pd.read_csv(io.StringIO(render_board(name, frame, "csv")))
        kept = [name for name in frame.columns if name != "family"]  # empty: read as nan
        pd.testing.assert_frame_equal(again[kept], frame[kept], check_dtype=False)
        found = json.loads(render_board(name, frame, "json"))
        assert found["about"]["denominator"] == "target"
        assert found["rows"][0]["attack"] == frame["attack"][0]
    assert json.loads(render_board("leaderboard", board, "json"))["rows"][0]["forwards_per_sample"] is None


def test_markdown_is_one_table(samples):
    for shown in (
        render_board("matrix", transfer_matrix(samples), "markdown"),
        render_board("leaderboard", leaderboard(samples), "markdown"),
        render_comparison(compare(samples, "pgd", "[bold]cwa"), "markdown"),
    ):
        lines = shown.partition("\n\n")[0].splitlines()
        assert len({line.count("|") for line in lines}) == 1
        assert set(lines[1]) <= set("| -")


def test_comparison(samples):
    found = compare(samples, "a, b c", "pgd")
    shown = " ".join(render_comparison(found, width=300).split())
    assert "a, b c minus pgd, for new models and new images: they differ" in shown
    assert "For these targets and new images: they differ" in shown
    assert json.loads(render_comparison(found, "json"))["difference"] == found["difference"]
    assert len(pd.read_csv(io.StringIO(render_comparison(found, "csv")))) == 1


def test_unknown_format(samples):
    with pytest.raises(InputError, match="did you mean 'json'"):
        render_board("matrix", transfer_matrix(samples), "jsn")


@pytest.mark.parametrize(("name", "width", "expected"), [
    ("efficientnet-at", 12, "efficientnet\n-at"),
    ("efficientnet-at", 13, "efficientnet-\nat"),
    ("mean held-out", 8, "mean\nheld-out"),
    ("abcdefgh", 3, "abc\ndef\ngh"),
    ("short", 12, "short"),
    ("", 5, ""),
])
def test_fold(name, width, expected):
    assert formats.fold(name, width) == expected


def test_numbers():
    assert formats.interval(0.632, 0.59, 0.671) == "63 [59\u201367]"
    assert formats.plus_minus(0.632, 0.57, 0.671, 0, "*") == "63* \u00b16"
    assert formats.plus_minus(float("nan"), 0, 1) == "-"
    assert formats.interval(float("nan"), 0, 1) == "-"
    assert [formats.number(v) for v in (0.0123456, 2.0, 40.0, 12345.6)] == [
        "0.0123", "2", "40", "12346"
    ]
