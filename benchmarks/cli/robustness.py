"""``advens robustness``: white-box attacks on models, into the same store as every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from advens.benchmarks.cli.options import (
    batch_option,
    conclude,
    executor_of,
    format_option,
    names_in,
    progress,
    sanity_option,
    set_option,
    store_option,
    worker_options,
)
from advens.errors import InputError
from advens.trust import trust_option, typed

NAME = "robustness"
ATTACK, UNTIL = "pma-plus", 0.01
"""Where no attack is named: this one, in rounds until one breaks less than this share of all images."""


@click.command(name=NAME)
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--models", "--model", "models", help="Models, with wildcards: A,B.")
@click.option("--data", help="A data source.")
@click.option("--attack", "--attacks", "attacks",
              help="Attacks: A,B. A+B attacks with B what withstood A.  "
                   f"[default: {ATTACK}, with --until {UNTIL}]")
@click.option("--until", type=float, metavar="SHARE",
              help="Repeat an attack in rounds until one breaks less than this share of all images: 0.01.")
@click.option("--most-rounds", type=int, metavar="N", help="Rounds at most.  [default: 10]")
@click.option("--round-attack", metavar="ATTACK",
              help="What rounds repeat.  [default: the last one that takes gradients from random starts]")
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/robustness.")
@click.option("--norm", default="linf", help="linf, l2 or l1.")
@click.option("--eps", default="8/255", help="The budget.")
@click.option("--steps", type=click.IntRange(1), help="Iterations, for attacks that have them.")
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@click.option("--shard", type=click.IntRange(1), default=1000, show_default=True,
              help="Images that are kept, or lost in a crash, together.")
@click.option("--seed", type=click.IntRange(0), default=0)
@format_option
@worker_options
@trust_option
@batch_option
@store_option
@sanity_option
@set_option
def robustness(directory: Path | None, models: str | None, data: str | None, attacks: str | None,
               until: float | None, most_rounds: int | None, round_attack: str | None, out: Path | None,
               norm: str, eps: str, steps: int | None, limit: int | None, shard: int, seed: int,
               executor: str, workers: int | None, form: str, device: str, batch_size: int | None,
               store: str | None, sanity: bool, settings: tuple[str, ...]) -> None:  # fmt: skip
    """Attack models white-box, broken samples leaving at once; or show the run in DIRECTORY.

    A stronger attack can be added later to what withstood the earlier ones: first --attack pma, then
    --attack pma+square, with the same --out.
    """
    if models is None or data is None:
        from advens.results.commands import show_robustness

        if directory is None or models is not None or data is not None:
            raise InputError("write --models A,B --data D, or the directory of a run to show it")
        show_robustness(directory, form)
        return
    if directory is not None:
        raise InputError(f"'{directory}': a directory is for showing a run; write --out {directory}")
    from advens.benchmarks.goals import ROBUSTNESS
    from advens.benchmarks.runner import run_suite
    from advens.benchmarks.suites import expanded, from_table, parse_settings

    typed(data)
    if attacks is None:
        attacks, until = ATTACK, UNTIL if until is None else until
    names = expanded(names_in(models, "--models"))

    def entry(name: str) -> dict[str, Any]:
        """An attack with its options: ``square.queries`` is for a sequence with Square in it."""
        stages = {*dict(ROBUSTNESS.stages(name)), round_attack}
        given = parse_settings(settings).items()
        rounds = {"until": until, "most_rounds": most_rounds, "round_attack": round_attack}
        return {
            "name": name,
            **{k: v for k, v in given if "." not in k or k.partition(".")[0] in stages},
            **{k: v for k, v in rounds.items() if v is not None},
        }

    suite = from_table(
        {
            "name": NAME,
            "goal": ROBUSTNESS.name,
            "data": data,
            "limit": limit,
            "seeds": [seed],
            "targets": list(names),
            "threat": {"norm": norm, "eps": eps, "steps": steps},
            "surrogates": {name: [name] for name in names},
            "attacks": [entry(name) for name in names_in(attacks, "--attack")],
            "shard": shard,
            "sanity": sanity,
            "batch_size": batch_size,
            "store": store or "differences",
        },
        NAME,
    )
    report = run_suite(
        suite, out or Path("runs") / NAME, executor=executor_of(executor, device, workers),
        progress=progress(),
    )
    conclude(report, ROBUSTNESS.shown, form)
