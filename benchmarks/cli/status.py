"""``advens status``: how far a run is. Imports neither torch nor pandas."""

from __future__ import annotations

from pathlib import Path

import click

from advens.printable import say


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def status(directory: Path) -> None:
    """Cells done, left and failed of a run, or of all runs of a suite of defenses."""
    from advens.benchmarks.status import runs_in, status_lines

    for store in runs_in(directory):
        if store.directory != directory:
            say(store.directory.name)
        say(*status_lines(store))
