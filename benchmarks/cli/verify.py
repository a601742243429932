"""``advens verify``: whether everything that a run stored follows from its bytes."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import given_options, progress, resolve_device, time_limit_option
from advens.benchmarks.sandbox import Limits
from advens.errors import RunError
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto picks.")
@click.option("--suite", metavar="NAME", help="The suite that an entry holds to, where none is bundled.")
@time_limit_option
@trust_option
@click.pass_context
def verify(
    context: click.Context, directory: Path, device: str, suite: str | None, time_limit: float
) -> int:
    """Audit and re-evaluate what a run stored; exit code 1 on any mismatch.

    The archive of an entry ('advens submit') is unpacked and verified in a sandbox.
    """
    from advens.benchmarks.submission import opened, verify_archive
    from advens.benchmarks.verify import UNKNOWABLE, verify_directory

    if directory.is_file():
        options = given_options(context, "time_limit")
        return verify_archive(directory, options, Limits(60 * time_limit))
    if entry := opened(directory, suite):
        say(*entry.lines())
        directory = entry.run
    mismatches = 0
    for name, audit in verify_directory(directory, resolve_device(device), progress()):
        where = f"{name}: " if name else ""
        for mismatch in audit.mismatches:
            say(f"MISMATCH  {where}{mismatch}", err=True)
        close = f", {audit.borderline} borderline" if audit.borderline else ""
        if audit.cells or audit.rows:
            say(f"{where}{audit.cells} cells and {audit.rows} predictions checked{close}")
        mismatches += len(audit.mismatches)
    if mismatches:
        raise RunError(
            f"{directory}: {mismatches} mismatches between what is stored and what follows from it"
        )
    say("every image is in its ball, and every prediction and table follows from the stored bytes")
    say(UNKNOWABLE)
    if entry:
        say("label: consistent")
    return 0
