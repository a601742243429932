"""The documentation as files, and what writes its generated pages."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^( *)(`{3,})(\w*)[^\n]*\n(.*?)^\1\2 *$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="session")
def catalogue() -> ModuleType:
    """The Sphinx extension that writes pages from what the package declares."""
    spec = spec_from_file_location("catalogue", ROOT / "docs" / "_ext" / "catalogue.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["catalogue"] = module  # where its dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module
