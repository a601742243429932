"""Several commands at once on one machine: what it costs that idle threads spin.

    python -m advens.benchmarks.speed.contention [--out FILE.json]

An OpenMP thread that waits for work spins by default, and holds a core that another process needs. The
command line sets ``GOMP_SPINCOUNT`` so that it soon sleeps. Here the same command runs alone and several
at once, with the default spinning of the OpenMP library and with the setting, in turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click

from advens.benchmarks.environment import commit, versions

COMMAND = [
    "craft", "mifgsm", "--surrogates", "digits:resnet,digits:convnext", "--data", "digits:test?limit=200",
    "--eps", "0.2", "--no-png", "--device", "cpu",
]  # fmt: skip
SPINNING = {"library default": "300000", "set by advens": "10000"}
"""GOMP_SPINCOUNT: what GNU's OpenMP library takes where nothing is set, and what the command line sets."""


def seconds(at_once: int, spincount: str) -> float:
    """Wall-clock seconds until all of ``at_once`` equal commands are done."""
    script = f"import sys; from advens.cli import invoke; sys.exit(invoke({COMMAND!r} + ['--out', 'out']))"
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environment["GOMP_SPINCOUNT"] = spincount
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(k) for k in range(at_once)]
        for place in places:
            place.mkdir()
        started = time.perf_counter()
        running = [
            subprocess.Popen(
                [sys.executable, "-c", script], cwd=place, env=environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            )
            for place in places
        ]  # fmt: skip
        for process in running:
            _, errors = process.communicate()
            if process.returncode:
                raise click.ClickException(errors)
        return time.perf_counter() - started


@click.command()
@click.option("--at-once", default=2, show_default=True, help="Commands at the same time.")
@click.option("--rounds", default=3, show_default=True, help="Repetitions; the median is shown.")
@click.option("--out", type=click.Path(path_type=Path))
def main(at_once: int, rounds: int, out: Path | None) -> None:
    """Measure one command alone and several at once, with and without spinning threads."""
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for name, spincount in SPINNING.items():
            for count in (1, at_once):
                times.setdefault((name, count), []).append(seconds(count, spincount))
    lines: list[dict[str, Any]] = []
    click.echo(f"{'waiting threads':<18}{'alone':>9}{f'{at_once} at once':>12}")
    for name in SPINNING:
        alone, together = (median(times[name, count]) for count in (1, at_once))
        lines.append({"waiting_threads": name, "alone_s": alone, "together_s": together})
        click.echo(f"{name:<18}{alone:>8.1f}s{together:>11.1f}s")
    if out is not None:
        about = {
            "command": " ".join(["advens", *COMMAND]), "at_once": at_once, "rounds": rounds,
            "cores": os.cpu_count(), "commit": commit(), "packages": versions(), "lines": lines,
        }  # fmt: skip
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
