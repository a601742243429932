"""Commands that look at what a run left: status, verify."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from advens.benchmarks.cli.commands import _progress, device_option, resolve_device
from advens.errors import InputError, RunError
from advens.printable import say
from advens.trust import trust_option

if TYPE_CHECKING:
    from advens.results.store import RunStore


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
def status(directory: Path) -> None:
    """Cells done, left and failed of a run, or of all runs of a trial."""
    for store in _stores(directory):
        if store.directory != directory:
            say(f"{store.directory.name}")
        _status(store)


def _status(store: RunStore) -> None:
    from advens.benchmarks.runner import plan_path, read_failures, read_plan
    from advens.results.store import is_whole

    directory = store.directory
    if not plan_path(store).is_file():
        raise InputError(f"{directory} holds no plan; was it made by 'advens run'?")
    plan = read_plan(plan_path(store))
    cells, keys, own = plan["cells"], set(plan["targets"].values()), plan["own"]
    seen = {cell: keys - set(own.values()) | {own[cell]} if cell in own else keys for cell in cells}
    done = {cell for cell in cells if is_whole(store.examples_path(cell), "examples")}
    failures = read_failures(store)
    pairs = sum(
        key in seen.get(cell, ()) and is_whole(store.samples_path(cell, key), "samples")
        for cell, key in store.evaluated()
    )
    say(f"cells        {len(done)} of {len(cells)} crafted, {len(cells) - len(done)} left")
    say(f"evaluations  {pairs} of {sum(map(len, seen.values()))} done")
    say(f"failed       {len(failures)}")
    for cell, note in failures.items():
        say(f"  {cell}  {note}")


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@device_option
@trust_option
def verify(directory: Path, device: str) -> None:
    """Audit and re-evaluate what a run stored; exit code 1 on any lie."""
    from advens.benchmarks.verify import verify_run

    lies = 0
    for store in _stores(directory):
        audit = verify_run(store, resolve_device(device), _progress())
        for lie in audit.lies:
            say(f"LIE  {lie}", err=True)
        close = f", {audit.borderline} borderline" if audit.borderline else ""
        where = "" if store.directory == directory else f"{store.directory.name}: "
        say(f"{where}{audit.cells} cells and {audit.rows} predictions checked{close}")
        lies += len(audit.lies)
    if lies:
        raise RunError(f"{directory}: {lies} things stored there are not true")
    say("every image is in its ball and every number follows from the stored bytes")


def _stores(directory: Path) -> list[RunStore]:
    """The run in a directory, or those in its folders, as a trial of defenses leaves them."""
    from advens.results.store import RunStore

    if (directory / "suite.toml").is_file() or not any(directory.glob("*/suite.toml")):
        return [RunStore.open(directory)]
    return [RunStore(path.parent) for path in sorted(directory.glob("*/suite.toml"))]
