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
from advens.printable import printable, say
from advens.trust import trust_option, typed

if TYPE_CHECKING:
    import pandas as pd

    from advens.benchmarks.study import Study

WIDE = 14
"""Letters of a defense's name on one line."""
NOTES = (
    "Accuracy in %, over all images; of randomized ensembles the expected one. transfer: the worst of each "
    "image's transferred images [95 % Wilson interval]. worst: of each image, the attack on the model itself "
    "that leaves least. missed: accuracy that transfer took and they left, as masked gradients do.",
    "diversity: cross-entropy of members on images that feel to another like the target (DVERGE). shared: "
    "images crafted on one member that break another, in %. MFLOP: of one inference.",
)


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

    def names(text: str | None, option: str) -> list[str]:
        return _names(text, option) if text is not None else []

    typed(*defenses, data)
    trial = trial_of(
        defenses, data, names(surrogates, "--surrogates"), names(attacks, "--attacks"), names(eps, "--eps"),
        names(opened, "--open"), limit=limit, open_limit=open_limit, seed=seed, batch_size=batch_size,
    )  # fmt: skip
    show(run(trial, out, device=resolve_device(device), progress=_progress()), form)
    say(f"runs in {out}; the table in {out}/defenses.parquet", err=form != "table")


def study(found: Study, directory: Path | None, only: str | None, how: Callable[[], dict[str, Any]]) -> None:
    """``advens run`` of a suite of defenses; without a directory, the plan alone."""
    from advens.benchmarks.defend import ADAPTIVE
    from advens.benchmarks.study import check, contestants, run_study
    from advens.errors import unknown
    from advens.results.commands import show_study

    if only is not None:
        names = _names(only, "--attacks")
        if strange := [name for name in names if name not in found.attacks]:
            raise unknown("attack in this suite", strange[0], found.attacks)
        found = found.model_copy(update={"attacks": names})
    if directory is not None:
        run_study(found, directory, progress=_progress(), **how())
        show_study(directory)
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


def show(table: pd.DataFrame, form: str) -> None:
    """Print the table of `advens.benchmarks.defend.defend`."""
    from advens.results.display import text

    if form in ("csv", "json"):
        click.echo(text.as_csv(table) if form == "csv" else text.as_json(table), nl=False)
        return
    header, rows = cells(table)
    if form == "markdown":
        click.echo(text.as_markdown(header, rows, NOTES), nl=False)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, pad_edge=False, header_style="bold")
    for k, name in enumerate(header):
        made.add_column(Text(text.fold(name, WIDE)), justify="right" if k else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(highlight=False)
    console.print(made)
    for line in ("", *NOTES):
        console.print(line, style="italic")


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as people read them: a column for every defense."""
    from advens.results.display import text

    names = [str(name) for name in table]
    records = table.to_dict(orient="records")

    def line(name: str, say: Callable[[Any], str]) -> list[str]:
        return [name, *(say(record) for record in records)]

    def percents(name: str) -> list[str]:
        return line(name.removeprefix("open "), lambda record: text.percent(_number(record[name]), 1))

    def interval(name: str) -> list[str]:
        ends = f"{name} low", f"{name} high"
        return line(name, lambda r: text.interval(r[name], r[ends[0]], r[ends[1]], 1))

    lines = [line("", _kind), percents("clean")]
    lines += [interval(name) for name in names if f"{name} low" in names]
    lines += [percents(n) for n in names if n.startswith("open ") and bool(table[n].notna().any())]
    lines.append(percents("missed"))
    lines += [
        line("diversity", lambda record: text.number(_number(record["diversity"]))), percents("shared"),
        line("MFLOP", lambda record: text.number(record["mflops"])),
    ]  # fmt: skip
    return ["", *_short([str(name) for name in table["defense"]])], lines


def _kind(record: Any) -> str:
    many = record["members"] > 1
    return f"{record['kind']} of {record['members']}" if many else str(record["kind"])


def _short(names: list[str]) -> list[str]:
    """Names without the source and the folder that all share."""
    from advens.results.display import text

    short = text.shorten(names)
    last = [name.rpartition("/")[2] for name in short]
    return last if len(set(last)) == len(last) else short


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
