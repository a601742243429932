"""What lists, suites and the status of a run need imports no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = (
    "advens", "advens.cache", "advens.cli", "advens.commands", "advens.datasets.loading", "advens.defenses",
    "advens.digest", "advens.errors", "advens.fields", "advens.files", "advens.listing", "advens.models",
    "advens.printable", "advens.registry", "advens.spec", "advens.threat", "advens.trust",
    "advens.zoo.recipes",
)  # fmt: skip


def test_modules_without_torch() -> None:
    code = (
        "import importlib, sys\n"
        f"for name in {LIGHT}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'pandas', 'pyarrow'} & set(sys.modules)\n"
        "    assert not heavy, (name, heavy)\n"
        "from advens.threat import Threat, parse_eps\n"
        "assert Threat('linf', '8/255').radius == parse_eps('8/255') == 8 / 255\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_found_when_they_are_used() -> None:
    import advens

    assert {"list_attacks", "create_attack", "list_models", "load_model", "load_data", "list_defenses",
            "create_defense", "run", "open_run", "Run"} <= set(dir(advens))  # fmt: skip
    assert advens.list_defenses("dver*") == ["dverge"]
    with pytest.raises(AttributeError, match="module 'advens' has no attribute 'runs'"):
        _ = advens.runs
