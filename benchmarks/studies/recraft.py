"""How far two runs of one suite differ that were made in different ways: what a re-crafting has to allow for.

    OMP_NUM_THREADS=1 advens run SUITE --out one
    OMP_NUM_THREADS=2 advens run SUITE --out two
    python -m advens.benchmarks.studies.recraft one two

Cells are matched by attack, surrogates and shard, so that a run with another seed, another eps or other steps
can be compared, too: what honest runs differ by has to stay apart from what these differ by.

Seven attacks (FGSM, PGD, MI, DI-MI, MI-SVRE, AdaEA, DI-TI-MI) on 24 digits, five steps, a CNN and a vision
transformer as surrogates, five targets. Equal bytes and equal outcomes, of the worst cell where runs are
honest and of the most similar one where they are not:

    two threads for one; batches of 7       1.000  1.000
    a CPU without AVX (ATEN_CPU_CAPABILITY,
    ONEDNN_MAX_CPU_ISA, MKL set so)         0.992  1.000
    another seed (attacks that draw)        0.663  0.975
    6 steps for 5 (attacks of several)      0.582  0.975
    eps 0.18 for 0.2                        0.293  0.958
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pandas as pd

from advens.benchmarks.evaluate import stored_cell
from advens.cli import script
from advens.results.store import RunStore
from advens.results.store.images import CleanImages, read_images

ROW = ["attack", "surrogates", "shard"]


def compared(one: Path, two: Path) -> pd.DataFrame:
    """A row for every cell of both runs: images, identical ones, fractions of equal bytes and outcomes."""
    first, second = (_cells(RunStore(path)) for path in (one, two))
    outcomes = [_outcomes(RunStore(path)) for path in (one, two)]
    clean, rows = CleanImages(), list[dict[str, Any]]()
    for key in sorted(first.keys() & second.keys()):
        a, b = (
            read_images(RunStore(path), cells[key], clean)[1]
            for path, cells in ((one, first), (two, second))
        )
        x, y = (
            found[found["cell"] == cells[key]]
            for found, cells in zip(outcomes, (first, second), strict=True)
        )
        both = x.merge(y, on=["target", "sample_id", "member"])
        equal = a == b
        rows.append({
            "attack": key[0], "surrogates": key[1], "shard": key[2][0], "images": len(a),
            "identical": int(equal.all((1, 2, 3)).sum()), "bytes": float(equal.mean()),
            "outcomes": float((both["success_x"] == both["success_y"]).mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _cells(store: RunStore) -> dict[tuple[str, str, tuple[int, int]], str]:
    cells = [stored_cell(store, name) for name in store.cells()]
    return {(cell.attack, cell.surrogates, cell.shard): cell.key for cell in cells}


def _outcomes(store: RunStore) -> pd.DataFrame:
    rows = store.read_samples(["cell", "target", "sample_id", "member", "success"])
    return rows.assign(cell=rows["cell"].astype(str), target=rows["target"].astype(str))


@click.command()
@click.argument("one", type=click.Path(path_type=Path))
@click.argument("others", type=click.Path(path_type=Path), nargs=-1, required=True)
def main(one: Path, others: tuple[Path, ...]) -> None:
    """Compare the images and outcomes of run ONE with those of OTHERS."""
    for other in others:
        table = compared(one, other)
        click.echo(f"{one} and {other}: least bytes {table['bytes'].min():.4f}, most "
                   f"{table['bytes'].max():.4f}; least outcomes {table['outcomes'].min():.4f}, most "
                   f"{table['outcomes'].max():.4f}")  # fmt: skip
        click.echo(table.to_string(index=False))


if __name__ == "__main__":
    script(main)
