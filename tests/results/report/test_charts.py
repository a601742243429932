"""Charts have their numbers where they belong."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from advens.results.report import charts
from advens.results.report.charts import Point, Track
from advens.results.report.collect import Rate


def numbers(pattern: str, text: str) -> list[tuple[float, ...]]:
    found = re.findall(pattern, text)
    return [tuple(map(float, each if isinstance(each, tuple) else (each,))) for each in found]


def test_bars_of_both_questions() -> None:
    drawn = charts.bar((Rate(0.5, 0.25, 1.0), Rate(0.5, 0.4, 0.6)), width=212)
    assert numbers(r'strong" d="M([\d.]+) 10H([\d.]+)', drawn) == [(56, 206)]
    assert numbers(r'weak" d="M([\d.]+) 21H([\d.]+)', drawn) == [(86, 126)]
    assert numbers(r'cx="([\d.]+)" cy="(\d+)"', drawn) == [(106, 10), (106, 21)]


def test_bars_without_an_interval_for_new_models() -> None:
    drawn = charts.bar((Rate(0.5), Rate(0.5, 0.4, 0.6)), width=212)
    assert numbers(r'strong" d="M([\d.]+) 15H([\d.]+)', drawn) == [(86, 126)]
    assert "weak" not in drawn
    assert "circle" not in charts.bar((Rate(None), Rate(None)))


def test_scatter() -> None:
    points = [
        Point(10, Rate(0.2, 0.1, 0.3), "2", "two", filled=False), Point(100, Rate(0.4, 0.3, 0.5), "1", "one"),
    ]  # fmt: skip
    drawn = charts.scatter(points, "passes", "rate", "what", logarithmic=True)
    (low, high) = numbers(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    assert low[0] < high[0]
    zero, most = 358, 30  # the plot's bottom and top: 0 and 60 %
    assert low[1] == pytest.approx(zero - (zero - most) * 0.2 / 0.6, abs=0.1)
    assert high[1] == pytest.approx(zero - (zero - most) * 0.4 / 0.6, abs=0.1)
    assert drawn.count("mark open") == 1
    assert "<title>two</title>" in drawn


def test_marks_at_one_place_stand_beside_each_other() -> None:
    assert charts.beside([5, 5, 9], room=10) == [0, 10, 9]


def test_steps_of_a_front() -> None:
    points = [Point(x, Rate(y), str(x), "", series="set") for x, y in ((1, 0.1), (2, 0.3), (3, 0.5))]
    drawn = charts.scatter(points, "", "", "", logarithmic=False)
    places = numbers(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    (path,) = re.findall(r'front" d="([^"]+)"', drawn)
    (x0, y0), (x1, y1), (x2, y2) = places
    said = [float(each) for each in re.findall(r"[\d.]+", path)]
    assert said == [x0, y0, x1, y1, x2, y2]


def test_lines_have_dashes_labels_and_ends() -> None:
    tracks = [Track("resnet", (1, 2, 3), (0.0, 0.5, 1.0)), Track("vit", (1, 2, 3), (1.0, 1.0, 1.0))]
    drawn = charts.lines(tracks, "step", "weight", "what", shares=True)
    assert drawn.count("stroke-dasharray") == 1
    assert ">resnet</text>" in drawn
    assert ">vit</text>" in drawn
    paths = re.findall(r'line s\d" d="M([^"]+)"', drawn)
    ys = [[float(pair.split()[1]) for pair in path.split("L")] for path in paths]
    assert ys == [[198, 114, 30], [30, 30, 30]]


def test_labels_do_not_cover_each_other() -> None:
    found = charts._spread([10, 11, 12, 100], 13, 110)
    assert sorted(found) == found
    assert all(b - a >= 13 for a, b in pairwise(found))
    assert charts._spread([100, 100], 13, 105) == [92, 105]


@pytest.mark.parametrize(("low", "high", "found"), [
    (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (0, 0.6, [0, 0.2, 0.4, 0.6]), (1, 10, [2, 4, 6, 8, 10]),
    (0.018, 0.041, [0.02, 0.025, 0.03, 0.035, 0.04]),
])  # fmt: skip
def test_round_ticks(low: float, high: float, found: list[float]) -> None:
    assert charts._ticks(low, high, 5) == pytest.approx(found)


def test_names_are_text() -> None:
    evil = "<script>'\"&\x1b\u202e"
    point = Point(1, Rate(0.5), evil, evil)
    for drawn in (
        charts.scatter([point, Point(2, Rate(0.5), "", "")], evil, evil, evil, logarithmic=False),
        charts.lines([Track(evil, (1, 2), (0.1, 0.2))], evil, evil, evil),
        charts.square([[1.0, 0.2], [0.3, 1.0]], evil),
    ):
        assert "<script" not in drawn
        assert not set(drawn) & {"\x1b", "\u202e"}


def test_rates_between_members() -> None:
    drawn = charts.square([[1.0, 0.25], [0.5, 1.0]], "members")
    found = re.findall(r'class="t(\d+)"[^>]*>(\d+)<', drawn)
    assert found == [("50", "100"), ("12", "25"), ("25", "50"), ("50", "100")]
