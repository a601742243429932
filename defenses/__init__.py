"""Training of robust ensembles, and the ensembles."""

from __future__ import annotations

from advens.defenses.registry import DEFENSES, create_defense, list_defenses

__all__ = ["DEFENSES", "create_defense", "list_defenses"]
