"""How busy an executor keeps its workers.

    python -m advens.benchmarks.speed.executors [--executor ray] [--workers 8] [--tasks 400] [--out FILE.json]

Tasks wait instead of computing, so that more workers than cores can be tried on one machine. The share of
time in which workers are busy is that between the moment when the last of them has begun its first task and
the moment when the first of them has no task left. How long it takes until all have begun, and the share over
the whole time, stand beside it. For ``ray`` a cluster is started on this machine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from advens.benchmarks.environment import commit, versions
from advens.benchmarks.executors import create_executor
from advens.cli import script
from advens.errors import InputError


@dataclass(frozen=True)
class Wait:
    """A task that only takes time.

    Args:
        number: which one it is.
        seconds: that it takes.
    """

    number: int
    seconds: float

    @property
    def title(self) -> str:
        return f"wait {self.number}"

    def do(self, device: str) -> tuple[int, float, float]:
        """The process that did it, when it began and when it ended."""
        began = time.time()
        time.sleep(self.seconds)
        return os.getpid(), began, time.time()


def measured(name: str, workers: int, tasks: int, seconds: float) -> dict[str, Any]:
    """Times and the share of busy time of an executor's workers."""
    executor = create_executor(name, workers=workers)
    asked = time.time()
    spans = [span for _, span in executor.execute([Wait(number, seconds) for number in range(tasks)])]
    of_worker: dict[int, list[tuple[float, float]]] = {}
    for worker, began, ended in spans:
        of_worker.setdefault(worker, []).append((began, ended))
    if len(of_worker) != workers:
        raise InputError(f"{len(of_worker)} of {workers} workers had a task; give more --tasks")
    all_began = max(min(began for began, _ in own) for own in of_worker.values())
    one_idle = min(max(ended for _, ended in own) for own in of_worker.values())
    last = max(ended for _, _, ended in spans)
    return {
        "executor": name, "workers": workers, "tasks": tasks, "seconds a task": seconds,
        "seconds until all began": round(all_began - asked, 2), "seconds": round(last - asked, 2),
        "busy": round(busy(of_worker.values(), all_began, one_idle), 4),
        "busy over the whole time": round(busy(of_worker.values(), asked, last), 4),
    }  # fmt: skip


def busy(spans: Collection[Sequence[tuple[float, float]]], begin: float, end: float) -> float:
    """The share of the time between two moments in which workers were at a task.

    Args:
        spans: of every worker, when its tasks began and ended.
    """
    inside = sum(max(0.0, min(b, end) - max(a, begin)) for own in spans for a, b in own)
    return inside / (len(spans) * (end - begin))


@click.command()
@click.option("--executor", "name", default="ray", show_default=True)
@click.option("--workers", type=click.IntRange(1), default=8, show_default=True)
@click.option("--tasks", type=click.IntRange(1), default=400, show_default=True)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Also write JSON.")
def main(name: str, workers: int, tasks: int, seconds: float, out: Path | None) -> None:
    """Measure how busy an executor keeps its workers."""
    if name == "ray":
        import ray

        ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    found = measured(name, workers, tasks, seconds)
    click.echo(json.dumps(found, indent=1))
    if out is not None:
        about = {"commit": commit(), "packages": versions()} | found
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    script(main)
