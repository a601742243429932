"""Samples of evaluations: how many, which, and that everything appears in them."""

from __future__ import annotations

from collections import Counter

import pytest

from advens.benchmarks.selection import Selection
from advens.errors import InputError

UNITS = {
    (f"cell-{attack}-{group}-{shard}", f"target-{target}"): [attack, group, f"target-{target}"]
    for attack in "abcde" for group in "xy" for shard in range(4) for target in range(7)
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "count"),
    [("1%", 3), ("0.01", 3), ("0.001%", 1), ("100%", 280), ("1", 1), ("9", 9), ("999", 280)],
)
def test_the_size(text: str, count: int) -> None:
    assert len(Selection.parse(text, 0).of(UNITS)) == count


@pytest.mark.parametrize("text", ["0", "0%", "101%", "1.5", "-1", "-1%", "", "%", "all", "nan%", "inf"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(InputError, match="a share as 1% or 0\\.01, or a number of evaluations as 200"):
        Selection.parse(text, 0)


def test_every_attack_set_and_target_appears() -> None:
    for seed in range(20):
        drawn = Selection(None, 7, seed).of(UNITS)
        assert [len({UNITS[unit][k] for unit in drawn}) for k in range(3)] == [5, 2, 7]


def test_few_show_as_much_as_they_can() -> None:
    for seed in range(20):
        drawn = Selection(None, 3, seed).of(UNITS)
        assert [len({UNITS[unit][k] for unit in drawn}) for k in range(3)] == [3, 2, 3]


def test_the_seed_draws() -> None:
    one = Selection(0.1, None, 1).of(UNITS)
    assert Selection(0.1, None, 1).of(dict(reversed(UNITS.items()))) == one
    assert Selection(0.1, None, 2).of(UNITS) != one
    often = Counter(unit for seed in range(300) for unit in Selection(None, 28, seed).of(UNITS))
    assert min(often[unit] for unit in UNITS) > 10  # 30 on average: whatever is forged is drawn at some time
    assert max(often.values()) < 60


def test_nothing_to_draw() -> None:
    assert Selection(0.5, None, 0).of({}) == set()
