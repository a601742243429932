"""``advens lock``: the digests of a suite's models and data, beside the suite."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import set_option
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument("suite")
@click.option("--out", type=click.Path(path_type=Path), help="Default: SUITE.lock, beside a suite file.")
@trust_option
@set_option
def lock(suite: str, out: Path | None, settings: tuple[str, ...]) -> None:
    """Pin the models and data of SUITE, so that later runs refuse what has changed.

    Weights that are missing are downloaded.
    """
    from advens.benchmarks.pins import SHOWN, lock_of, lock_path, read_lock, write_lock
    from advens.benchmarks.suites import load, parse_settings

    path = out or lock_path(suite)
    before = read_lock(path) if path.exists() else None
    found = lock_of(load(suite, parse_settings(settings)))
    for name, model in found.models.items():
        say(f"model  {model.digest[:SHOWN]}  {name}{f'  ({model.revision})' if model.revision else ''}")
    for name, data in found.data.items():
        say(f"data   {data.digest[:SHOWN]}  {name}  ({data.images:,} images)")
    for change in before.changes(found) if before else ():
        say(f"changed: {change}")
    write_lock(path, found)
    say(f"pinned in {path}")
