"""Adversarial robustness of image classifiers: transfer attacks on ensembles of surrogates, defenses that
resist them, and results with intervals, significance and the compute that was spent.

Importing this package imports no torch: public names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "list_attacks": "advens.attacks.registry",
    "create_attack": "advens.attacks.registry",
    "list_models": "advens.models",
    "load_model": "advens.models",
    "load_data": "advens.datasets",
    "sanity_report": "advens.attacks.whitebox.sanity",
    "trusting": "advens.trust",
    "list_defenses": "advens.defenses",
    "create_defense": "advens.defenses",
    "run": "advens.benchmarks.api",
    "open_run": "advens.benchmarks.api",
    "Run": "advens.benchmarks.api",
}
"""The public names, and the modules that define them."""

if TYPE_CHECKING:
    from advens.attacks.registry import create_attack as create_attack
    from advens.attacks.registry import list_attacks as list_attacks
    from advens.attacks.whitebox.sanity import sanity_report as sanity_report
    from advens.benchmarks.api import Run as Run
    from advens.benchmarks.api import open_run as open_run
    from advens.benchmarks.api import run as run
    from advens.datasets import load_data as load_data
    from advens.defenses import create_defense as create_defense
    from advens.defenses import list_defenses as list_defenses
    from advens.models import list_models as list_models
    from advens.models import load_model as load_model
    from advens.trust import trusting as trusting


def __getattr__(name: str) -> Any:
    """The public functions, imported when first asked for."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'advens' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*_HOMES, "__version__"])


__all__ = [
    "Run",
    "create_attack",
    "create_defense",
    "list_attacks",
    "list_defenses",
    "list_models",
    "load_data",
    "load_model",
    "open_run",
    "run",
    "sanity_report",
    "trusting",
]
