"""How long a large run takes to be planned, to start, and to say how far it is.

    python -m advens.benchmarks.speed.planning                        # 100,000 cells, 4 targets
    python -m advens.benchmarks.speed.planning --seeds 1 --out FILE.json

Nothing is crafted: the files of the run are made up, and every run stops at its first task. What reading
weights and data takes is part of every figure.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from advens.benchmarks.environment import commit, versions
from advens.benchmarks.estimate import dry_run_lines
from advens.benchmarks.executors import Outcomes
from advens.benchmarks.executors.base import T
from advens.benchmarks.plan import Plan, make_plan
from advens.benchmarks.runner import run_suite
from advens.benchmarks.status import status_lines
from advens.benchmarks.suites import Suite
from advens.datasets import load_data
from advens.results.store import RunStore, schema, write_examples
from advens.results.store.listing import INDEX

MODELS = (
    "resnet", "convnext", "byobnet", "vit-b", "mixer", "coatnet", "efficientnet", "deit3", "resnet-b", "vit",
)  # fmt: skip
TARGETS = ("digits:swin", "digits:nfnet", "digits:mambaout", "digits:convmixer")
ATTACKS = ("fgsm", "mifgsm", "difgsm", "tifgsm", "sifgsm", "pgd", "ens-logits", "svre", "adaea", "cwa")
SHARDS = 100
LINKS = 10_000
"""Names of one file of images: file systems limit them."""
CELLS, PAIRS = 8, 240
"""Cells of a file of rows, and its pairs of a cell and a target, about."""


class Stopped(Exception):
    """Raised in place of the first task."""


@dataclass
class Stop:
    """Does no task."""

    device: str = "cpu"
    workers: int = 1

    def execute(self, tasks: Sequence[T]) -> Outcomes[T]:
        """Stop the run where it would begin to work."""
        raise Stopped(len(tasks))


def large_suite(seeds: int) -> Suite:
    """Ten thousand cells for every seed: ten attacks on ten models, a hundred shards of one image."""
    return Suite.model_validate({
        "name": "large", "data": f"synthetic:shapes?n={SHARDS}", "shard": 1, "seeds": list(range(seeds)),
        "targets": list(TARGETS), "threat": {"eps": 0.1, "steps": 10},
        "surrogates": {"each": [f"digits:{name}" for name in MODELS]},
        "attacks": [{"name": name} for name in ATTACKS],
    })  # fmt: skip


def make_images(store: RunStore, plan: Plan) -> None:
    """A file of images for every cell; what is in it is the same for many."""
    about = plan.cells[0].to_json() | {
        "norm": "linf", "eps": 0.1, "forwards_per_sample": 1.0, "backwards_per_sample": 1.0,
        "seconds_per_image": 0.01, "device": "cpu", "version": "0",
    }  # fmt: skip
    images = {
        "cell": ["made up"], "sample_id": ["0"], "label": [0], "target_label": [None], "image": [bytes(3)],
        "height": [1], "width": [1], "linf": [0.0], "l2": [0.0], "l1": [0.0],
    }  # fmt: skip
    for k, cell in enumerate(plan.cells):
        path = store.examples_path(cell.key)
        if k % LINKS == 0:
            first = path
            write_examples(path, images, about)
        else:
            os.link(first, path)


def make_rows(store: RunStore, plan: Plan) -> None:
    """Rows of every cell for every target, in files of about as many pairs as a task evaluates."""
    text = {name: [""] for name in ("suite", "attack", "attack_params", "surrogates", "target", "cell")}
    table = schema.to_table("samples", text | {
        "seed": [0], "sample_id": ["0"], "label": [0], "target_label": [None], "clean_pred": [0],
        "adv_pred": [0], "clean_correct": [True], "success": [False], "linf": [0.0], "l2": [0.0], "l1": [0.0],
        "white_box": [False], "member": [None], "weight": [1.0], "target_family": ["cnn"],
    })  # fmt: skip
    size = max(1, PAIRS // len(plan.targets))
    for start in range(0, len(plan.cells), size):
        cells = plan.cells[start : start + size]
        store.write_samples({(cell.key, key): table for cell in cells for key in plan.keys.values()})


def start(suite: Suite, folder: Path) -> None:
    """Run a suite until its first task."""
    with suppress(Stopped):
        run_suite(suite, folder, executor=Stop())


def figures(seeds: int, folder: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """Seconds of a clock and of CPU, by what takes them."""
    suite, store = large_suite(seeds), RunStore(folder)
    yield "dry run", _seconds(lambda: dry_run_lines(suite))
    data = load_data(suite.source)
    made: list[Plan] = []
    yield "plan", _seconds(lambda: made.append(make_plan(suite, data)))
    plan = made[0]
    yield "names of the cells", _seconds(lambda: [cell.key for cell in plan.cells])
    yield "start of an empty run", _seconds(lambda: start(suite, folder))
    make_images(store, plan)
    yield "first start with all images", _seconds(lambda: start(suite, folder))
    yield "start with all images", _seconds(lambda: start(suite, folder))
    make_rows(store, plan)
    yield "status, first", _seconds(lambda: status_lines(store))
    yield "status", _seconds(lambda: status_lines(store))
    (folder / INDEX).unlink()
    yield "status without an index", _seconds(lambda: status_lines(store))


def _seconds(work: Callable[[], Any]) -> tuple[float, float]:
    started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started[0], time.process_time() - started[1]


@click.command()
@click.option("--seeds", default=10, show_default=True, help="Each is 10,000 cells.")
@click.option("--out", type=click.Path(path_type=Path))
def main(seeds: int, out: Path | None) -> None:
    """Measure planning, starting and status of a large run."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (seconds, cpu) in figures(seeds, Path(folder)):
            found[name] = {"seconds": round(seconds, 2), "cpu": round(cpu, 2)}
            click.echo(f"{name:<32}{seconds:>8.2f} s{cpu:>8.2f} s of CPU")
    if out is not None:
        about = {"cells": seeds * 10_000, "targets": len(TARGETS), "commit": commit(), "packages": versions()}
        out.write_text(json.dumps(about | {"figures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
