"""Every command that reads a run, on runs with names that call code, links that lead out, absurd sizes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import tomli_w

from advens.cli import COMMANDS
from advens.results.store import RunStore, read_table, write_table
from tests.hostile.conftest import DATA, SUITE, SURROGATE, TARGET, recell, resample

READS = {
    "run": "{suite} --out {run}",
    "status": "{run}",
    "matrix": "{run}",
    "leaderboard": "{run}",
    "report": "{run}",
    "plot": "matrix {run} --out {run}.svg",
    "site": "{run} --out {run}-site",
    "evaluate": "{run} --targets digits:convmixer",
    "verify": "{run} --recraft 1",
    "craft": f"fgsm --surrogates {SURROGATE} --data {DATA} --eps 0.2 --steps 1 --out {{run}}",
    "robustness": f"--models {TARGET} --data {DATA} --attack pgd-ce --eps 0.2 --steps 1 --out {{run}}",
    "defend": f"{TARGET} --data digits:test --limit 4 --surrogates {SURROGATE} --out {{run}}",
    "submit": "{run} --suite {suite} --out {run}.tar --about {about}",
}
"""Arguments of the commands that read a run, or write into one."""
WRITES = ("craft", "robustness", "defend")
"""Those that only write into one: they refuse a run of another suite, whatever else it holds."""
OTHERS = {
    "attacks", "builders", "calibrate", "data", "defenses", "doctor", "lock", "models", "sample", "select",
    "suites", "train", "zoo",
}  # fmt: skip
LINKS = (
    "suite.toml", "plan.json", "environment.json", "matrix.parquet", "leaderboard.parquet", "examples",
    "samples", "examples/*", "samples/*",
)  # fmt: skip
opened: list[str] = []
"""Paths that were opened by Python code."""
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)


def test_every_command_is_here() -> None:
    assert set(READS) | OTHERS == set(COMMANDS)
    assert not set(READS) & OTHERS


@pytest.fixture
def ask(
    run: Path, tmp_path: Path, advens: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Any]:
    """A command on a run that was forged; its answer is one line at most, with a proper exit code."""
    suite, about = tmp_path / "honest.toml", tmp_path / "about.toml"
    suite.write_text(tomli_w.dumps(SUITE))
    about.write_text(
        'authors = ["x"]\npaper = "none"\ncode = "none"\nattempts = 1\nconflicts = "none"\n'
    )
    # what was packed is verified in a process of its own, as by 'verify'
    monkeypatch.setattr("advens.benchmarks.submission.verify_archive", lambda *_, **__: 1)

    def call(command: str) -> Any:
        said = advens(command, *READS[command].format(run=run, suite=suite, about=about).split())
        own = [line for line in said.err.splitlines() if line.startswith("advens: ")]
        assert said.code in (0, 1, 2), said
        assert len(own) == (said.code > 0), said
        assert "Traceback" not in said.out + said.err
        return said

    return call


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("command", READS)
def test_links_that_lead_out(command: str, name: str, run: Path, tmp_path: Path, ask: Any) -> None:
    """What they lead to is the honest file, which would be read without a complaint."""
    outside = tmp_path / "outside"
    path = next(run.glob(name))
    path.rename(outside)
    path.symlink_to(outside)
    before = {each: each.read_bytes() for each in [outside, *outside.rglob("*")] if each.is_file()}
    opened.clear()
    said = ask(command)
    assert [path for path in opened if Path(path) in {outside, *before}] == []
    assert {each: each.read_bytes() for each in before} == before
    shows = command in ("matrix", "leaderboard") and "*" in name  # the sealed board, and nothing below it
    if name.startswith(("examples", "samples")) and command != "status" and not shows:
        assert said.code > 0
    if said.code == 2:
        assert "link" in said.err or "holds a run with" in said.err, said


def of_suite(run: Path, **changes: Any) -> None:
    (run / "suite.toml").write_text(tomli_w.dumps(SUITE | changes))


def with_size(run: Path, name: str, value: int) -> None:
    path = RunStore(run).examples_path(RunStore(run).cells()[0])
    table = read_table(path)
    at = table.schema.get_field_index(name)
    column = pa.array([value] * table.num_rows, table.schema.field(at).type)
    write_table(path, table.set_column(at, table.schema.field(at), column))


FORGED: dict[str, Callable[[Path, str], Any]] = {
    "surrogate": lambda run, evil: recell(run, surrogate_specs=[evil]),
    "data": lambda run, evil: recell(run, data=evil),
    "target": lambda run, evil: resample(run, target=evil),
    "suite": lambda run, evil: of_suite(run, targets=[TARGET, evil], surrogates={"one": [evil]}, data=evil),
    "attack": lambda run, evil: recell(run, attack_params={"name": evil, "fusion": {"name": evil}}),
    "environment": lambda run, evil: (run / "environment.json").write_text(
        json.dumps({"models": {evil: "0"}, "data": {evil: "0"}})
    ),
    "images of 10^18 bytes": lambda run, evil: [
        with_size(run, name, 2**31 - 1) for name in ("height", "width")
    ],
    "a shard of 10^12 images": lambda run, evil: recell(run, shard=[0, 10**12], shard_size=10**12),
    "10^12 steps": lambda run, evil: of_suite(run, threat={"eps": 0.2, "steps": 10**12}),
    "a garbled suite": lambda run, evil: (run / "suite.toml").write_bytes(b"\xff\xfe\x00"),
}  # fmt: skip


@pytest.mark.parametrize("forged", FORGED)
def test_names_and_sizes(forged: str, run: Path, evil: str, tmp_path: Path, ask: Any) -> None:
    """Nothing is executed: the canary is looked for when the test ends."""
    shutil.copytree(run, tmp_path / "kept")
    for command in set(READS) - set(WRITES):
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "kept", run)
        FORGED[forged](run, evil)
        ask(command)
