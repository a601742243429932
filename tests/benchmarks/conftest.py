"""The command line in this process, suites from a few changed keys, and runs to look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tomli_w
import torch

from advens.attacks.whitebox import sanity
from advens.benchmarks.suites import Suite, set_key
from advens.results.store import RunStore
from advens.results.store.images import CleanImages, read_images
from advens.trust import trusting
from tests.command_line import caller, only_line

HERE = Path(__file__).parent

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": "digits:test?limit=20",
    "targets": ["toys:centroid?seed=1", "toys:centroid?seed=3", "toys:centroid?seed=4"],
    "shard": 10,
    "threat": {"eps": 0.2, "steps": 2},
    "surrogates": {"pair": ["toys:centroid?seed=1", "toys:centroid?seed=2"]},
    "attacks": [{"name": "mifgsm"}, {"name": "difgsm"}],
}
"""Two attacks on one set, two shards: four cells; three targets, one of them white-box."""


@dataclass(frozen=True)
class Said:
    """What a command line gave back."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> str:
        """Asserts exit code 2 and one line for people that holds the words; gives the line."""
        assert self.code == 2, self
        return self._one_line(*words)

    def failed(self, *words: str) -> str:
        """Asserts exit code 1 and a last line for people that holds the words."""
        assert self.code == 1, self
        return self._one_line(*words)

    def unfinished(self) -> None:
        """Asserts exit code 1 of ``verify``, for no other reason than that something is missing."""
        self.failed("mismatches")
        told = [line for line in self.err.splitlines() if line.startswith("MISMATCH  ")]
        assert told
        assert all("missing" in line for line in told), self.err

    def done(self) -> Said:
        """Asserts exit code 0."""
        assert self.code == 0, self
        return self

    def _one_line(self, *words: str) -> str:
        kinds = (
            "building: ", "training: ", "crafting: ", "crafting again: ", "evaluating: ", "comparing: ",
            "checking: ", "verifying: ", "measuring: ", "failed: ", "MISMATCH  ", "warning: ", "note: ",
        )  # fmt: skip
        told = [line for line in self.err.splitlines() if not line.startswith(kinds)]
        assert "Traceback" not in self.out + self.err
        return only_line([line for line in told if ": check '" not in line], *words)


@pytest.fixture(scope="session", autouse=True)
def _surroundings() -> Iterator[None]:
    """One thread, and ``toys`` importable, here and in worker processes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("COLUMNS", "120")
        with trusting("toys:*"):
            yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _short_reports() -> Iterator[None]:
    """Sanity reports with few steps and queries: the toys need no more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sanity, "STEPS", (1, 5, 20))
        patch.setattr(sanity, "USUAL", 10)
        patch.setattr(sanity, "RESTARTS", 2)
        patch.setattr(sanity, "QUERIES", 40)
        yield


@pytest.fixture
def advens(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """``advens("run", path)``: the command line, in this process."""
    return caller(Said, capsys)


@pytest.fixture
def process() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """``process("run", path)``: the command line in a process of its own, ended with the test.

    ``before`` is a line of Python that runs first.
    """
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, before: str = "") -> subprocess.Popen[str]:
        # Ctrl-C is heard also where the tests themselves run in the background, who are deaf to it
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); " \
            f"import advens; from advens.cli import main\n{before}\nwith advens.trusting('toys:*'): main()"
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


def tiny(**changes: Any) -> dict[str, Any]:
    """`TINY` with keys changed: dots are double underscores, None takes a key away."""
    table = deepcopy(TINY)
    for key, value in changes.items():
        set_key(table, key.replace("__", "."), value)
    return {key: value for key, value in table.items() if value is not None}


@pytest.fixture
def suite(tmp_path: Path) -> Callable[..., Path]:
    """``suite(threat__eps=0.1)``: a suite file that differs from `TINY` in that key."""

    def write(filename: str = "tiny.toml", **changes: Any) -> Path:
        path = tmp_path / filename
        path.write_text(tomli_w.dumps(tiny(**changes)))
        return path

    return write


@pytest.fixture
def made() -> Callable[..., Suite]:
    """``made(threat__eps=0.1)``: the same as a value."""
    return lambda **changes: Suite.model_validate(tiny(**changes))


@pytest.fixture
def rows() -> Callable[..., pd.DataFrame]:
    """All sample rows of a run."""
    return lambda directory: RunStore(directory).read_samples()


@pytest.fixture
def images() -> Callable[..., dict[str, list[bytes]]]:
    """The images of a run, by cell."""

    def read(directory: Path) -> dict[str, list[bytes]]:
        store, clean = RunStore(directory), CleanImages()
        return {
            cell: [image.tobytes() for image in read_images(store, cell, clean)[1]] for cell in store.cells()
        }

    return read


@pytest.fixture
def times() -> Callable[..., dict[str, int]]:
    """When every parquet file of a run was written, in ns."""
    return lambda directory, what="**": {
        str(path.relative_to(directory)): path.stat().st_mtime_ns
        for path in sorted(Path(directory).glob(f"{what}/*.parquet"))
    }
