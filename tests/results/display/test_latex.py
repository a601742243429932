"""Tables in LaTeX: their numbers, their structure, and names that do nothing."""

from __future__ import annotations

import re

import pytest

from advens.printable import latex
from advens.results.boards.compare import compare
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.matrix import transfer_matrix
from advens.results.display.comparison import render_comparison
from advens.results.display.render import render_board
from advens.results.formats import percent

TARGETS = {f"digits:t{k}": 0.3 + 0.1 * k for k in range(6)}
EVIL = "$x_1$ 100% \\input{/etc/passwd} ~^&#{}|<>`\"\x1b\u202e\u4e2d é --- \\"


def cells(text: str) -> list[list[list[str]]]:
    """The rows of every tabular; headers of several lines are one cell."""
    nested = r"\\begin\{tabular\}\[b\]\{@\{\}[lr]@\{\}\}(.*?)\\end\{tabular\}"
    text = re.sub(nested, lambda found: found[1].replace(" \\\\", ""), text)
    tables = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n\\toprule\n(.*?)\n\\bottomrule", text, re.DOTALL)
    found = []
    for aligned, body in tables:
        lines = [line.removesuffix(r" \\") for line in body.splitlines() if line != r"\midrule"]
        rows = [line.split(" & ") for line in lines]
        assert {len(row) for row in rows} == {len(aligned)}
        found.append(rows)
    return found


def sound(text: str) -> None:
    """Balanced braces and environments, one dollar sign for another, ASCII and accents alone."""
    assert all(c.isascii() or c.isalpha() for c in text)
    bare = re.sub(r"\\[\\{}$&#_%]", "", text)
    depth = 0
    for c in bare:
        depth += {"{": 1, "}": -1}.get(c, 0)
        assert depth >= 0
    assert depth == 0
    for line in bare.splitlines():
        assert line.count("$") % 2 == 0
        assert not set(line) & set("#%~^_")
    commands = set(re.findall(r"\\([a-zA-Z]+)", bare))
    assert commands <= {
        "begin", "end", "centering", "small", "caption", "label", "toprule", "midrule", "bottomrule",
        "medskip",
        "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar",
        "textasciigrave", "ldots", "pm", "times", "leq", "geq",
    }  # fmt: skip
    opened = re.findall(r"\\begin\{([a-z*]+)\}", bare)
    assert sorted(opened) == sorted(re.findall(r"\\end\{([a-z*]+)\}", bare))


def test_leaderboard(drawn):
    board = leaderboard(drawn({("weak", "cnns"): 0.3, ("strong", "cnns"): 0.8}, TARGETS, n=60))
    text = render_board("leaderboard", board, "latex")
    sound(text)
    columns = {head: shown for rows in cells(text) for head, *shown in zip(*rows, strict=True)}
    assert columns["mean ASR"] == [percent(value, 1) for value in board["mean_asr"]]
    assert columns["attack"] == list(board["attack"])
    caption = re.search(r"\\caption\{(.*)\}", text)[1]
    for said in ("n = 60", "New models and new images", "These targets, new images", "95 \\%"):
        assert said in caption
    assert text.index("\\caption") < text.index("\\toprule")


def test_matrix(drawn):
    frame = transfer_matrix(drawn({("weak", "cnns"): 0.3, ("strong", "cnns"): 0.8}, TARGETS, n=60))
    text = render_board("matrix", frame, "latex")
    sound(text)
    rates = {(row.attack, row.target): percent(row.asr) for row in frame.itertuples()}
    shown = {
        (row[0], f"digits:{head}"): cell.split()[0]
        for rows in cells(text) for row in rows[1:] for head, cell in zip(rows[0], row, strict=True)
        if f"digits:{head}" in TARGETS
    }  # fmt: skip
    assert shown == rates


def test_names_do_nothing(drawn):
    targets = {f"{name}{EVIL}": weakness for name, weakness in TARGETS.items()}
    frame = drawn({(EVIL, EVIL): 0.3, ("[4pt]", "*"): 0.8}, targets, n=20)
    for text in (
        render_board("leaderboard", leaderboard(frame), "latex"),
        render_board("matrix", transfer_matrix(frame), "latex"),
        render_comparison(compare(frame, EVIL, "[4pt]"), "latex"),
    ):
        sound(text)
        cells(text)
        assert "\\input" not in text
        assert not re.search(r"\\\\\s*[\[*]", text)  # no option of a line break


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b", r"a\_b"), ("\\", r"\textbackslash{}"), ("a--b", "a-{}-b"), ("2\u20133", "2--3"), ("é", "é"),
        ("ø", r"\textbackslash{}xf8"), ("\u4e2d", r"\textbackslash{}u4e2d"), ("63 ±4", r"63 $\pm$4"),
        ("\u202e", r"\textbackslash{}u202e"), ("a\nb", "a b"), ('"', "''"), ("''", "'{}'"),
    ],
)  # fmt: skip
def test_escapes(text, shown):
    assert latex(text) == shown
