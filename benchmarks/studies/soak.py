"""Whether a run that is killed again and again ends with the same bytes as one that nobody disturbed.

    python -m advens.benchmarks.studies.soak [--kills 200] [--parts 3] [--seed 0] [--out FILE.json]

A small suite on the embedded digits is run by commands that are killed (SIGKILL) after random times: by turns
a single command, and several that share the run (``--part``). Between two of them a file is truncated now and
then. When the run is complete, its matrix and its files of rows must have the bytes of the undisturbed run,
and `advens verify` must find nothing; then it begins anew, until there were enough kills.

Commands are forked from this process, so that a kill meets work and not the start of Python.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import click
import tomli_w

from advens.cli import script

SUITE = {
    "name": "soak", "data": "digits:test?limit=60", "shard": 10, "threat": {"eps": 0.2, "steps": 2},
    "targets": ["digits:convmixer", "digits:mixer", "digits:mambaout"],
    "surrogates": {"one": ["digits:resnet"], "two": ["digits:convmixer", "digits:resnet"]},
    "attacks": [{"name": "mifgsm"}, {"name": "difgsm"}],
}  # fmt: skip
"""Twenty-four cells, three targets, one of them white-box to half of the cells."""
TRUNCATED = 0.2
"""How often a file is truncated between two commands."""
CLAIMS = (0.2, 2.0)
"""Seconds between signs of life of a claim, and after which it is dead."""


class Broken(RuntimeError):
    """A run did not end as it has to."""


def soak(
    folder: Path, kills: int, parts: int, seed: int, suite: Mapping[str, object] = SUITE
) -> Counter[str]:
    """Disturb runs in a folder until so many commands were killed; what happened, counted.

    Args:
        parts: commands that share the run, every other time.

    Raises:
        Broken: a run ended with an error or with other bytes.
    """
    rng, counted = random.Random(seed), Counter[str]()
    path, plain, out = folder / "suite.toml", folder / "plain", folder / "out"
    path.write_text(tomli_w.dumps(dict(suite)))
    started = time.monotonic()
    _finished(_forked(folder, "run", path, "--out", plain, "--no-report"))
    usual = time.monotonic() - started
    wanted = _bytes(plain)
    while counted["kills"] < kills or out.exists():
        enough = counted["kills"] >= kills
        shared = parts if not enough and rng.random() < 0.5 else 0
        how = [["--part", f"{i + 1}/{shared}"] for i in range(shared)] or [[]]
        running = [_forked(folder, "run", path, "--out", out, "--no-report", *each) for each in how]
        killed = [not enough and _killed(child, rng.uniform(0, usual)) for child in running]
        for child, gone in zip(running, killed, strict=True):
            if not gone:
                _finished(child)
        counted["kills"] += sum(killed)
        counted["commands that ended"] += len(killed) - sum(killed)
        if not shared and not any(killed):
            if _bytes(out) != wanted:
                raise Broken(f"{out} differs from {plain}")
            _finished(_forked(folder, "verify", out))
            counted["runs"] += 1
            shutil.rmtree(out)
        elif rng.random() < TRUNCATED and (files := sorted(out.glob("*/*.parquet"))):
            file = rng.choice(files)
            os.truncate(file, rng.randrange(file.stat().st_size))
            counted["truncated files"] += 1
    return counted


def _forked(folder: Path, *arguments: object) -> int:
    """The id of a process that runs a command; what it says goes to a file."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        from advens.cli import invoke
        from advens.results.store import lock

        lock.BEAT, lock.DEAD = CLAIMS
        log = os.open(folder / f"{os.getpid()}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = invoke([str(argument) for argument in arguments])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _killed(child: int, seconds: float) -> bool:
    """Kill a process after so many seconds; False when it ended before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.waitstatus_to_exitcode(status):
        raise Broken(f"a command ended with exit code {os.waitstatus_to_exitcode(status)}")
    return os.WIFSIGNALED(status)


def _finished(child: int) -> None:
    """Wait for a process. Raises Broken when it failed."""
    try:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except ChildProcessError:  # it ended in the moment of its kill, and well
        return
    if code:
        raise Broken(f"process {child} ended with exit code {code}; see its log")


def _bytes(run: Path) -> dict[str, bytes]:
    """The matrix and the rows of a run, by the names of their files."""
    files = [run / "matrix.parquet", *run.glob("samples/*.parquet")]
    return {file.name: file.read_bytes() for file in files}


@click.command()
@click.option("--kills", default=200, show_default=True, help="Commands that are killed.")
@click.option("--parts", default=3, show_default=True, help="Commands that share the run, every other time.")
@click.option("--seed", default=0, show_default=True, help="Of the times, parts and files.")
@click.option("--out", type=click.Path(path_type=Path), help="A file for what happened.")
def main(kills: int, parts: int, seed: int, out: Path | None) -> None:
    """Kill runs of a small suite again and again, and compare what they leave with an undisturbed run."""
    from advens.benchmarks import likeness, runner, verify  # noqa: F401 (imported once, before the forks)
    from advens.benchmarks.environment import commit, versions

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counted = soak(Path(folder), kills, parts, seed)
    seconds = time.monotonic() - started
    click.echo(", ".join(f"{number} {what}" for what, number in sorted(counted.items())))
    click.echo(f"every run ended with the same bytes; {seconds:.0f} s")
    if out is not None:
        about = {"commit": commit(), "packages": versions(), "seed": seed, "parts": parts, "seconds": seconds}
        out.write_text(json.dumps({**about, **counted}, indent=1) + "\n")


if __name__ == "__main__":
    script(main)
