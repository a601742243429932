"""Time and peak memory of the boards of a large run, computed from made-up samples.

    python -m advens.benchmarks.speed.boards                        # 10 million rows: 40 attacks, 10 targets
    python -m advens.benchmarks.speed.boards --attacks 400          # as many rows, without letters

Samples have the columns and types of those that are read from a run, and are made in this process.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import click
import numpy as np
import pandas as pd

from advens.results.boards import to_table
from advens.results.boards.leaderboard import _leaderboard
from advens.results.boards.matrix import _matrix
from advens.results.boards.means import Means
from advens.results.boards.outcomes import contributions

T = TypeVar("T")


def made_up(attacks: int, targets: int, images: int, seed: int = 0) -> pd.DataFrame:
    """Samples in which attacks, targets and images differ in strength."""
    rng = np.random.default_rng(seed)
    shape = (attacks, targets, images)
    size = int(np.prod(shape))
    attack, target, image = (grid.ravel() for grid in np.indices(shape, dtype=np.int32))
    strength = np.linspace(0.6, 0.4, attacks)[attack] + rng.normal(0, 0.15, targets)[target]
    clean = (rng.random((targets, images)) < 0.95)[target, image]
    fooled = (rng.random(images)[image] * 0.7 + rng.random(size) * 0.3 < strength) & clean
    frame = pd.DataFrame({
        "suite": pd.Categorical.from_codes(np.zeros(size, np.int8), ["made up"]),
        "attack": pd.Categorical.from_codes(attack, [f"attack{k}" for k in range(attacks)]),
        "surrogates": pd.Categorical.from_codes(np.zeros(size, np.int8), ["all"]),
        "seed": np.zeros(size, np.int64),
        "target": pd.Categorical.from_codes(target, [f"target{k}" for k in range(targets)]),
        "sample_id": pd.Categorical.from_codes(image, [f"{k:06d}" for k in range(images)]),
        "label": np.ones(size, np.int64),
        "target_label": pd.array(np.zeros(size, np.int64), dtype="Int64"),
        "adv_pred": np.where(clean & ~fooled, 1, 2),
        "clean_correct": clean,
        "success": fooled,
        "linf": np.full(size, 0.03),
        "l2": np.full(size, 1.0),
        "cell": pd.Categorical.from_codes(attack, [f"cell{k}" for k in range(attacks)]),
        "white_box": np.zeros(size, bool),
        "member": np.full(size, np.nan),
        "weight": np.ones(size),
        "target_family": pd.Categorical.from_codes(target % 2, ["cnn", "vit"]),
    })  # fmt: skip
    frame["target_label"] = pd.NA
    return frame


@click.command()
@click.option("--attacks", default=40, show_default=True)
@click.option("--targets", default=10, show_default=True)
@click.option("--rows", default=10_000_000, show_default=True, help="Of samples, in all.")
def main(attacks: int, targets: int, rows: int) -> None:
    """Measure time and memory of the boards."""
    images = rows // (attacks * targets)
    samples = made_up(attacks, targets, images)
    click.echo(f"{len(samples):,} rows: {attacks} attacks, {targets} targets, {images:,} images")
    click.echo(f"{'samples':>14}{'':>25}   peak {_peak():.2f} GiB")
    means = _timed("contributions", lambda: Means(contributions(samples)))
    _timed("means", lambda: means.table)
    _timed("matrix", lambda: to_table("matrix", _matrix(samples, means, "target")))
    _timed("leaderboard", lambda: to_table("leaderboard", _leaderboard(means, samples, None, "target")))


def _timed(what: str, work: Callable[[], T]) -> T:
    """Does a piece of work and says its time by the clock and of CPUs, and the peak of memory so far."""
    clock, cpu = time.perf_counter(), time.process_time()
    done = work()
    clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
    click.echo(f"{what:>14}{clock:>7.1f} s{cpu:>7.1f} s of CPU   peak {_peak():.2f} GiB")
    return done


def _peak() -> float:
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kib / (2**20 if sys.platform == "linux" else 2**30)


if __name__ == "__main__":
    main()
