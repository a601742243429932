"""Runs that are killed at random times end with the bytes of one that was not disturbed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
from pathlib import Path
from advens.benchmarks import runner, verify
from advens.benchmarks.studies.soak import soak
counted = soak(Path(sys.argv[1]), kills=4, parts=2, seed=1)
assert counted["kills"] >= 4 and counted["runs"] >= 1, counted
"""


def test_a_few_kills(tmp_path: Path) -> None:
    """In a process of its own, which has no threads when it forks."""
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr + "".join(path.read_text() for path in tmp_path.glob("*.log"))
