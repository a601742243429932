"""Runs, defenses, data sets, checkpoints and suites as somebody with bad intentions would send them.

What they try to do leaves a file, the *canary*; no test may find it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch

from advens import trust
from advens.cli import invoke
from advens.models import load_model
from advens.results.store import RunStore, read_cell, read_table, write_examples, write_table
from tests.command_line import caller, only_line

SURROGATE, TARGET, DATA = "digits:mambaout", "digits:mixer", "digits:test?limit=4"
SUITE: dict[str, Any] = {
    "name": "honest", "data": DATA, "targets": [TARGET], "shard": 4, "threat": {"eps": 0.2, "steps": 1},
    "surrogates": {"one": [SURROGATE]}, "attacks": [{"name": "fgsm"}],
}  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What a command line gave back."""

    code: int
    out: str
    err: str

    def refused(self, *words: str) -> str:
        """Asserts exit code 2 and one line that holds the words; gives the line."""
        assert self.code == 2, self
        lines = [line for line in self.err.splitlines() if not line.startswith("verifying: ")]
        return only_line(lines, *words)


@pytest.fixture(autouse=True)
def _nothing_is_trusted() -> Iterator[None]:
    """Other tests of the same process may trust names of their own."""
    token = trust._trusted.set(frozenset())
    yield
    trust._trusted.reset(token)


@pytest.fixture(autouse=True)
def canary(tmp_path: Path) -> Iterator[Path]:
    """The file that executed code would leave; it is not there when the test ends."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code from a file was executed"


@pytest.fixture
def evil(canary: Path) -> str:
    """A name that would make the canary."""
    return f"os:system?command=touch%20{canary}"


@pytest.fixture
def advens(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """``advens("verify", path)``: the command line, in this process."""
    return caller(Said, capsys)


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one cell."""
    folder = tmp_path_factory.mktemp("honest")
    (folder / "suite.toml").write_text(tomli_w.dumps(SUITE))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert invoke(["run", str(folder / "suite.toml"), "--out", str(folder / "run")]) == 0
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    """A copy of it to be forged."""
    return Path(shutil.copytree(honest, tmp_path / "run"))


def recell(run: Path, **changes: Any) -> None:
    """Change what the only cell of a run says of itself; the file keeps its name."""
    store = RunStore(run)
    path = store.examples_path(store.cells()[0])
    write_examples(path, read_table(path, "examples"), read_cell(path) | changes)


def resample(run: Path, **changes: str) -> None:
    """Fill text columns of all rows of samples with a value."""
    import pyarrow as pa

    for path in (run / "samples").glob("*.parquet"):
        table = read_table(path, "samples")
        for name, value in changes.items():
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), pa.array([value] * table.num_rows))
        write_table(path, table)


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defense of one member."""
    from advens.defenses.ensembles import Ensemble

    path = tmp_path_factory.mktemp("saved") / "defense"
    Ensemble([load_model(SURROGATE)]).save(path)
    return path


@pytest.fixture
def defense(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to be forged."""
    return Path(shutil.copytree(saved, tmp_path / "defense"))


def redescribe(defense: Path, **changes: Any) -> None:
    """Change what a saved ensemble says of its first member."""
    about = json.loads((defense / "ensemble.json").read_text())
    about["members"][0] |= changes
    (defense / "ensemble.json").write_text(json.dumps(about))
