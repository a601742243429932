"""One directory, one comparison: a later run may add to it, never change what is in it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from pathlib import Path
from typing import Any, TypeVar

from advens.benchmarks.suites import (
    ROUNDS,
    AnySuite,
    AttackEntry,
    DefenseSuite,
    Suite,
    Surrogates,
    parse,
    stored,
)
from advens.errors import InputError

S = TypeVar("S", Suite, DefenseSuite)
T = TypeVar("T")


def agree(path: Path, suite: S) -> S:
    """The union of the suite already in a directory and a new one.

    Args:
        path: where the directory keeps its suite.

    Raises:
        InputError: what every row depends on differs, or something of the same name is another.
    """
    if not path.is_file():
        return suite
    before = stored(path)
    again = parse(suite.toml(), str(path))  # a tuple from the command line is a list in a file
    if before.goal != again.goal:
        raise _conflict(path, "goal", before.goal, again.goal)
    merged: S = _merged(again, before, path)  # type: ignore[assignment]
    return merged


@singledispatch
def _merged(suite: AnySuite, before: AnySuite, path: Path) -> AnySuite:
    raise TypeError(type(suite))


@_merged.register
def _attacks(suite: Suite, before: Suite, path: Path) -> Suite:
    fixed = ("name", "version", "data", "limit", "crossed", "threat", "budget", "defaults", "shard")
    _same(path, before, suite, fixed)
    for name, models in suite.surrogates.items():
        old = before.surrogates.get(name, models)
        if old != models and name != "each":
            raise _conflict(path, f"surrogates.{name}", old, models)
    entries = {entry.title: entry for entry in before.attacks}
    for entry in suite.attacks:
        entries[entry.title] = _entry(path, entries.get(entry.title, entry), entry)
    sets = before.surrogates | suite.surrogates
    if "each" in sets:
        alone = [_listed(s.surrogates.get("each", [])) for s in (before, suite)]
        sets["each"] = union(*alone)
    return suite.model_copy(
        update={
            "seeds": sorted({*before.seeds, *suite.seeds}),
            "targets": union(before.targets, suite.targets),
            "surrogates": sets,
            "attacks": list(entries.values()),
        }
    )


def _entry(path: Path, before: AttackEntry, entry: AttackEntry) -> AttackEntry:
    """An attack that may get more sets of surrogates, and rounds, and is the same otherwise."""
    if before.until is None or entry.until is None:  # rounds of either run are of the directory
        rounds = {name: getattr(before if entry.until is None else entry, name) for name in ROUNDS}
        before, entry = (each.model_copy(update=rounds) for each in (before, entry))
    alike = entry.model_copy(update={"surrogates": before.surrogates})
    if before != alike or (before.surrogates is None) != (entry.surrogates is None):
        raise _conflict(path, f"attack '{entry.title}'", _shown(before), _shown(entry))
    if entry.surrogates is None or before.surrogates is None:
        return entry
    return entry.model_copy(update={"surrogates": union(before.surrogates, entry.surrogates)})


@_merged.register
def _defenses(suite: DefenseSuite, before: DefenseSuite, path: Path) -> DefenseSuite:
    more = ("goal", "models", "defenses", "training", "seeds", "sanity", "batch_size", "store")
    _same(path, before, suite, [name for name in type(suite).model_fields if name not in more])
    if before.training is not None and suite.training is not None:
        _same(path, before, suite, ["training"])
    entries = {(entry.table, entry.title): entry for entry in before.defenses}
    for entry in suite.defenses:
        known = entries.setdefault((entry.table, entry.title), entry)
        if known != entry:
            raise _conflict(path, f"defense '{entry.title}'", _shown(known), _shown(entry))
    return suite.model_copy(
        update={
            "seeds": sorted({*before.seeds, *suite.seeds}),
            "models": union(before.models, suite.models),
            "defenses": list(entries.values()),
            "training": suite.training or before.training,
        }
    )


def union(*lists: Iterable[T]) -> list[T]:
    """What stands in any of the lists, each once, in order."""
    return list(dict.fromkeys(item for each in lists for item in each))


def _same(path: Path, before: AnySuite, suite: AnySuite, keys: Iterable[str]) -> None:
    for key in keys:
        old, new = getattr(before, key), getattr(suite, key)
        if old != new:
            raise _conflict(path, key, _shown(old), _shown(new))


def _listed(models: Surrogates) -> list[str]:
    if isinstance(models, list):
        return models
    return [models] if isinstance(models, str) else []


def _conflict(path: Path, key: str, old: Any, new: Any) -> InputError:
    return InputError(
        f"{path.parent} holds a run with {key} = {old}, this one has {new}; give another --out"
    )


def _shown(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value
