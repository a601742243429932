"""``advens defend``: a suite of defenses that exist, without a file."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import (
    batch_option,
    conclude,
    executor_of,
    format_option,
    names_in,
    progress,
    sanity_option,
    store_option,
    worker_options,
)
from advens.printable import say
from advens.trust import trust_option, typed


@click.command()
@click.argument("defenses", nargs=-1, required=True, metavar="DEFENSE...")
@click.option("--data", required=True, help="Images that are attacked.")
@click.option("--surrogates", help="Separately trained models that transfer comes from: A,B.")
@click.option("--attacks", help="Attacks on these: A,B.")
@click.option(
    "--transfer",
    metavar="NAME",
    help="How these are run: 'dverge' for the worst of many, as its authors measure transfer.",
)
@click.option("--eps", help="l_inf budgets: 2/255,4/255; white-box attacks have the largest.")
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@click.option(
    "--white-box", help="Attacks on the defenses themselves: A,B; six by default."
)
@click.option("--open", "old_white_box", hidden=True)
@click.option(
    "--white-box-limit", type=click.IntRange(1), help="The first of these for white-box attacks."
)
@click.option("--open-limit", "old_white_box_limit", type=click.IntRange(1), hidden=True)
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/defend"), show_default=True
)
@click.option("--dry-run", is_flag=True, help="Print what it would cost; craft and load nothing.")
@format_option
@worker_options
@trust_option
@batch_option
@store_option
@sanity_option
def defend(defenses: tuple[str, ...], data: str, surrogates: str | None, attacks: str | None, eps: str | None,
           transfer: str | None, white_box: str | None, old_white_box: str | None, limit: int | None,
           white_box_limit: int | None, old_white_box_limit: int | None, seed: int, out: Path, dry_run: bool,
           form: str, device: str, executor: str, workers: int | None, batch_size: int | None,
           store: str | None, sanity: bool) -> None:  # fmt: skip
    """Evaluate defenses (folders of 'advens train', or models): transfer, white-box attacks, cost."""
    from advens.benchmarks.defense_goal import defense_suite
    from advens.benchmarks.runner import run_suite

    for old, new in ((old_white_box, "--white-box"), (old_white_box_limit, "--white-box-limit")):
        if old is not None:
            click.echo(
                f"note: '{new.replace('white-box', 'open')}' is called '{new}' now", err=True
            )

    def names(text: str | None, option: str) -> list[str]:
        return names_in(text, option) if text is not None else []

    typed(*defenses, data)
    suite = defense_suite(
        defenses, data, names(surrogates, "--surrogates"), names(attacks, "--attacks"), names(eps, "--eps"),
        names(white_box or old_white_box, "--white-box"), limit=limit,
        white_box_limit=white_box_limit or old_white_box_limit, seed=seed, batch_size=batch_size,
        sanity=sanity, transfer=transfer, store=store or "differences",
    )  # fmt: skip
    if dry_run:
        from advens.benchmarks.estimate import dry_run_lines

        say(*dry_run_lines(suite))
        return
    report = run_suite(
        suite, out, executor=executor_of(executor, device, workers), progress=progress()
    )
    conclude(report, "defenses", form)
