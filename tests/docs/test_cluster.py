"""The files for clusters that the guide shows: they parse, and what they start is run here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import yaml

from advens.cli import invoke
from tests.docs.test_pages import code_lines, known

GUIDE = Path(__file__).parents[2] / "docs" / "guide"
FILES = sorted((GUIDE / "cluster").iterdir())
SCRIPTS = [path for path in FILES if path.suffix == ".sh"]
JOBS: list[dict[str, Any]] = list(yaml.safe_load_all((GUIDE / "cluster" / "kubernetes.yaml").read_text()))


def container(job: dict[str, Any]) -> dict[str, Any]:
    (found,) = job["spec"]["template"]["spec"]["containers"]
    return dict(found)


def typed() -> list[list[str]]:
    """The words after ``advens`` in code of the guide, the scripts and the manifest; a variable is 1."""
    found = []
    for line in [*code_lines((GUIDE / "scaling.md").read_text()), *shown()]:
        before, called, after = line.partition("advens ")
        if called:
            quoted = before.endswith('"')  # sbatch --wrap "..."
            words = shlex.split(after.partition('"')[0] if quoted else after, comments=True)
            ends = [*(at for at, word in enumerate(words) if word == "&"), len(words)]
            found.append([re.sub(r"\$(\(\(.*?\)\)|\w+)", "1", word) for word in words[: ends[0]]])
    return found


def shown() -> list[str]:
    """The lines of the scripts and the manifest that call ``advens``."""
    lines = [" ".join(container(job)["args"]) for job in JOBS]
    lines += [line for path in SCRIPTS for line in path.read_text().replace("\\\n", " ").splitlines()]
    return [line for line in lines if "advens run" in line]


def test_every_command_can_be_typed():
    found = typed()
    assert len(shown()) == 4
    assert sum("--part" in words for words in found) >= 4
    for name, *words in found:
        known()[name].make_context(name, words)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    given = [line.split()[1:] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"--[a-z-]+(=\S+)?", option) for (option,) in given)
    assert text.index("#SBATCH") < text.index("set -euo")  # Slurm reads none after the first command


def test_the_jobs_are_a_run_and_its_end():
    parts, boards = JOBS
    assert {job["apiVersion"] for job in JOBS} == {"batch/v1"}
    assert parts["spec"]["completionMode"] == "Indexed"
    values = {each["name"]: each["value"] for each in container(parts)["env"]}
    assert int(values.pop("PARTS")) == parts["spec"]["completions"]
    assert values.items() >= {each["name"]: each["value"] for each in container(boards)["env"]}.items()
    ours, theirs = (job["spec"]["template"]["spec"]["volumes"] for job in JOBS)
    assert ours == theirs


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A suite of two cells, a folder, and a search path where ``srun`` runs what it is given."""
    path, out = tmp_path / "suite.toml", tmp_path / "out"
    path.write_text(tomli_w.dumps({
        "name": "tiny", "data": "digits:test?limit=4", "shard": 2, "targets": ["digits:convmixer"],
        "threat": {"eps": 0.2, "steps": 1}, "surrogates": {"one": ["digits:resnet"]},
        "attacks": [{"name": "fgsm"}],
    }))  # fmt: skip
    python = f'exec {shlex.quote(sys.executable)} -c "from advens.cli import main; main()" "$@"'
    for name, does in (("srun", 'exec "$@"'), ("advens", python)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return path, out


def completed(path, out, capsys):
    """What the command says that completes the run."""
    capsys.readouterr()
    assert invoke(["run", str(path), "--out", str(out), "--no-report"]) == 0
    assert (out / "matrix.parquet").is_file()
    return capsys.readouterr().out


def test_a_job_array(run, monkeypatch, capsys):
    path, out = run
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "4")
    subprocess.run(["bash", GUIDE / "cluster" / "slurm-array.sh", path, out], check=True)
    assert not (out / "matrix.parquet").exists()
    assert "nothing to do" in completed(path, out, capsys)


def test_an_indexed_job(run, monkeypatch, capsys):
    path, out = run
    at = container(JOBS[0])
    for each in at["env"]:
        monkeypatch.setenv(each["name"], each["value"])
    here = {"SUITE": path, "OUT": out, "ADVENS_CACHE": out / "cache", "OMP_NUM_THREADS": 1}
    for name, value in here.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "3")
    subprocess.run([*at["command"], *at["args"]], check=True)
    assert "nothing to do" in completed(path, out, capsys)
