"""Which attack is worth its passes: fronts, attacks at published cost and at equal passes, published orders.

    python -m advens.benchmarks.studies.catalogue keep RUN... --out FILE.parquet
    python -m advens.benchmarks.studies.catalogue fronts
    python -m advens.benchmarks.studies.catalogue attacks
    python -m advens.benchmarks.studies.catalogue rankings

The runs are those of the suites whose names begin with ``digits-catalogue``, over the same images and
targets. ``keep`` writes their outcomes in one file, where an attack of a suite with a budget is named after
it, as ``pgn at 120 passes``. The tables are made of such a file; without one, of the committed reference.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pyarrow as pa

from advens.benchmarks.suites import Suite, stored
from advens.cli import script
from advens.errors import InputError
from advens.results.boards.compare import difference
from advens.results.boards.front import front, lettered
from advens.results.boards.kept import CATALOGUE, as_table, joined, read, write
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.means import Means
from advens.results.boards.outcomes import Contributions, contributions
from advens.results.boards.rows import load
from advens.results.statistics import holm
from advens.results.store import RunStore

PUBLISHED = CATALOGUE.with_name("published.csv")
SUITE = "digits-catalogue"
BUDGETS = (10, 40, 120, 400)
LEVEL = 0.05
VERDICTS = ("confirmed", "not told apart", "reversed")
BASES = {
    "ifgsm": "ifgsm", "mifgsm": "ifgsm", "vnifgsm": "nifgsm", "gra": "vmifgsm", "fgsra": "gra",
    "pgn": "gra", "mef": "pgn", "mumodig": "mig", "dem": "difgsm", "admix": "sifgsm", "us-mm": "admix",
    "sia": "bsr", "rpa": "fia", "mi-fmaa": "fia", "naa": "fia", "danaa": "naa", "bfa": "fia",
    "mi-p2fa": "bfa", "yaila": "ila", "bpa": "mi-linbp", "att": "tgr", "fpr": "tgr", "tgr": "pna-patchout",
    "sapr": "pna-patchout",
}  # fmt: skip
"""What attacks that are not built on MI-FGSM alone are built on, or set themselves against."""


def kept(directories: Sequence[Path]) -> pa.Table:
    """The outcomes of runs, under one name of a suite, with the budget in the names of attacks."""
    tables = []
    for directory in directories:
        suite = stored(RunStore.open(directory).suite)
        if not isinstance(suite, Suite):
            raise InputError(f"{directory} is not a run of attacks")
        samples, cells = load([directory])
        parts, board = contributions(samples), leaderboard(samples, cells)
        parts = replace(parts, rows=_named(parts.rows, suite.budget))
        tables.append(as_table(parts, _named(board, suite.budget)))
    return joined(tables)


def _named(frame: pd.DataFrame, budget: int | None) -> pd.DataFrame:
    names = [named(name, budget) for name in frame["attack"].astype(str)]
    return frame.assign(suite=SUITE, attack=names)


def named(attack: str, budget: int | None) -> str:
    """What the row of an attack is called: ``pgn``, or ``pgn at 120 passes``."""
    return f"{attack} at {budget} passes" if budget else attack


def parted(name: str) -> tuple[str, int | None]:
    """The attack and the budget of `named`."""
    attack, _, budget = name.partition(" at ")
    return attack, int(budget.split()[0]) if budget else None


def board_of(parts: Contributions, spent: pd.DataFrame) -> pd.DataFrame:
    """Means with their intervals and passes, a line for every row."""
    return pd.concat([spent, Means(parts).table], axis=1)


def fronts(parts: Contributions, spent: pd.DataFrame) -> str:
    """For some budgets, the attacks that no other one beats for fewer passes, as markdown."""
    board, blocks = board_of(parts, spent), []
    for budget in BUDGETS:
        found = lettered(front(board, budget), parts)
        rows = [
            (
                row["surrogates"],
                row["attack"],
                _passes(row),
                _mean(row),
                row["models_group"],
                row["group"],
            )
            for row in found.to_dict("records")
        ]
        header = (
            "surrogates",
            "attack",
            "F / B",
            "mean success rate, %",
            "new models",
            "these targets",
        )
        blocks.append(f"At most {budget} backward passes an image:\n\n{_markdown(header, rows)}")
    return "\n\n".join(blocks) + "\n"


def attacks(parts: Contributions, spent: pd.DataFrame) -> str:
    """Every attack at published cost beside the same at equal passes, as markdown: a table for each set."""
    blocks = []
    for surrogates, rows in places(parts, spent).groupby("surrogates"):
        found: dict[str, dict[str, Any]] = {}
        for row in rows.to_dict("records"):
            which = "published" if pd.isna(row["budget"]) else "equal"
            found.setdefault(row["name"], {})[which] = row
        lines = []
        for name in sorted(found, key=lambda name: _highest(found[name]), reverse=True):
            cells = [name]
            for which in ("published", "equal"):
                row = found[name].get(which, {})
                mark = "**" if row.get("front") else ""
                cells += [_passes(row), f"{mark}{_mean(row)}{mark}"] if row else ["", ""]
            lines.append(cells)
        header = ("attack", "F / B, published", "mean ASR, %", "F / B, equal", "mean ASR, %")
        blocks.append(f"On `{surrogates}`:\n\n{_markdown(header, lines)}")
    return "\n\n".join(blocks) + "\n"


def places(parts: Contributions, spent: pd.DataFrame) -> pd.DataFrame:
    """The place of every row among those on the same surrogates, at equal passes or at published cost.

    Returns:
        The columns of `board_of`; ``name`` and ``budget`` as `parted`; ``place``, 1 for the highest mean, of
        ``of`` rows; ``front``, whether none is as strong with fewer passes.
    """
    board = board_of(parts, spent)
    names = pd.DataFrame([parted(attack) for attack in board["attack"]], columns=["name", "budget"])
    board = pd.concat([board, names], axis=1)
    rows = board.groupby(["surrogates", board["budget"].fillna(0)])["mean_asr"]
    best = front(board)
    return board.assign(
        place=rows.rank(ascending=False, method="min").astype(int), of=rows.transform("size"),
        front=(board["attack"] + "@" + board["surrogates"]).isin(best["attack"] + "@" + best["surrogates"]),
    )  # fmt: skip


def _highest(rows: Mapping[str, Mapping[str, Any]]) -> tuple[float, float]:
    """What a table is sorted by: the rate at equal passes, then that at published cost."""
    return tuple(
        rows[which]["mean_asr"] if which in rows else -1.0 for which in ("equal", "published")
    )  # type: ignore[return-value]


def published() -> dict[tuple[str, str], float]:
    """Published mean success rates in %, by surrogates and attack.

    Means over held-out models of the table in the README of github.com/Trustworthy-AI-Group/TransferAttack at
    commit 2663e4a: seven for one ResNet-50 or ViT, the four transformers for an ensemble of four CNNs.
    """
    with PUBLISHED.open(encoding="utf-8") as file:
        return {
            (row["surrogates"], row["attack"]): float(row["transfer"])
            for row in csv.DictReader(file)
        }


def claims(parts: Contributions) -> pd.DataFrame:
    """What becomes of published differences at equal passes: a line for every attack and what it is built on.

    Returns:
        ``surrogates, attack, base``; ``published``, the difference in points; what `difference` says of ours;
        p-values after Holm's correction over all lines; ``models``, for new models and new images, and
        ``these``, for these targets: confirmed, reversed or not told apart.

    Raises:
        InputError: there is nothing to compare.
    """
    places, rates, lines = _equal(parts), published(), []
    for (surrogates, attack), rate in rates.items():
        base = BASES.get(attack, "mifgsm")
        pair = places.get((surrogates, attack)), places.get((surrogates, base))
        if (
            (surrogates, base) in rates
            and pair[0] is not None
            and pair[1] is not None
            and attack != base
        ):
            found = difference(parts, [(pair[0], pair[1])])
            if found["models_p"] is None:
                raise InputError("fewer than five held-out targets say nothing of new models")
            told = {"surrogates": surrogates, "attack": attack, "base": base,
                    "published": rate - rates[surrogates, base]}  # fmt: skip
            lines.append(found | told)
    if not lines:
        raise InputError("there are no two attacks at equal passes whose published rates are known")
    table: pd.DataFrame = pd.DataFrame(lines)
    same = np.sign(table["published"]) == np.sign(table["difference"])
    for p, answer in (("models_p", "models"), ("p", "these")):
        table[p] = holm(table[p].to_numpy(float))
        table[answer] = np.where(
            table[p] >= LEVEL, VERDICTS[1], np.where(same, VERDICTS[0], VERDICTS[2])
        )
    return table


def _equal(parts: Contributions) -> dict[tuple[str, str], int]:
    """The place of every attack at equal passes, by surrogates and attack."""
    found = {}
    for place, row in enumerate(parts.rows.to_dict("records")):
        attack, budget = parted(row["attack"])
        if budget is not None:
            found[str(row["surrogates"]), attack] = place
    return found


def rankings(parts: Contributions, spent: pd.DataFrame) -> str:
    """`claims` as markdown, and how the published order of all attacks agrees with ours."""
    table = claims(parts)
    lines = [
        (row["surrogates"], row["attack"], row["base"], f"{row['published']:+.1f}",
         f"{_points(row, 'difference')} [{_points(row, 'models_low')}, {_points(row, 'models_high')}]",
         row["models"], row["these"])
        for row in table.to_dict("records")
    ]  # fmt: skip
    header = ("surrogates", "attack", "against", "published, points", "at equal passes, points", "new models",
              "these targets")  # fmt: skip
    counts = [
        f"{what}: "
        + ", ".join(f"{(table[answer] == verdict).sum()} {verdict}" for verdict in VERDICTS)
        + "."
        for what, answer in (("For new models", "models"), ("For these targets", "these"))
    ]
    return "\n\n".join([_markdown(header, lines), " ".join(counts), _agreement(parts)]) + "\n"


def _agreement(parts: Contributions) -> str:
    from scipy.stats import kendalltau

    means, rates, told = Means(parts).table["mean_asr"], published(), []
    ours = {key: means[place] for key, place in _equal(parts).items() if key in rates}
    for surrogates in sorted({name for name, _ in ours}):
        both = [(rates[key], mean) for key, mean in ours.items() if key[0] == surrogates]
        tau, p = kendalltau(*zip(*both, strict=True))
        told.append(f"{tau:.2f} over {len(both)} attacks on `{surrogates}` (p {p:.2g})")
    return (
        "Kendall's rank correlation of the published mean rates with ours: " + ", ".join(told) + "."
    )


def _points(row: Mapping[str, Any], name: str) -> str:
    return f"{100 * row[name]:+.1f}"


def _passes(row: Mapping[str, Any]) -> str:
    return f"{row['forwards_per_sample']:.4g} / {row['backwards_per_sample']:.4g}"


def _mean(row: Mapping[str, Any]) -> str:
    low, high = row["models_low"], row["models_high"]
    return f"{100 * row['mean_asr']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


TABLES: dict[str, Callable[[Contributions, pd.DataFrame], str]] = {
    "fronts": fronts, "attacks": attacks, "rankings": rankings,
}  # fmt: skip


@click.command()
@click.argument("what", type=click.Choice(["keep", *TABLES]))
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="With keep: the file.")
def main(what: str, sources: tuple[Path, ...], out: Path | None) -> None:
    """Keep the outcomes of runs in a file, or print a table of such a file."""
    if (what == "keep") != (out is not None) or (what != "keep" and len(sources) > 1):
        raise click.UsageError("give 'keep RUN... --out FILE', or a table and at most one file")
    if out is not None:
        write(out, kept(sources))
    else:
        click.echo(TABLES[what](*read(sources[0] if sources else CATALOGUE)), nl=False)


if __name__ == "__main__":
    script(main)
