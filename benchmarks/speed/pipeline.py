"""What the pipeline costs beside the bare crafting and evaluation of a run.

    python -m advens.benchmarks.speed.pipeline [--seconds 10] [--cells 5] [--out FILE.json]

A suite whose cells take about so many seconds is run, with its plan, files, comparison of models and boards,
and beside it the same attacks and forward passes with nothing around them. Then one cell is evaluated on ten
targets, beside the forward passes of these on its clean and its adversarial images. All in one thread of this
process and in seconds of CPU, so that a busy machine changes little.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from advens.benchmarks.cells import Cell
from advens.benchmarks.environment import commit, versions
from advens.benchmarks.plan import Plan, make_plan
from advens.benchmarks.runner import run_suite
from advens.benchmarks.suites import Suite, from_table
from advens.benchmarks.tasks import Evaluate, Target
from advens.benchmarks.worker_cache import WorkerCache, worker_cache
from advens.datasets import find_data
from advens.results.store import RunStore

SHARD = 100
SURROGATES = ("digits:resnet", "digits:convnext")
TARGETS = (
    "digits:resnet-b", "digits:vit", "digits:vit-b", "digits:deit3", "digits:swin", "digits:mixer",
    "digits:nfnet", "digits:convmixer", "digits:mambaout", "digits:efficientnet",
)  # fmt: skip


def suite_of(cells: int, steps: int) -> Suite:
    """A suite of so many cells, one shard each."""
    suite = from_table(
        {
            "name": "pipeline", "data": f"digits:test?limit={cells * SHARD}", "shard": SHARD,
            "threat": {"eps": 0.2, "steps": steps}, "surrogates": {"two": list(SURROGATES)},
            "targets": list(TARGETS), "attacks": [{"name": "mifgsm"}],
        },
        "pipeline",
    )  # fmt: skip
    assert isinstance(suite, Suite)
    return suite


def planned(suite: Suite) -> Plan:
    """The plan of a suite."""
    return make_plan(suite, find_data(suite.source))


def crafted(cell: Cell, cache: WorkerCache) -> Tensor:
    """The attack of a cell and nothing around it."""
    batch = cache.shard(cell.data, *cell.shard)
    attack: Any = cell.build()
    found = attack.run(
        cache.models.get(cell.specs), cache.images(batch.pixels), batch.labels, seed=cell.random_seed,
        micro_batch=SHARD,
    )  # fmt: skip
    adversarial: Tensor = found.x_adv
    return adversarial


@torch.inference_mode()
def passes(images: Sequence[Tensor], cache: WorkerCache) -> None:
    """The forward passes of all targets on some stacks of images."""
    for name in TARGETS:
        (model,) = cache.models.get([name])
        for stack in images:
            model(stack).argmax(1)


def cpu(work: Callable[[], object]) -> float:
    """Seconds of CPU that some work takes."""
    started = time.process_time()
    work()
    return time.process_time() - started


def measure(seconds: float, cells: int) -> dict[str, float]:
    """Seconds of CPU by what they were spent on."""
    cache = worker_cache("cpu")
    few = 5
    (cell, *_) = planned(suite_of(1, few)).cells
    crafted(cell, cache)
    steps = max(1, round(few * seconds / cpu(lambda: crafted(cell, cache))))
    suite = suite_of(cells, steps)
    every = planned(suite).cells
    passes([cache.images(cache.shard(cell.data, *cell.shard).pixels)], cache)  # models are loaded

    def bare() -> None:
        for each in every:
            adversarial = crafted(each, cache)
            passes([cache.images(cache.shard(each.data, *each.shard).pixels), adversarial], cache)

    found = {"steps": float(steps), "bare run": cpu(bare)}
    with tempfile.TemporaryDirectory() as folder:
        found["run"] = cpu(lambda: run_suite(suite, Path(folder)))
        cell, cache = every[0], worker_cache("cpu")
        cache.models.get(TARGETS)
        clean = cache.images(cache.shard(cell.data, *cell.shard).pixels)
        plan = planned(suite)
        targets = tuple(Target(name, plan.keys[name], plan.cards[name]) for name in TARGETS)
        task = Evaluate(folder, (cell,), targets, SHARD)
        times: dict[str, list[float]] = {"evaluation": [], "bare evaluation": []}
        for _ in range(5):
            cache.clean.clear()
            times["evaluation"].append(cpu(lambda: task.do("cpu")))
            times["bare evaluation"].append(cpu(lambda: passes([clean, clean], cache)))
        assert len(RunStore(folder).cells()) == cells
    return found | {name: min(each) for name, each in times.items()}


@click.command()
@click.option("--seconds", default=10.0, show_default=True, help="Of CPU that a cell takes, about.")
@click.option("--cells", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(seconds: float, cells: int, out: Path | None) -> None:
    """Measure what the pipeline costs beside bare crafting and evaluation."""
    torch.set_num_threads(1)
    found = measure(seconds, cells)
    for name, value in found.items():
        click.echo(f"{name:<18}{value:>9.2f}" + (" s of CPU" if name != "steps" else ""))
    click.echo(f"run: {found['run'] / found['bare run']:.3f} of the bare crafting and evaluation")
    click.echo(f"a cell on ten targets: {found['evaluation'] / found['bare evaluation']:.3f} of the passes")
    if out is not None:
        about = {"commit": commit(), "packages": versions(), "cells": cells, "seconds": found}
        out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
