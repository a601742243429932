"""Compact letter display: which rows of a board a test told apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations_with_replacement

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def letters(names: Sequence[str], different: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Compact letter display: two names share a letter exactly when they are not ``different``.

    A letter stands for a maximal clique of the graph whose edges are the pairs that are not
    different. A graph may have exponentially many of them, so one is grown, in rank order, for each
    pair that no earlier one holds: at most one for a pair.

    Args:
        names: in rank order; the first name has the letter ``a``.
        different: pairs told apart by a test.
    """
    apart = {frozenset(pair) for pair in different}
    same = {name: {n for n in names if n != name and frozenset((n, name)) not in apart} for name in names}
    groups: list[tuple[str, ...]] = []
    shared: Counter[tuple[str, str]] = Counter()  # letters that a pair shares; of a name with itself, all its
    for pair in combinations_with_replacement(names, 2):
        one, other = pair
        if shared[pair] or (bool(same[one]) if one == other else other not in same[one]):
            continue
        members = {one, other}
        for name in names:
            if name not in members and members <= same[name]:
                members.add(name)
        groups.append(tuple(name for name in names if name in members))
        shared.update(combinations_with_replacement(groups[-1], 2))
    for group in sorted(groups, key=lambda group: (len(group), sorted(group))):
        pairs = list(combinations_with_replacement(group, 2))
        if all(shared[pair] > 1 for pair in pairs):  # it says nothing that the others do not say
            groups.remove(group)
            shared.subtract(pairs)
    place = {name: k for k, name in enumerate(names)}
    groups.sort(key=lambda group: [place[name] for name in group])
    signs = [_LETTERS[k] if k < len(_LETTERS) else f"({k + 1})" for k in range(len(groups))]
    return {
        name: "".join(sign for sign, group in zip(signs, groups, strict=True) if name in group)
        for name in names
    }
