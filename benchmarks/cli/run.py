"""``advens run``: a suite, whatever its goal."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import (
    batch_option,
    conclude,
    conclude_part,
    craft_precision_option,
    executor_of,
    names_in,
    precision_option,
    progress,
    set_option,
    store_option,
    worker_options,
)
from advens.printable import say
from advens.trust import trust_option


@click.command()
@click.argument("suite")
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/SUITE.")
@worker_options
@trust_option
@click.option("--attacks", "only", help="Only these attacks, by label: A,B.")
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@click.option("--seed", type=click.IntRange(0), help="One seed instead of the suite's.")
@batch_option
@store_option
@precision_option
@craft_precision_option
@set_option
@click.option(
    "--lock", type=click.Path(path_type=Path), help="Of advens lock.  [default: the one beside SUITE]"
)
@click.option(
    "--part", metavar="I/N", help="Share the run with the other parts; a run without --part completes it."
)
@click.option("--dry-run", is_flag=True, help="Print the plan; load and download nothing.")
@click.option("--trace", is_flag=True, help="Write per-step losses and more to traces/.")
@click.option("--no-report", is_flag=True, help="Do not write report.html.")
def run(suite: str, out: Path | None, device: str, executor: str, workers: int | None, only: str | None,
        limit: int | None, seed: int | None, batch_size: int | None, store: str | None,
        precision: str, craft_precision: str, settings: tuple[str, ...], lock: Path | None,
        part: str | None, dry_run: bool, trace: bool, no_report: bool) -> None:  # fmt: skip
    """Run SUITE (a bundled name or a TOML file); a rerun does only what is missing."""
    from advens.benchmarks.parts import Part
    from advens.benchmarks.pins import find_lock, read_lock
    from advens.benchmarks.suites import load, parse_settings

    share = None if part is None else Part.parse(part)
    changes = parse_settings(settings)
    seeds = None if seed is None else [seed]
    given = {"limit": limit, "seeds": seeds, "batch_size": batch_size, "store": store}
    found = load(suite, changes | {key: value for key, value in given.items() if value is not None})
    if only is not None:
        found = found.restricted(names_in(only, "--attacks"))
    if precision != "float32" or craft_precision != "float32":
        from advens.benchmarks.precision import in_precision

        found = in_precision(found, precision, craft_precision)
    pinned = find_lock(suite, lock)
    if dry_run:
        from advens.benchmarks.estimate import dry_run_lines
        from advens.benchmarks.executors.base import resolve_device

        say(*dry_run_lines(found, resolve_device(device)))
        if pinned is not None:
            unlisted = ", ".join(read_lock(pinned).unlisted(found))
            say(f"lock       {pinned}{unlisted and f', which does not pin {unlisted}'}")
        return
    from advens.benchmarks.precision import agreements
    from advens.benchmarks.runner import run_suite, shown_of

    if pinned is not None:
        say(f"models and data are held to {pinned}")
    directory = out or Path("runs") / found.name
    doer, bars = executor_of(executor, device, workers), progress()
    report = run_suite(
        found,
        directory,
        executor=doer,
        progress=bars,
        trace=trace,
        lock=pinned,
        part=share,
    )
    if share is not None:
        conclude_part(report, share)
        return
    try:
        conclude(report, shown_of(found))
        say(*(each.line() for each in agreements(directory, found, doer, bars)))
    finally:  # checks that failed are on the page, too
        if not no_report and not report.failures:
            from advens.results.report.page import write_report

            say(f"report: {write_report(directory)}")
