"""Time, peak memory and size of the page of a large run, from its stored boards.

    python -m advens.benchmarks.speed.report                          # 120 attacks, 30 targets, 4 seeds
    python -m advens.benchmarks.speed.report --run runs/quickstart    # a run that is there

A run is made up and written first, which is not measured; its images are 2 x 2 pixels.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
import pandas as pd

from advens.benchmarks.speed.boards import _timed, made_up
from advens.results.boards import write_board
from advens.results.report.collect import collect
from advens.results.report.page import pictures, render
from advens.results.store import RunStore, schema, write_examples, write_table


def write_run(directory: Path, attacks: int, targets: int, images: int, seeds: int) -> None:
    """Writes a made-up run with its boards: a cell for every attack and seed."""
    store = RunStore(directory)
    for seed in range(seeds):
        samples = made_up(attacks, targets, images, seed)
        samples = samples.assign(seed=seed, attack_params="{}", clean_pred=1, l1=1.0)
        samples["cell"] = samples["cell"].astype(str) + f"-{seed}"
        samples["member"] = pd.array([None] * len(samples), dtype="Int64")
        for (cell, target), rows in samples.groupby(["cell", "target"], observed=True):
            path = store.samples_path(str(cell), str(target))
            write_table(path, schema.to_table("samples", rows[schema.SAMPLES.names]))
        ids = sorted(set(samples["sample_id"]))
        for attack in range(attacks):
            _write_images(store, attack, seed, ids)
    for name in ("matrix", "leaderboard"):
        write_board(directory, name)


def _write_images(store: RunStore, attack: int, seed: int, ids: list[str]) -> None:
    cell = f"cell{attack}-{seed}"
    rng = np.random.default_rng(attack)
    images = pd.DataFrame({
        "cell": cell, "sample_id": ids, "label": 1, "target_label": pd.array([None] * len(ids)),
        "image": [rng.integers(0, 256, 12, dtype=np.uint8).tobytes() for _ in ids], "height": 2, "width": 2,
        "linf": 0.03, "l2": 1.0, "l1": 1.0,
    })  # fmt: skip
    write_examples(store.examples_path(cell), images, {
        "suite": "made up", "attack": f"attack{attack}", "attack_params": {"name": "made up", "of": attack},
        "family": "fusion", "surrogates": "all", "surrogate_specs": ["made-up:model"],
        "surrogate_digests": ["0"], "seed": seed, "shard": [0, len(ids)], "norm": "linf", "eps": 0.03,
        "forwards_per_sample": 10.0 + attack, "backwards_per_sample": 10.0 + attack,
        "seconds_per_image": 0.01, "data": "digits:test", "data_fingerprint": "0", "device": "cpu",
        "version": "0",
    })  # fmt: skip


@click.command()
@click.option("--run", type=click.Path(path_type=Path), help="A run that is there, not a made-up one.")
@click.option("--attacks", default=120, show_default=True)
@click.option("--targets", default=30, show_default=True)
@click.option("--images", default=200, show_default=True)
@click.option("--seeds", default=4, show_default=True)
def main(run: Path | None, attacks: int, targets: int, images: int, seeds: int) -> None:
    """Measure time, memory and size of a page."""
    with tempfile.TemporaryDirectory() as folder:
        if run is None:
            run = Path(folder)
            write_run(run, attacks, targets, images, seeds)
        report = _timed("collect", lambda: collect(run))
        shown = _timed("pictures", lambda: pictures(run, report))
        without = _timed("without them", lambda: render(report))
        whole = _timed("render", lambda: render(report, shown))
    click.echo(f"{len(whole.encode()):,} bytes, {len(without.encode()):,} without images")


if __name__ == "__main__":
    main()
