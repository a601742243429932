"""Time, peak memory and size of the page of a large run, and of a site of many, from their stored boards.

    python -m advens.benchmarks.speed.report                          # 120 attacks, 30 targets, 4 seeds
    python -m advens.benchmarks.speed.report --images 5000            # the same of 5,000 images
    python -m advens.benchmarks.speed.report --runs 50                # a site of 50 runs of 20 attacks
    python -m advens.benchmarks.speed.report --run runs/quickstart    # a run that is there

Runs are made up and written first, and measured in a process of their own. Their images are 2 x 2 pixels, and
their boards are computed from the first 200 images of every seed: a page reads them, whatever they are from.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import pandas as pd
import tomli_w

from advens.benchmarks.speed.boards import _timed, made_up
from advens.results.boards import BOARDS, to_table
from advens.results.boards.board import path_of
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.matrix import transfer_matrix
from advens.results.report.collect import collect
from advens.results.report.page import pictures, render
from advens.results.report.site import Source, gather, pages
from advens.results.store import RunStore, schema, write_examples, write_table

BOARD_IMAGES = 200


def write_run(
    directory: Path, attacks: int, targets: int, images: int, seeds: int, shard: int = 1000, first: int = 0
) -> None:
    """Writes a made-up run with its boards: a cell for every attack, seed and shard.

    Args:
        first: number of the first attack, so that several runs have attacks of their own.
    """
    store, boards = RunStore(directory), []
    for seed in range(seeds):
        for start in range(0, images, shard):
            samples = _samples(attacks, targets, min(shard, images - start), seed, start, first)
            if not start:
                boards.append(samples[samples["sample_id"].cat.codes < BOARD_IMAGES])
            for (cell, target), rows in samples.groupby(["cell", "target"], observed=True):
                path = store.samples_path(str(cell), str(target))
                write_table(path, schema.to_table("samples", rows[schema.SAMPLES.names]))
            ids = list(samples["sample_id"].cat.categories)
            for attack in range(first, first + attacks):
                _write_images(store, attack, seed, start, ids)
    together: pd.DataFrame = pd.concat(boards, ignore_index=True)
    made = {"matrix": transfer_matrix(together), "leaderboard": leaderboard(together, store.read_cells())}
    for name, board in made.items():
        write_table(path_of(directory, BOARDS.get(name)), to_table(name, board))
    about = {"name": directory.name, "threat": {"norm": "linf", "eps": 0.03}}
    (directory / "suite.toml").write_text(tomli_w.dumps(about))


def _samples(attacks: int, targets: int, images: int, seed: int, start: int, first: int) -> pd.DataFrame:
    samples = made_up(attacks, targets, images, seed)
    samples = samples.assign(seed=seed, attack_params="{}", clean_pred=1, l1=1.0)
    samples["member"] = pd.array([None] * len(samples), dtype="Int64")
    ids = [f"{start + k:06d}" for k in range(images)]
    names = [f"attack{first + k}" for k in range(attacks)]
    return samples.assign(
        sample_id=samples["sample_id"].cat.rename_categories(ids),
        attack=samples["attack"].cat.rename_categories(names),
        cell=samples["cell"].cat.rename_categories([_cell(first + k, seed, start) for k in range(attacks)]),
    )


def _cell(attack: int, seed: int, start: int) -> str:
    return f"cell{attack}-{seed}-{start}"


def _write_images(store: RunStore, attack: int, seed: int, start: int, ids: list[str]) -> None:
    cell = _cell(attack, seed, start)
    rng = np.random.default_rng(attack)
    images = pd.DataFrame({
        "cell": cell, "sample_id": ids, "label": 1, "target_label": pd.array([None] * len(ids)),
        "image": [rng.integers(0, 256, 12, dtype=np.uint8).tobytes() for _ in ids], "height": 2, "width": 2,
        "linf": 0.03, "l2": 1.0, "l1": 1.0,
    })  # fmt: skip
    write_examples(store.examples_path(cell), images, {
        "suite": "made up", "attack": f"attack{attack}", "attack_params": {"name": "made up", "of": attack},
        "family": "fusion", "surrogates": "all", "surrogate_specs": ["made-up:model"],
        "surrogate_digests": ["0"], "seed": seed, "shard": [start, start + len(ids)], "norm": "linf",
        "eps": 0.03, "forwards_per_sample": 10.0 + attack, "backwards_per_sample": 10.0 + attack,
        "seconds_per_image": 0.01, "data": "digits:test", "data_fingerprint": "0", "device": "cpu",
        "version": "0",
    })  # fmt: skip


def measure_page(run: Path) -> None:
    """Time, memory and size of the page of a run."""
    report = _timed("collect", lambda: collect(run))
    shown = _timed("pictures", lambda: pictures(run, report))
    without = _timed("without them", lambda: render(report))
    whole = _timed("render", lambda: render(report, shown))
    click.echo(f"{len(whole.encode()):,} bytes, {len(without.encode()):,} without images")


def measure_site(folder: Path) -> None:
    """Time, memory and size of a site of all runs in a folder."""
    runs = [Source(path, path.name) for path in sorted(folder.iterdir())]
    site = _timed("gather", lambda: gather(runs))
    files = _timed("pages", lambda: pages(site))
    click.echo(f"{len(files)} pages of {len(runs)} runs, {sum(map(len, files.values())):,} bytes")


@click.command()
@click.option("--run", type=click.Path(path_type=Path), help="A run that is there, not a made-up one.")
@click.option("--site", type=click.Path(path_type=Path), help="A folder of runs that are there.")
@click.option("--runs", default=0, help="A site of so many made-up runs, in five groups that share a board.")
@click.option("--attacks", type=int, help="Default: 120, and 20 in the runs of a site.")
@click.option("--targets", type=int, help="Default: 30, and 10 in the runs of a site.")
@click.option("--images", default=200, show_default=True)
@click.option("--seeds", type=int, help="Default: 4, and 1 in the runs of a site.")
@click.option("--shard", default=1000, show_default=True)
def main(run: Path | None, site: Path | None, runs: int, attacks: int | None, targets: int | None,
         images: int, seeds: int | None, shard: int) -> None:  # fmt: skip
    """Measure time, memory and size of a page, or of a site."""
    if run is not None:
        measure_page(run)
        return
    if site is not None:
        measure_site(site)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for k in range(runs or 1):
            write_run(
                folder / f"run{k:02d}", attacks or (20 if runs else 120), targets or (10 if runs else 30),
                images, seeds or (1 if runs else 4), shard, first=20 * (k // 5),
            )  # fmt: skip
            if runs:
                _regroup(folder / f"run{k:02d}", k % 5)
        given = ["--site", str(folder)] if runs else ["--run", str(folder / "run00")]
        subprocess.run([sys.executable, "-m", "advens.benchmarks.speed.report", *given], check=True)


def _regroup(run: Path, group: int) -> None:
    """Settings that runs of one group alone share."""
    about = {"name": run.name, "threat": {"norm": "linf", "eps": 0.03, "steps": 10 + group}}
    (run / "suite.toml").write_text(tomli_w.dumps(about))


if __name__ == "__main__":
    main()
