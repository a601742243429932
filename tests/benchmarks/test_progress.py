"""Progress: lines in a log, a bar on a terminal, nothing when nobody looks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from advens.benchmarks.progress import Progress


def follow(progress: Progress, titles: list[str]) -> None:
    with progress.task("crafting", len(titles)) as advance:
        for title in titles:
            advance(title)


def test_lines_in_a_log():
    said = io.StringIO()
    follow(Progress(Console(file=said), every=0.0), ["one [set]", "two"])
    assert said.getvalue().splitlines() == [
        "crafting: 1/2, 0 s, last: one [set]", "crafting: 2/2, 0 s, last: two",
    ]  # fmt: skip
    said = io.StringIO()
    follow(Progress(Console(file=said), every=99.0), ["one", "two", "three"])
    assert said.getvalue().splitlines() == ["crafting: 3/3, 0 s, last: three"]


@pytest.mark.parametrize("title", ["mi on cnns", "uniform [di] on cnns", "[/dim] on cnns"])
def test_a_bar_on_a_terminal(title):
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=120)
    with Progress(console).task("crafting", 2) as advance:
        advance(title)
        advance(title)
    assert "crafting" in said.getvalue()
    assert title in said.getvalue()


def test_silence():
    follow(Progress(), ["one"])
    said = io.StringIO()
    follow(Progress(Console(file=said)), [])
    assert said.getvalue() == ""


def test_a_part_of_a_longer_work_says_which():
    said = io.StringIO()
    whole = Progress(Console(file=said), every=0.0)
    follow(whole.of("transfer-0.1 (2 of 4 parts)"), ["one"])
    follow(whole, ["two"])
    assert said.getvalue().splitlines() == [
        "transfer-0.1 (2 of 4 parts), crafting: 1/1, 0 s, last: one", "crafting: 1/1, 0 s, last: two",
    ]  # fmt: skip
