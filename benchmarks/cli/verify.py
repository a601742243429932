"""``advens verify``: whether everything that a run stored follows from its bytes."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from advens.benchmarks.cli.options import given_options, progress, time_limit_option
from advens.benchmarks.sandbox import Limits
from advens.errors import InputError, RunError
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto picks.")
@click.option(
    "--recraft", type=float, metavar="SHARE",
    help="Craft this share of the cells again: 0.05; 1 for all."
)
@click.option("--challenge", metavar="TEXT", help="What the cells are drawn with.  [default: a random text]")
@click.option("--suite", metavar="NAME", help="Hold the run to all settings of this suite: a name or a file.")
@time_limit_option
@trust_option
@click.pass_context
def verify(
    context: click.Context, directory: Path, device: str, recraft: float | None, challenge: str | None,
    suite: str | None, time_limit: float,
) -> int:  # fmt: skip
    """Audit and re-evaluate what a run stored; exit code 1 on any mismatch.

    With --recraft, cells are crafted again from the suite, the models, the data and the seed, and compared
    with the stored images. Which cells these are follows from the text of --challenge: choose it after you
    received the run.

    The archive of an entry ('advens submit') is unpacked and verified in a sandbox.
    """
    from advens.benchmarks.executors.base import resolve_device
    from advens.benchmarks.recraft import Sample
    from advens.benchmarks.submission import opened, verify_archive
    from advens.benchmarks.verify import UNKNOWABLE, verify_directory

    if recraft is None and challenge is not None:
        raise InputError("--challenge draws the cells of --recraft; give --recraft SHARE, too")
    sample = None if recraft is None else Sample(recraft, challenge or secrets.token_hex(8))
    if directory.is_file():
        options = given_options(context, "time_limit")
        return verify_archive(directory, options, Limits(60 * time_limit))
    if entry := opened(directory, suite):
        say(*entry.lines())
        directory, suite = entry.run, None
    if sample is not None:
        say(f"cells are drawn with --challenge {sample.challenge}")
    mismatches = 0
    checked = verify_directory(
        directory, resolve_device(device), progress(), sample=sample, suite=suite
    )
    for name, audit in checked:
        where = f"{name}: " if name else ""
        for mismatch in audit.mismatches:
            say(f"MISMATCH  {where}{mismatch}", err=True)
        close = f", {audit.borderline} borderline" if audit.borderline else ""
        if audit.cells or audit.rows:
            say(f"{where}{audit.cells} cells and {audit.rows} predictions checked{close}")
        if audit.recrafted is not None:
            say(f"{where}{audit.recrafted.line()}")
        say(*(f"{where}{note}" for note in audit.notes))
        mismatches += len(audit.mismatches)
    if mismatches:
        raise RunError(
            f"{directory}: {mismatches} mismatches between what is stored and what follows from it"
        )
    say("every image is in its ball, and every prediction and table follows from the stored bytes")
    say("not to be seen from files:", *(f"  {name}: {what}" for name, what in UNKNOWABLE.items()))
    if entry:
        drawn = f" (share {recraft:g}, challenge '{sample.challenge}')" if sample else ""
        say(f"label: {'re-crafted' if sample else 'consistent'}{drawn}")
    return 0
