"""One directory, one comparison: a later run may add to it, never change what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from advens.benchmarks.suites import Suite, Surrogates, parse
from advens.errors import InputError

FIXED = ("name", "goal", "data", "limit", "threat", "budget", "defaults", "shard")


def agree(path: Path, suite: Suite) -> Suite:
    """The union of the suite already in a directory and a new one.

    Raises:
        InputError: data, threat or shards differ, or a label or set of the same name is another.
    """
    if not path.is_file():
        return suite
    before = parse(path.read_text(), str(path))
    suite = parse(suite.toml(), str(path))  # a tuple from the command line is a list in a file
    for key in FIXED:
        old, new = getattr(before, key), getattr(suite, key)
        if old != new:
            raise _conflict(path, key, _short(old), _short(new))
    for name, models in suite.surrogates.items():
        old = before.surrogates.get(name, models)
        if old != models and name != "each":
            raise _conflict(path, f"surrogates.{name}", old, models)
    entries = {entry.title: entry for entry in before.attacks}
    for entry in suite.attacks:
        known = entries.get(entry.title, entry)
        if known != entry:
            raise _conflict(path, f"attack '{entry.title}'", _entry(known), _entry(entry))
    sets = before.surrogates | suite.surrogates
    if "each" in sets:
        alone = [_listed(s.surrogates.get("each", [])) for s in (before, suite)]
        sets["each"] = list(dict.fromkeys([*alone[0], *alone[1]]))
    return suite.model_copy(
        update={
            "seeds": sorted({*before.seeds, *suite.seeds}),
            "targets": list(dict.fromkeys([*before.targets, *suite.targets])),
            "surrogates": sets,
            "attacks": list((entries | {e.title: e for e in suite.attacks}).values()),
        }
    )


def _listed(models: Surrogates) -> list[str]:
    if isinstance(models, list):
        return models
    return [models] if isinstance(models, str) else []


def _conflict(path: Path, key: str, old: Any, new: Any) -> InputError:
    return InputError(
        f"{path.parent} holds a run with {key} = {old}, this one has {new}; give another --out"
    )


def _short(value: Any) -> Any:
    return value.model_dump(exclude_none=True) if hasattr(value, "model_dump") else value


def _entry(entry: Any) -> dict[str, Any]:
    shown: dict[str, Any] = entry.model_dump(exclude_none=True)
    return shown
