"""Text that would do something where it is shown: escape sequences, markup, formulas, endless names."""

from __future__ import annotations

import csv
import io
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from advens.errors import InputError, RunError
from advens.printable import markdown, printable, table_cell
from advens.results.store import RunStore
from tests.hostile.conftest import SUITE, recell, resample

LABEL = "=cmd|' /C calc'!A0\n\x1b[2J\x1b]0;owned\x07\u202e\x9b<script>alert(1)</script>[a](http://x)|`*"
FORMATS = ("table", "csv", "json", "markdown", "latex")


def raw(text: str) -> set[str]:
    """Characters that a terminal would act on."""
    return {c for c in text if not c.isprintable()} - {"\n"}


@pytest.fixture
def loud(run: Path) -> Path:
    """A run whose attack, set and target are called `LABEL`."""
    resample(run, attack=LABEL, surrogates=LABEL, target=LABEL, suite=LABEL)
    recell(run, attack=LABEL, surrogates=LABEL, suite=LABEL)
    return run


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("command", ["matrix", "leaderboard"])
def test_names_of_a_run(command: str, form: str, loud: Path, advens: Callable[..., Any]) -> None:
    said = advens(command, loud, "--format", form)
    assert said.code == 0, said
    assert raw(said.out + said.err) == set()
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(said.out)))
        assert {row["attack"][:5] for row in rows} == {"'=cmd"}
        assert all(not value.startswith("'") for row in rows for key, value in row.items() if "asr" in key)
    if form == "markdown":
        assert "<script" not in said.out
        assert "](" not in said.out
        table = [line for line in said.out.splitlines() if line.startswith("|")]
        borders = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in table}
        assert len(borders) == 1  # no name adds a column
    if form == "json":
        assert json.loads(said.out)["rows"][0]["attack"] == LABEL


def test_messages_about_a_run(loud: Path, advens: Callable[..., Any]) -> None:
    notes = loud / "failures"
    notes.mkdir()
    (notes / "x\x1b[2J.json").write_text(json.dumps({"task": LABEL, "error": LABEL}))
    plan = json.loads((loud / "plan.json").read_text())
    (loud / "plan.json").write_text(json.dumps(plan | {"cells": {LABEL: LABEL}}))
    for command in (("status", loud), ("verify", loud), ("matrix", loud / LABEL), (LABEL,)):
        said = advens(*command)
        assert raw(said.out + said.err) == set()
    advens("models", f"defense:{LABEL}").refused()


def test_files_of_a_suite(tmp_path: Path, advens: Callable[..., Any]) -> None:
    path = tmp_path / "suite.toml"
    path.write_text("# \x9b2J\u202e\n" + tomli_w.dumps(SUITE))
    said = advens("suites", path)
    assert said.code == 0, said
    assert raw(said.out) == set()


def test_sample_names_of_data(tmp_path: Path, advens: Callable[..., Any]) -> None:
    from PIL import Image

    folder = tmp_path / "photos" / "class\x1b[31m"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "one\x1b]0;x\x07\n.png")
    said = advens("data", f"folder:{tmp_path / 'photos'}")
    assert said.code == 0, said
    assert raw(said.out + said.err) == set()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "n" * 300}, ["name", "at most 100 characters"]),
        ({"surrogates": {"s" * 300: ["digits:mambaout"]}}, ["at most 100 characters"]),
        ({"attacks": [{"name": "fgsm", "label": "l" * 300}]}, ["label", "at most 100 characters"]),
        ({"attacks": [{"name": "fgsm", "label": "a\x1bb"}]}, ["label", "control characters"]),
        ({"targets": ["digits:mixer\u202e"]}, ["control characters"]),
        ({"targets": ["digits:" + "x" * 5000]}, ["at most 4096 characters"]),
        ({"data": "folder:a\x00b"}, ["control characters"]),
    ],
)
def test_names_that_are_no_names(
    change: dict[str, Any], words: list[str], tmp_path: Path, advens: Callable[..., Any]
) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(tomli_w.dumps(SUITE | change))
    line = advens("run", path, "--out", tmp_path / "run").refused(*words)
    assert len(line) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["matrix", "status", "verify", "leaderboard", "suites", "run"])
def test_paths_that_are_too_long(command: str, advens: Callable[..., Any]) -> None:
    line = advens(command, "n" * 300).refused()
    assert raw(line) == set()


def test_errors_are_one_line_wherever_they_are_caught() -> None:
    for kind in (InputError, RunError):
        error = kind(f"what {LABEL} is")
        assert raw(str(error)) == set()
        assert "\n" not in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert str(kind("50 % – fine")) == "50 % – fine"


def test_what_is_escaped_and_what_stays() -> None:
    assert printable("a\x1b[2J\r\n\t\u202e\x9b\ud800é–漢") == r"a\x1b[2J\r\n\t\u202e\x9b\ud800é–漢"
    assert [table_cell(v) for v in ("=1", "+a", "-0.5", "-a", "@x", "\t=1", "a=1", -0.5, None)] == [
        "'=1", "'+a", "-0.5", "'-a", "'@x", "\\t=1", "a=1", -0.5, None,
    ]  # fmt: skip
    assert markdown("a\\|b`c*<i>[x](y)\nz") == "a\\\\\\|b\\`c\\*&lt;i>[x]\\(y) z"


def test_the_lock_of_a_run_is_no_link(run: Path, tmp_path: Path, advens: Callable[..., Any]) -> None:
    """To open it would empty the file that it leads to."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    RunStore(run)
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(victim)
    advens("verify", run).refused("cannot lock")
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["examples", "samples"])
def test_folders_of_a_run_are_its_own(
    name: str, run: Path, tmp_path: Path, advens: Callable[..., Any]
) -> None:
    """To clean up in one that leads elsewhere would delete somebody's files."""
    elsewhere = tmp_path / "elsewhere"
    (run / name).rename(elsewhere)
    (elsewhere / "precious.tmp").write_text("x")
    (run / name).symlink_to(elsewhere)
    advens("verify", run).refused("is a link")
    assert (elsewhere / "precious.tmp").is_file()
