"""Attacks: ``from advens.attacks import MIFGSM`` gives a published method as a factory.

    attack = MIFGSM(eps="8/255", steps=10)
    x_adv = attack(models, x, y)

Parts to compose your own from live in `losses`, `transforms`, `estimators`, `fusions`, `filters`,
`updates`, `steps` and `starts`. A file dropped into this package, or a plug-in of the entry-point
group ``advens.attacks``, registers its methods by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "Attack": "interfaces",
    "ComposedAttack": "attack",
    "AttackResult": "interfaces",
    "attack_from_spec": "registry",
    "attack_info": "registry",
    "create_attack": "registry",
    "list_attacks": "registry",
    "recipe": "registry",
    "part": "parts",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when asked for; a recipe by the name of its function."""
    if name in _HOMES:
        return getattr(import_module(f"advens.attacks.{_HOMES[name]}"), name)
    if not name.startswith("_"):
        from advens.attacks.registry import RECIPES

        for entry in RECIPES:
            made = RECIPES.get(entry)
            if getattr(made, "__name__", None) == name:
                return made
    raise AttributeError(f"module 'advens.attacks' has no attribute '{name}'")


__all__ = sorted(_HOMES)
