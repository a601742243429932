"""The command ``advens defend`` and its table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advens.benchmarks.cli.commands import (
    _names,
    _progress,
    batch_option,
    device_option,
    resolve_device,
)
from advens.printable import say
from advens.trust import trust_option, typed

if TYPE_CHECKING:

    from advens.benchmarks.study import Study


@click.command()
@click.argument("defenses", nargs=-1, required=True, metavar="DEFENSE...")
@click.option("--data", required=True, help="Images that are attacked.")
@click.option("--surrogates", help="Separately trained models that transfer comes from: A,B.")
@click.option("--attacks", help="Attacks on these: A,B.")
@click.option("--eps", help="l_inf budgets: 2/255,4/255; attacks in the open have the largest.")
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@click.option("--open", "opened", help="Attacks on the defenses themselves: A,B.  [default: pgd,pma-plus]")
@click.option("--open-limit", type=click.IntRange(1), help="The first of these for attacks in the open.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/defend"), show_default=True)
@click.option("--format", "form", default="table", show_default=True,
              type=click.Choice(["table", "csv", "json", "markdown"]), help="How to write it.")
@device_option
@trust_option
@batch_option
def defend(defenses: tuple[str, ...], data: str, surrogates: str | None, attacks: str | None, eps: str | None,
           opened: str | None, limit: int | None, open_limit: int | None, seed: int, out: Path, form: str,
           device: str, batch_size: int | None) -> None:  # fmt: skip
    """Evaluate defenses (folders of 'advens train', or models): transfer, open attacks, members, cost."""
    from advens.benchmarks.defend import defend as run
    from advens.benchmarks.defend import trial_of
    from advens.results.commands import show_board

    def names(text: str | None, option: str) -> list[str]:
        return _names(text, option) if text is not None else []

    typed(*defenses, data)
    trial = trial_of(
        defenses, data, names(surrogates, "--surrogates"), names(attacks, "--attacks"), names(eps, "--eps"),
        names(opened, "--open"), limit=limit, open_limit=open_limit, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    show_board("defenses", run(trial, out, device=resolve_device(device), progress=_progress()), form)
    say(f"runs in {out}; the table in {out}/defenses.parquet", err=form != "table")


def study(found: Study, directory: Path | None, only: str | None, how: Callable[[], dict[str, Any]]) -> None:
    """``advens run`` of a suite of defenses; without a directory, the plan alone."""
    from advens.benchmarks.defend import ADAPTIVE
    from advens.benchmarks.study import check, contestants, run_study
    from advens.errors import unknown
    from advens.results.boards import read_board
    from advens.results.commands import show_board

    if only is not None:
        names = _names(only, "--attacks")
        if strange := [name for name in names if name not in found.attacks]:
            raise unknown("attack in this suite", strange[0], found.attacks)
        found = found.model_copy(update={"attacks": names})
    if directory is not None:
        run_study(found, directory, progress=_progress(), **how())
        show_board("study", read_board(directory, "study"))
        say(f"runs in {directory}; the tables in {directory}/study.parquet")
        return
    lines = contestants(found)
    check(found)
    say(f"suite      {found.name}: l_inf {', '.join(map(str, found.eps))}, data {found.data}")
    for training in dict.fromkeys(line.training for line in lines):
        sizes = sorted({line.members for line in lines if line.training == training})
        say(f"train      {training.title}: members {', '.join(map(str, sizes))}")
    say(f"transfer   {', '.join(found.attacks)} on {', '.join(found.surrogates)}")
    say(f"open       {', '.join((*found.trial([]).open, *ADAPTIVE))} at the largest eps")
    say(f"{len(lines)} models of {len({line.training for line in lines})} trainings")
