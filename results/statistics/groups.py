"""Compact letter display: which rows of a board a test told apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(names: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Compact letter display: two names share a letter exactly when they are not ``different``.

    Insert-and-absorb (Piepho, 2004): begin with one letter for all; every pair that differs splits
    the letters that hold both; a letter within another is dropped.

    Args:
        names: in rank order; the first name has the letter ``a``.
        different: pairs told apart by a test.
    """
    groups = [frozenset(names)] if names else []
    for one, other in different:
        split = []
        for group in groups:
            both = one in group and other in group
            split += [group - {one}, group - {other}] if both else [group]
        groups = _absorbed(split)
    groups = _swept(groups)
    place = {name: k for k, name in enumerate(names)}
    groups.sort(key=lambda group: sorted(place[name] for name in group))
    signs = [_LETTERS[k] if k < len(_LETTERS) else f"({k + 1})" for k in range(len(groups))]
    return {
        name: "".join(sign for sign, group in zip(signs, groups, strict=True) if name in group)
        for name in names
    }


def _absorbed(groups: list[frozenset[str]]) -> list[frozenset[str]]:
    kept: list[frozenset[str]] = []
    for group in sorted(set(groups), key=lambda g: (-len(g), sorted(g))):
        if not any(group <= larger for larger in kept):
            kept.append(group)
    return kept


def _swept(groups: list[frozenset[str]]) -> list[frozenset[str]]:
    """Drops every letter that says nothing the others do not say (smallest first)."""
    kept = list(groups)
    for group in sorted(groups, key=lambda g: (len(g), sorted(g))):
        rest = [other for other in kept if other is not group]
        alone = any(not any(name in other for other in rest) for name in group)
        pairs = combinations(sorted(group), 2)
        if not alone and all(any({a, b} <= other for other in rest) for a, b in pairs):
            kept = rest
    return kept


