"""``advens verify``: whether everything that a run stored follows from its bytes."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import progress, resolve_device
from advens.errors import RunError
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto picks.")
@trust_option
def verify(directory: Path, device: str) -> None:
    """Audit and re-evaluate what a run stored; exit code 1 on any mismatch."""
    from advens.benchmarks.verify import UNKNOWABLE, verify_directory

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
