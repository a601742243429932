"""Does the score of `advens select` tell which surrogates transfer? A study on the digits zoo.

    python -m advens.benchmarks.studies.selection [--sets 120] [--out runs/selection]

Random sets of three surrogates are attacked with DI-MI on fused logits and tried on models that are no
candidate. Beside the score stand its parts and size-free baselines; a rank correlation that is not there
is said so by its interval (bootstrap over sets). Scores come from training images.
"""

from __future__ import annotations

import warnings
from itertools import combinations
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from scipy.stats import ConstantInputWarning, spearmanr

from advens.cli import script

CANDIDATES = (
    "digits:byobnet", "digits:convmixer", "digits:convnext", "digits:deit3", "digits:efficientnet",
    "digits:mambaout", "digits:resnet", "digits:resnet-at", "digits:swin", "digits:vit-b",
)  # fmt: skip
TARGETS = (
    "digits:coatnet", "digits:mixer", "digits:nfnet", "digits:resnet-b", "digits:vit", "digits:vit-at",
    "digits:vit-relpos",
)  # fmt: skip
SIZE = 3
CALIBRATION = "digits:train?limit=200&seed=0"


def drawn(sets: int, seed: int = 0) -> list[tuple[str, ...]]:
    """Different random sets of candidates."""
    every = list(combinations(CANDIDATES, SIZE))
    picked = np.random.RandomState(seed).permutation(len(every))[:sets]
    return [every[i] for i in sorted(picked)]


def transfer(sets: list[tuple[str, ...]], out: Path, limit: int) -> pd.Series:
    """Mean held-out success rate of every set, by its name."""
    from advens.benchmarks.runner import run_suite
    from advens.benchmarks.suites import from_table
    from advens.results.store import RunStore

    suite = from_table(
        {
            "name": "selection", "data": "digits:test", "limit": limit, "targets": list(TARGETS),
            "threat": {"norm": "linf", "eps": 0.2, "steps": 10},
            "surrogates": {title(members): list(members) for members in sets},
            "attacks": [{"name": "di-mi-ens-logits"}],
        },
        "selection",
    )  # fmt: skip
    run_suite(suite, out)
    frame = RunStore.open(out).read_samples()
    frame = frame[frame["clean_correct"]]
    rates = frame.groupby(["surrogates", "target"], observed=True)["success"].mean()
    means: pd.Series = rates.groupby("surrogates", observed=True).mean()
    return means


def title(members: tuple[str, ...]) -> str:
    """A name for a set."""
    return "+".join(name.removeprefix("digits:") for name in members)


def scores(sets: list[tuple[str, ...]]) -> pd.DataFrame:
    """What can be said of every set without a target."""
    from advens import load_data, load_model
    from advens.attacks.surrogates.selection import examine

    data = load_data(CALIBRATION)
    batch = next(data.batches([slice(0, len(data))]))
    found = examine([load_model(n) for n in CANDIDATES], batch.pixels.float() / 255, batch.labels)
    rows: dict[str, dict[str, float]] = {}
    for members in sets:
        at = [CANDIDATES.index(name) for name in members]
        inside = found.similarity[at][:, at]
        rows[title(members)] = {
            "score": found.score(at),
            "likeness to others (no redundancy term)": found.score(at, redundancy=0),
            "agreement": float(found.agreement[at].mean()),
            "likeness within the set": float(inside.triu(1).sum()),
        }
    table: pd.DataFrame = pd.DataFrame.from_dict(rows, orient="index")
    return table


def correlations(table: pd.DataFrame, measured: pd.Series, draws: int = 2000) -> pd.DataFrame:
    """Spearman's rho of each column with the measured transfer, with a bootstrap 95 % interval."""
    random = np.random.RandomState(0)
    rows: list[dict[str, Any]] = []
    for name in table.columns:
        x, y = table[name].to_numpy(), measured.reindex(table.index).to_numpy()
        resampled = [random.randint(len(x), size=len(x)) for _ in range(draws)]
        with warnings.catch_warnings():  # few sets, all the same one: not a number, and left out
            warnings.simplefilter("ignore", ConstantInputWarning)
            spread = [spearmanr(x[i], y[i]).statistic for i in resampled]
        low, high = np.nanpercentile(spread, [2.5, 97.5])
        rows.append({"what": name, "rho": spearmanr(x, y).statistic, "low": low, "high": high})
    found: pd.DataFrame = pd.DataFrame(rows)
    return found


@click.command()
@click.option("--sets", "count", default=120, show_default=True, help="120 are all there are.")
@click.option("--limit", default=150, show_default=True, help="Images to attack.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/selection"), show_default=True)
def main(count: int, limit: int, out: Path) -> None:
    """Rank correlation between scores and measured transfer."""
    sets = drawn(count)
    table, measured = scores(sets), transfer(sets, out, limit)
    click.echo(f"| of {len(sets)} sets of {SIZE} surrogates | Spearman's rho with transfer | 95 % interval |")
    click.echo("|---|---|---|")
    for r in correlations(table, measured).itertuples():
        click.echo(f"| {r.what} | {r.rho:.2f} | {r.low:.2f} to {r.high:.2f} |")
    best = str(table["score"].idxmax())
    place, rate = int((measured > measured[best]).sum()) + 1, 100 * measured[best]
    click.echo(
        f"\nMean transfer {100 * measured.min():.1f} to {100 * measured.max():.1f} %; the set with the "
        f"highest score, {best}, is number {place} of {len(sets)} ({rate:.1f} %)."
    )


if __name__ == "__main__":
    script(main)
