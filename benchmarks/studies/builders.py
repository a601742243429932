"""What building surrogates buys: builders down, learning rates and kinds of training across.

    python -m advens.benchmarks.studies.builders runs/digits-builders --out FILE.parquet
    python -m advens.benchmarks.studies.builders FILE.parquet          # the tables again, from the file alone

Surrogates made of one CNN are ranked among themselves, and so are those made of ViTs: letters say what
cannot be told apart within a table.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pandas as pd

from advens.benchmarks.studies.letters import caption, rate
from advens.cli import script
from advens.errors import InputError

CNN = ("mi-lgv", "mi-mba")
"""Attacks on what was made of one CNN; all others are on ViTs."""
COLUMNS = {
    "0.05": "lr 0.05", "0.05 sharp": "lr 0.05, sharpness", "0.2": "lr 0.2", "0.2 sharp": "lr 0.2, sharpness",
}  # fmt: skip
WRITTEN = re.compile(r"(?P<builder>\S+) (?P<column>[\d.]+( sharp)?)(?P<once> once)?")
"""Names of sets in the suite: ``lgv 0.05 sharp``."""


def boards(directory: str) -> pd.DataFrame:
    """The two boards of a run, one below the other, with the column ``table``: ``cnn`` or ``vits``."""
    from advens.results.boards.leaderboard import leaderboard
    from advens.results.boards.subset import subset
    from advens.results.boards.summary import load

    samples, cells = load([directory])
    there = set(samples["attack"].astype(str))
    found = []
    for table, attacks in (("cnn", there & set(CNN)), ("vits", there - set(CNN))):
        board = leaderboard(*subset(samples, cells, attacks=",".join(sorted(attacks))))
        board.insert(1, "table", table)
        board.attrs = {}
        found.append(board)
    return pd.concat(found, ignore_index=True)


def parted(attack: str, surrogates: str) -> tuple[str, str]:
    """What a row is and its column: ``("lgv-swa", "0.05 sharp")``; no column without further training."""
    found = WRITTEN.fullmatch(surrogates)
    if found is None:
        return surrogates, ""
    name = found["builder"]
    if found["once"]:
        name += ", drawn once"
    if attack == "mi-mba":
        name += ", all 20 in every step"
    return name, found["column"]


def markdown(table: pd.DataFrame) -> str:
    """The two tables and what they are of."""
    cells: dict[str, dict[str, str]] = {}
    alone: list[str] = []
    best: dict[str, float] = {}
    for r in table[table["table"] == "cnn"].itertuples(index=False):
        name, column = parted(r.attack, r.surrogates)
        if not column:
            alone.append(f"{name} {rate(r)}")
            continue
        cells.setdefault(name, {})[column] = rate(r)
        best[name] = max(best.get(name, 0.0), r.mean_asr)
    names = sorted(cells, key=lambda name: -best[name])
    lines = _table(
        ["surrogates made of one CNN", *COLUMNS.values()],
        [[name, *(cells[name].get(column, "") for column in COLUMNS)] for name in names],
    )
    vits: list[Any] = list(table[table["table"] == "vits"].itertuples(index=False))
    below = _table(["surrogates", "attack", "mean ASR"], [[r.surrogates, r.attack, rate(r)] for r in vits])
    said = f"`digits-builders`: {caption(table, 'rows', 'in a table')}"
    return "\n".join([*lines, "", *below, "", f"{said} Without further training: {', '.join(alone)}."]) + "\n"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]


@click.command()
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the boards as parquet.")
def main(source: str, out: Path | None) -> None:
    """Print the tables of a run of digits-builders, or of a file kept before."""
    if source.endswith(".parquet"):
        if not Path(source).is_file():
            raise InputError(f"no table at {source}")
        table = pd.read_parquet(source)
    else:
        table = boards(source)
    if out is not None:
        table.to_parquet(out, index=False)
    click.echo(markdown(table), nl=False)


if __name__ == "__main__":
    script(main)
