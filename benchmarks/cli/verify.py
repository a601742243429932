"""``advens verify``: whether everything that a run stored follows from its bytes."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advens.benchmarks.cli.options import (
    executor_of,
    given_options,
    progress,
    time_limit_option,
    worker_options,
)
from advens.benchmarks.sandbox import Limits
from advens.errors import InputError, RunError
from advens.printable import say
from advens.trust import trust_option

if TYPE_CHECKING:
    from advens.benchmarks.verify import Audit

SHOWN = 20
"""Drawn evaluations that are named in text; JSON names all."""


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@worker_options
@click.option(
    "--sample", "part", metavar="SIZE",
    help="Check this part of the evaluations, and no others: 1%, or 200 of them."
)
@click.option("--seed", type=int, help="What the sample is drawn with.  [default: a random number]")
@click.option(
    "--recraft", type=float, metavar="SHARE",
    help="Craft this share of the cells again: 0.05; 1 for all."
)
@click.option("--challenge", metavar="TEXT", help="What the cells are drawn with.  [default: a random text]")
@click.option("--suite", metavar="NAME", help="Hold the run to all settings of this suite: a name or a file.")
@click.option("--fresh", is_flag=True, help="Check again what an interrupted verify has found already.")
@click.option(
    "--format", "form", default="text", show_default=True, type=click.Choice(["text", "json"]),
    help="How to write what was found."
)
@time_limit_option
@trust_option
@click.pass_context
def verify(
    context: click.Context, directory: Path, device: str, executor: str, workers: int | None,
    part: str | None, seed: int | None, recraft: float | None, challenge: str | None, suite: str | None,
    fresh: bool, form: str, time_limit: float,
) -> int:  # fmt: skip
    """Audit and re-evaluate what a run stored; exit code 1 on any mismatch.

    With --sample, only a part of the images and predictions is checked. Which part follows from --seed:
    choose it after you received the run.

    With --recraft, cells are crafted again from the suite, the models, the data and the seed, and compared
    with the stored images. Which cells these are follows from the text of --challenge: choose it after you
    received the run.

    When the command is interrupted, the same command goes on.

    The archive of an entry ('advens submit') is unpacked and verified in a sandbox, in one process.
    """
    from advens.benchmarks.checks import Work
    from advens.benchmarks.recraft import Sample
    from advens.benchmarks.selection import Selection, new_seed
    from advens.benchmarks.submission import opened, verify_archive
    from advens.benchmarks.verify import UNKNOWABLE, verify_directory

    if recraft is None and challenge is not None:
        raise InputError("--challenge draws the cells of --recraft; give --recraft SHARE, too")
    if part is None and seed is not None:
        raise InputError("--seed draws the evaluations of --sample; give --sample SIZE, too")
    again = None if recraft is None else Sample(recraft, challenge or secrets.token_hex(8))
    sample = None if part is None else Selection.parse(part, new_seed() if seed is None else seed)
    if directory.is_file():
        if executor != "local" or (workers or 1) > 1:
            raise InputError(
                f"{directory} is an archive, which one process in a sandbox verifies; --workers and "
                "--executor are for directories of runs"
            )
        options = given_options(context, "time_limit", "workers", "executor", "fresh")
        return verify_archive(directory, options, Limits(60 * time_limit))
    quiet = form == "json"
    if entry := opened(directory, suite):
        say(*entry.lines(), err=quiet)
        directory, suite = entry.run, None
    if again is not None:
        say(f"cells are drawn with --challenge {again.challenge}", err=quiet)
    work = Work(executor_of(executor, device, workers), progress())
    checked = verify_directory(
        directory, work, recraft=again, sample=sample, suite=suite, journal=entry is None, fresh=fresh
    )
    audits: dict[str, Audit] = {}
    for name, audit in checked:
        audits[name] = audit
        if form == "text":
            _show(name, audit)
    mismatches = sum(len(audit.mismatches) for audit in audits.values())
    label = "" if not entry or mismatches else _label(again, sample)
    if form == "json":
        about = {
            "directory": str(directory), "sound": not mismatches, "sample": _sample(sample),
            "label": label or None, "runs": [_told(name, audit) for name, audit in audits.items()],
            "unknowable": UNKNOWABLE,
        }  # fmt: skip
        click.echo(json.dumps(about, indent=1))
    if mismatches:
        raise RunError(
            f"{directory}: {mismatches} mismatches between what is stored and what follows from it"
        )
    if form == "json":
        return 0
    if sample is None:
        say("every image is in its ball, and every prediction and table follows from the stored bytes")
    else:
        say(
            "no mismatch in the sample: its images are in their balls, and its predictions follow from the "
            "stored bytes",
            "all tables follow from the stored rows; other images and predictions were not checked",
        )
    say("not to be seen from files:", *(f"  {name}: {what}" for name, what in UNKNOWABLE.items()))
    if label:
        say(f"label: {label}")
    return 0


def _show(name: str, audit: Audit) -> None:
    """What was found in a run, for people."""
    where = f"{name}: " if name else ""
    for mismatch in audit.mismatches:
        say(f"MISMATCH  {where}{mismatch}", err=True)
    close = f", {audit.borderline} borderline" if audit.borderline else ""
    if audit.cells or audit.rows:
        say(f"{where}{audit.cells} cells and {audit.rows} predictions checked{close}")
    if audit.drawn is not None:
        say(f"{where}{audit.drawn.line()}")
        shown = audit.drawn.evaluations[:SHOWN]
        say(*(f"  {where}{cell} ({title}) on {target or 'no target'}" for cell, title, target in shown))
        if more := len(audit.drawn.evaluations) - len(shown):
            say(f"  {where}and {more} more, which --format json names")
    if audit.recrafted is not None:
        say(f"{where}{audit.recrafted.line()}")
    say(*(f"{where}{note}" for note in audit.notes))


def _sample(sample: Any) -> dict[str, Any] | None:
    """What was asked for with --sample."""
    return None if sample is None else {"share": sample.share, "number": sample.number, "seed": sample.seed}


def _told(name: str, audit: Audit) -> dict[str, Any]:
    """What was found in a run, for programs."""
    drawn, again = audit.drawn, audit.recrafted
    return {
        "run": name, "cells": audit.cells, "predictions": audit.rows, "borderline": audit.borderline,
        "mismatches": audit.mismatches, "notes": audit.notes,
        "recrafted": None if again is None else {
            "cells": again.cells, "of": again.of, "images": again.images, "identical": again.identical,
        },
        "drawn": None if drawn is None else {
            "of": drawn.of, "seed": drawn.seed, "evaluations": [
                dict(zip(("cell", "title", "target"), each, strict=True)) for each in drawn.evaluations
            ],
        },
    }  # fmt: skip


def _label(again: Any, sample: Any) -> str:
    """What may be said of an entry that was verified in this way, and no more."""
    label = "re-crafted" if again else "consistent"
    if sample is not None:
        label = f"only a sample of {sample.text} was checked (seed {sample.seed}), and is {label}"
    return f"{label} (share {again.share:g}, challenge '{again.challenge}')" if again else label
