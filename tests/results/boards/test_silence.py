"""What a board notes of images whose gradient was zero."""

from __future__ import annotations

import pandas as pd

from advens.results.boards.silence import silent_lines


def cells(*rows: tuple[str, str, str, int, object, object]) -> pd.DataFrame:
    names = ["suite", "attack", "surrogates", "samples", "silent_images", "silent_steps"]
    return pd.DataFrame(rows, columns=names)


def test_a_line_for_every_row_of_the_board():
    """Images of all its cells, also of those that had none; a suite is named where several have some."""
    found = cells(
        ("one", "pgd", "cnns", 1500, 1100, 2000), ("one", "pgd", "cnns", 40, 0, 0),
        ("one", "pgd", "vits", 7, None, None), ("one", "cwa", "cnns", 9, 2, 3),
        ("two", "pgd", "cnns", 5, 0, 0),
    )  # fmt: skip
    tail = "; such a step leads nowhere"
    assert silent_lines(found) == [
        f"cwa on cnns: the surrogates' gradient was zero for 2 of 9 images, in 3 steps{tail}",
        f"pgd on cnns: the surrogates' gradient was zero for 1,100 of 1,540 images, in 2,000 steps{tail}",
    ]
    more = pd.concat([found, cells(("two", "pgd", "cnns", 5, 1, 1))])
    assert silent_lines(more)[2:] == [
        f"pgd on cnns in two: the surrogates' gradient was zero for 1 of 10 images, in 1 steps{tail}"
    ]
    assert " in one: " in silent_lines(more)[0]


def test_nothing_is_noted_without_a_count():
    assert silent_lines(cells(("one", "pgd", "cnns", 5, 0, 0), ("one", "cwa", "cnns", 5, None, None))) == []
    assert silent_lines(cells(("one", "pgd", "cnns", 5, 3, 3)).drop(columns="silent_images")) == []
