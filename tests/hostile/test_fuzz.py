"""Runs, defenses, builds and suites changed at random, from fixed seeds: commands answer in one line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from advens.attacks.surrogates.builders.cached import FORMAT
from advens.results.store import RunStore, read_cell, read_table
from advens.results.store.files import write_table
from advens.results.store.schema import CELL
from tests.hostile.conftest import DATA, SUITE, SURROGATE, TARGET

COMMANDS = ("verify", "status", "matrix", "leaderboard", "evaluate")
NOTHING = object()
"""Stands for leaving an entry out."""


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def values(evil: str) -> list[Any]:
    """What takes the place of an entry."""
    return [
        NOTHING, None, True, -1, 0, 3, 10**12, 10**30, 1e308, float("nan"), float("inf"), "", "x", "1/0",
        "../x", "digits:resnet", "=1\x1b[2J", "n" * 5000, [], [5], [None], ["x"] * 3, [0, 10**12], [4, 0],
        [[0, 4]], {}, {"name": 5}, {"name": "fgsm", "eps": "many"}, {"": {}},
        nested(50), evil, [evil], {"name": evil},
    ]  # fmt: skip


def places(table: Any) -> list[tuple[Any, Any]]:
    """All (container, key) in a table."""
    pairs = list(table.items() if isinstance(table, dict) else enumerate(table))
    found = [(table, key) for key, _ in pairs]
    for _, value in pairs:
        if isinstance(value, dict | list):
            found += places(value)
    return found


def mutated(table: Any, draw: random.Random, evil: str) -> Any:
    """A copy with one or two entries replaced or left out."""
    table = json.loads(json.dumps(table))
    for _ in range(draw.choice((1, 1, 2))):
        open_places = places(table)
        if not open_places:
            return table
        where, key = draw.choice(open_places)
        value = draw.choice(values(evil))
        if value is NOTHING:
            del where[key]
        else:
            where[key] = value
    return table


def describe(run: Path, table: Any) -> None:
    """Let the only cell of a run say this of itself."""
    store = RunStore(run)
    path = store.examples_path(store.cells()[0])
    rows = read_table(path, "examples")
    told = {**rows.schema.metadata, CELL: json.dumps(table).encode()}
    write_table(path, rows.replace_schema_metadata(told))


def answered(said: Any, what: object) -> None:
    """One line at most on stderr beside progress and mismatches, and an exit code that means something."""
    lines = [
        line for line in said.err.splitlines()
        if line
        and not line.startswith(
            ("verifying: ", "evaluating: ", "comparing: ", "crafting: ", "MISMATCH  ", "warning: ")
        )
    ]
    assert said.code in (0, 1, 2), (what, said)
    assert len(lines) == (said.code > 0), (what, said)
    assert all(line.startswith("advens: ") for line in lines), (what, said)
    assert all(c.isprintable() or c == "\n" for c in said.out + said.err), (what, said)


def ask(advens: Callable[..., Any], command: str, run: Path, what: object) -> None:
    more = ("--targets", SURROGATE) if command == "evaluate" else ()
    try:
        said = advens(command, run, *more)
    except Exception as error:
        raise AssertionError(f"'{command}' raises {error!r} for {json.dumps(what)[:2000]}") from error
    answered(said, what)


@pytest.mark.parametrize("seed", range(40))
def test_descriptions_of_cells(seed: int, run: Path, evil: str, advens: Callable[..., Any]) -> None:
    store = RunStore(run)
    table = mutated(read_cell(store.examples_path(store.cells()[0])), random.Random(seed), evil)
    describe(run, table)
    for command in COMMANDS:
        ask(advens, command, run, table)


@pytest.mark.parametrize("seed", range(20))
def test_plans(seed: int, run: Path, evil: str, advens: Callable[..., Any]) -> None:
    plan = mutated(json.loads((run / "plan.json").read_text()), random.Random(seed), evil)
    (run / "plan.json").write_text(json.dumps(plan))
    for command in ("status", "evaluate"):
        ask(advens, command, run, plan)


@pytest.mark.parametrize("seed", range(20))
def test_suites_of_runs(seed: int, run: Path, evil: str, advens: Callable[..., Any]) -> None:
    draw = random.Random(seed)
    table = mutated(SUITE, draw, evil)
    try:
        text = tomli_w.dumps(table)
    except TypeError:  # TOML has no null
        text = "[" * draw.randrange(1, 3000) + repr(table)
    (run / "suite.toml").write_text(text)
    ask(advens, "evaluate", run, table)
    answered(advens("run", run / "suite.toml", "--dry-run"), table)


@pytest.mark.parametrize("seed", range(20))
def test_defenses(seed: int, defense: Path, evil: str, advens: Callable[..., Any]) -> None:
    path = defense / "ensemble.json"
    table = mutated(json.loads(path.read_text()), random.Random(seed), evil)
    path.write_text(json.dumps(table))
    answered(advens("models", f"defense:{defense}"), table)


@pytest.mark.parametrize("seed", range(20))
def test_builds(
    seed: int, tmp_path: Path, evil: str, advens: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path))
    folder = tmp_path / "built" / "abc"
    folder.mkdir(parents=True)
    about = {"format": FORMAT, "bases": ["0"], "family": "cnn", "input_size": [32, 32], "members": ["0"],
             "names": [SURROGATE], "num_classes": 10}  # fmt: skip
    table = mutated(about, random.Random(seed), evil)
    (folder / "about.json").write_text(json.dumps(table))
    answered(advens("select", "--from", "built:abc/0", "-k", 1, "--data", DATA), table)
    answered(advens("models", "built:abc/0"), table)


def test_a_run_that_is_honest(run: Path, advens: Callable[..., Any]) -> None:
    """What the fuzzer changes is accepted unchanged."""
    store = RunStore(run)
    describe(run, read_cell(store.examples_path(store.cells()[0])))
    assert [advens(command, run).code for command in COMMANDS[:4]] == [0] * 4
    assert advens("evaluate", run, "--targets", TARGET).code == 0
