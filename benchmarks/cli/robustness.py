"""``advens robustness``: models attacked in the open, into the same store as every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from advens.benchmarks.cli.commands import (
    _conclude,
    _names,
    _progress,
    batch_option,
    device_option,
    resolve_device,
    set_option,
)
from advens.errors import InputError
from advens.trust import trust_option, typed

NAME = "robustness"


@click.command(name=NAME)
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option("--models", "--model", "models", help="Models, with wildcards: A,B.")
@click.option("--data", help="A data source.")
@click.option("--attack", "--attacks", "attacks", default="pma-plus", show_default=True,
              help="Attacks: A,B. A+B attacks with B what stands after A.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/robustness.")
@click.option("--norm", default="linf", help="linf or l2.")
@click.option("--eps", default="8/255", help="The budget.")
@click.option("--steps", type=click.IntRange(1), help="Iterations, for attacks that have them.")
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@click.option("--shard", type=click.IntRange(1), default=1000, show_default=True,
              help="Images that are kept, or lost in a crash, together.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--executor", default="local", help="local or ray.")
@click.option("--workers", type=click.IntRange(1), default=1, help="Worker processes.")
@click.option("--format", "form", default="table", show_default=True,
              type=click.Choice(["table", "csv", "json", "markdown"]), help="How to write it.")
@device_option
@trust_option
@batch_option
@set_option
def robustness(directory: Path | None, models: str | None, data: str | None, attacks: str, out: Path | None,
               norm: str, eps: str, steps: int | None, limit: int | None, shard: int, seed: int,
               executor: str, workers: int, form: str, device: str, batch_size: int | None,
               settings: tuple[str, ...]) -> None:  # fmt: skip
    """Attack models in the open, broken samples leaving at once; or show the run in DIRECTORY.

    A stronger attack can be added later to what still stands: first --attack pma, then
    --attack pma+square, with the same --out.
    """
    from advens.results.commands import show_robustness

    if models is None or data is None:
        if directory is None or models is not None or data is not None:
            raise InputError("write --models A,B --data D, or the directory of a run to show it")
        show_robustness(directory, form)
        return
    if directory is not None:
        raise InputError(f"'{directory}': a directory is for showing a run; write --out {directory}")
    from advens.benchmarks.runner import run_suite
    from advens.benchmarks.suites import from_table, parse_settings
    from advens.models import expand

    typed(data)
    names = [name for pattern in _names(models, "--models") for name in expand(pattern)]
    suite = from_table(
        {
            "name": NAME,
            "goal": "robustness",
            "data": data,
            "limit": limit,
            "seeds": [seed],
            "targets": names,
            "threat": {"norm": norm, "eps": eps, "steps": steps},
            "surrogates": {name: [name] for name in names},
            "attacks": [_entry(name, parse_settings(settings)) for name in _names(attacks, "--attack")],
            "shard": shard,
            "batch_size": batch_size,
        },
        NAME,
    )
    report = run_suite(
        suite, out or Path("runs") / NAME, device=resolve_device(device), executor=executor,
        workers=workers, progress=_progress(),
    )  # fmt: skip
    _conclude(report, "robustness", form)


def _entry(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """An attack with the options that are its: ``square.queries`` is for a sequence with Square in it."""
    from advens.benchmarks.stages import named_stages

    stages = dict(named_stages(name))
    own = {k: v for k, v in settings.items() if "." not in k or k.partition(".")[0] in stages}
    return {"name": name, **own}
