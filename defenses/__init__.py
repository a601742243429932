"""Training of robust ensembles, and the ensembles. No defense is registered yet."""

from __future__ import annotations

from typing import Any

from advens.registry import Registry

DEFENSES: Registry[Any] = Registry("defense", package="advens.defenses", group="advens.defenses")


def list_defenses(pattern: str = "*") -> list[str]:
    """Names of defenses that match a shell wildcard."""
    return DEFENSES.names(pattern)


def create_defense(name: str, **overrides: Any) -> Any:
    """The defense of a name, with any default overridden. Raises InputError on an unknown one."""
    return DEFENSES.get(name)(**overrides)


__all__ = ["DEFENSES", "create_defense", "list_defenses"]
