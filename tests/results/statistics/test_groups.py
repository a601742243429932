"""Letters say what the tests said."""

from __future__ import annotations

import re
import time
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


def of_close_rates(rows, seed):
    """Names in rank order and pairs told apart, of rows with paired outcomes on 200 images."""
    rng = np.random.default_rng(seed)
    outcomes = 0.5 * rng.random((200, 1)) + 0.5 * rng.random((200, rows)) < rng.uniform(0.3, 0.6, rows)
    outcomes = outcomes[:, np.argsort(-outcomes.mean(axis=0))].astype(float)
    names = [f"n{k:03}" for k in range(rows)]
    different = set()
    for a, b in combinations(range(rows), 2):
        difference = outcomes[:, a] - outcomes[:, b]
        if abs(difference.sum()) > 3 * np.sqrt((difference**2).sum()):
            different.add((names[a], names[b]))
    return names, different


def test_every_letter_is_a_maximal_clique_and_is_needed():
    names, different = of_close_rates(30, seed=1)
    found = letters(names, different)
    groups = [{name for name in names if sign in found[name]} for sign in set("".join(found.values()))]
    assert 5 < len(groups) < 30
    pairs = [set(combinations(sorted(group), 2)) for group in groups]
    for k, group in enumerate(groups):
        assert not pairs[k] & different
        for name in set(names) - group:
            assert any((min(name, n), max(name, n)) in different for n in group)
        others = set().union(*pairs[:k], *pairs[k + 1 :])
        assert pairs[k] - others, "without this letter some pair would share none"


def test_many_rows_take_no_exponential_time():
    """120 close rows; and a graph with 3^13 maximal cliques, of which few are needed."""
    start = time.process_time()
    names, different = of_close_rates(120, seed=0)
    found = letters(names, different)
    assert "a" in found[names[0]]
    names = [f"n{k:02}" for k in range(39)]
    triples = [pair for k in range(0, 39, 3) for pair in combinations(names[k : k + 3], 2)]
    signs = {name: set(re.findall(r"\(\d+\)|\w", text)) for name, text in letters(names, triples).items()}
    assert all(signs[a].isdisjoint(signs[b]) == ((a, b) in triples) for a, b in combinations(names, 2))
    assert time.process_time() - start < 10
