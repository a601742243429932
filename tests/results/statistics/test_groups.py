"""Letters say what the tests said."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from advens.results.statistics import letters


def test_letters_by_hand():
    assert letters("xyz", []) == {"x": "a", "y": "a", "z": "a"}
    assert letters("xyz", [("x", "z")]) == {"x": "a", "y": "ab", "z": "b"}
    assert letters("xyz", [("x", "y"), ("x", "z"), ("z", "y")]) == {"x": "a", "y": "b", "z": "c"}
    assert letters("xyz", [("x", "z"), ("y", "z")]) == {"x": "a", "y": "a", "z": "b"}
    # the ends do not differ, but the first differs from the middle: not an interval of ranks
    assert letters("xyz", [("x", "y")]) == {"x": "a", "y": "b", "z": "ab"}
    assert letters([], []) == {}
    assert letters(["x"], []) == {"x": "a"}


def test_letters_say_what_the_tests_said():
    rng = np.random.default_rng(0)
    for _ in range(60):
        names = [f"n{i}" for i in range(rng.integers(2, 9))]
        different = {p for p in combinations(names, 2) if rng.random() < rng.choice([0.2, 0.7])}
        found = letters(names, sorted(different))
        for pair in combinations(names, 2):
            assert (not set(found[pair[0]]) & set(found[pair[1]])) == (pair in different)
        used = sorted(set("".join(found.values())))
        assert used == list("abcdefghijklmnopqrstuvwxyz"[: len(used)])
        assert "a" in found["n0"]


def test_letters_beyond_the_alphabet():
    names = [f"n{i:02}" for i in range(54)]
    found = letters(names, combinations(names, 2))
    assert found["n00"] == "a"
    assert [found[name] for name in names[50:]] == ["Y", "Z", "(53)", "(54)"]
