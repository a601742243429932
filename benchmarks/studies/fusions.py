"""Which fusion wins where: one board per base and surrogate set, side by side.

    python -m advens.benchmarks.studies.fusions runs/digits-ensembles runs/digits-ensembles-budget --out FILE
    python -m advens.benchmarks.studies.fusions FILE          # the table again, from the file alone

Each board ranks the fusions on one base (plain, MI, DI-MI) and one set of surrogates alone, so letters say
what cannot be told apart there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

from advens.benchmarks.studies.letters import MODELS, answered, caption, rate
from advens.cli import script
from advens.errors import InputError

BASES = ("di-mi-", "mi-", "")
REFERENCE = ("ens-logits", "uniform fusion of logits")


def boards(directories: Sequence[str]) -> pd.DataFrame:
    """The boards of some runs, one below the other, with the columns ``base`` and ``fusion``."""
    from advens.results.boards.leaderboard import leaderboard
    from advens.results.boards.summary import load

    samples, cells = load(directories)
    found = []
    named = {attack: parted(attack) for attack in samples["attack"].unique()}
    base_of = samples["attack"].astype(str).map({attack: base for attack, (base, _) in named.items()})
    for (suite, base, surrogates), group in samples.groupby(
        ["suite", base_of.rename("base"), "surrogates"], observed=True
    ):
        board = leaderboard(group, cells[(cells["suite"] == suite) & (cells["surrogates"] == surrogates)])
        board.insert(1, "base", str(base) or "plain")
        board.insert(2, "fusion", [named[attack][1] for attack in board["attack"]])
        board.attrs = {}
        found.append(board)
    return pd.concat(found, ignore_index=True)


def parted(attack: str) -> tuple[str, str]:
    """``("mi", "svre")`` for ``mi-svre``."""
    base = next(base for base in BASES if attack.startswith(base))
    return base.removesuffix("-"), attack[len(base) :]


def markdown(table: pd.DataFrame) -> str:
    """One table per suite: fusions down, bases and surrogate sets across."""
    texts = []
    order = [base.removesuffix("-") or "plain" for base in reversed(BASES)]
    for suite, found in table.groupby("suite", sort=True):
        columns = [(base, s) for s in sorted(found["surrogates"].unique()) for base in order]
        rows: list[Any] = list(found.itertuples(index=False))
        cells = {(r.fusion, (r.base, r.surrogates)): r for r in rows}
        fusions = found.groupby("fusion")["mean_asr"].mean().sort_values(ascending=False).index
        best = {c: max(r.mean_asr for (_, at), r in cells.items() if at == c) for c in columns}
        lines = [
            "| " + " | ".join(["fusion", *(f"{s}, {base}" for base, s in columns)]) + " |",
            "|" + "---|" * (len(columns) + 1),
        ]
        for fusion in fusions:
            row = []
            for column in columns:
                r = cells[fusion, column]
                value, *groups = rate(r).split(" ")
                row.append(" ".join([f"**{value}**" if r.mean_asr == best[column] else value, *groups]))
            lines.append("| " + " | ".join([fusion, *row]) + " |")
        lines += ["", f"`{suite}`: {caption(found, 'fusions', 'in a column')} Bold: highest.", ""]
        if answered(found):
            lines += [f"For new models: {verdict(found, MODELS)}", ""]
        lines.append(f"For these targets: {verdict(found, 'group')}")
        texts.append("\n".join(lines))
    return "\n\n".join(texts) + "\n"


def verdict(found: pd.DataFrame, letters: str) -> str:
    """How many columns each fusion is above or below uniform fusion in, beyond doubt.

    Args:
        letters: the column with those of the question that is asked.
    """
    counts: dict[str, list[int]] = {}
    for _, board in found.groupby(["base", "surrogates"]):
        rows: dict[str, Any] = {str(r.fusion): r for r in board.itertuples(index=False)}
        own = rows.pop(REFERENCE[0])
        for fusion, r in rows.items():
            apart = not set(getattr(r, letters)) & set(getattr(own, letters))
            tally = counts.setdefault(fusion, [0, 0, 0])
            tally[1 if not apart else 0 if r.mean_asr > own.mean_asr else 2] += 1
    said = ", ".join(f"{name} {a}/{b}/{c}" for name, (a, b, c) in sorted(counts.items()))
    return f"above / not told apart from / below {REFERENCE[1]}, in columns: {said}."


@click.command()
@click.argument("sources", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Keep the boards as parquet.")
def main(sources: tuple[str, ...], out: Path | None) -> None:
    """Print the table of runs and of files kept before; of a suite in several of them, the last counts."""
    found = [_kept(Path(each)) if each.endswith(".parquet") else boards([each]) for each in sources]
    newer = [set().union(*(set(later["suite"]) for later in found[k + 1 :])) for k in range(len(found))]
    table: pd.DataFrame = pd.concat(
        [each[~each["suite"].isin(names)] for each, names in zip(found, newer, strict=True)],
        ignore_index=True,
    )
    if out is not None:
        table.to_parquet(out, index=False)
    click.echo(markdown(table), nl=False)


def _kept(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"no table at {path}")
    table: pd.DataFrame = pd.read_parquet(path)
    return table


if __name__ == "__main__":
    script(main)
