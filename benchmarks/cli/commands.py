"""Commands of the top floor: suites, run, evaluate, craft."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from advens.errors import InputError, RunError
from advens.printable import say
from advens.trust import trust_option, typed

if TYPE_CHECKING:
    from advens.benchmarks.progress import Progress
    from advens.benchmarks.runner import Report
    from advens.benchmarks.suites import Suite

device_option = click.option("--device", default="auto", help="cpu, cuda, cuda:1, mps; auto picks.")
batch_option = click.option("--batch-size", type=click.IntRange(1), help="Images at once.")
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE",
    help="An option by its name: threat.eps=0.1."
)


@click.command()
@click.argument("name", required=False)
def suites(name: str | None) -> None:
    """List bundled suites, or print one."""
    from importlib.resources import files

    from advens.benchmarks.study import load
    from advens.benchmarks.suites import bundled
    from advens.listing import show

    if name is not None:
        load(name)
        inside = files("advens.benchmarks") / "suites" / f"{name}.toml"
        say(*(inside if name in bundled() else Path(name)).read_text().rstrip().split("\n"))
        return
    folder = files("advens.benchmarks") / "suites"
    texts = ((each, (folder / f"{each}.toml").read_text()) for each in bundled())
    show(
        ("suite", "what it asks"), ((each, _purpose(text)) for each, text in texts),
        "'advens suites NAME' prints one; 'advens run NAME' runs it.",
    )  # fmt: skip


def _purpose(text: str) -> str:
    """The comment that a suite begins with."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


@click.command()
@click.argument("suite")
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/SUITE.")
@device_option
@trust_option
@click.option("--executor", default="local", help="local or ray.")
@click.option("--workers", type=click.IntRange(1), default=1, help="Worker processes.")
@click.option("--attacks", "only", help="Only these attacks, by label: A,B.")
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@click.option("--seed", type=click.IntRange(0), help="One seed instead of the suite's.")
@batch_option
@set_option
@click.option("--dry-run", is_flag=True, help="Print the plan; load and download nothing.")
def run(suite: str, out: Path | None, device: str, executor: str, workers: int, only: str | None,
        limit: int | None, seed: int | None, batch_size: int | None, settings: tuple[str, ...],
        dry_run: bool) -> None:  # fmt: skip
    """Run SUITE (a bundled name or a TOML file); a rerun does only what is missing."""
    from advens.benchmarks.study import Study, load
    from advens.benchmarks.suites import parse_settings

    changes = parse_settings(settings)
    given = {"limit": limit, "seeds": None if seed is None else [seed], "batch_size": batch_size}
    changes |= {key: value for key, value in given.items() if value is not None}
    found = load(suite, changes)
    directory = out or Path("runs") / found.name
    how: dict[str, Any] = {"executor": executor, "workers": workers}
    if isinstance(found, Study):
        from advens.benchmarks.cli.defend import study

        study(found, None if dry_run else directory, only, lambda: how | {"device": resolve_device(device)})
        return
    chosen = _only(found, only)
    if dry_run:
        _print_outline(chosen)
        return
    from advens.benchmarks.runner import run_suite

    how |= {"device": resolve_device(device), "progress": _progress()}
    _conclude(run_suite(chosen, directory, **how), chosen.goal)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--targets", required=True, help="Models, with wildcards: M,N.")
@device_option
@trust_option
@batch_option
def evaluate(directory: Path, targets: str, device: str, batch_size: int | None) -> None:
    """Show the stored examples of a run to new targets; nothing is crafted again."""
    from advens.benchmarks.evaluate import evaluate_targets

    names = _names(targets, "--targets")
    _conclude(evaluate_targets(directory, names, resolve_device(device), batch_size, _progress()))


@click.command()
@click.argument("attack")
@click.option("--surrogates", required=True, help="Models, with wildcards: A,B.")
@click.option("--data", required=True, help="A data source.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to.")
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@click.option("--targets", help="Models to try the images on, with wildcards: M,N.")
@click.option("--build", help="Build surrogates first; 'none' to leave out what ATTACK is made for.")
@click.option("--train", metavar="DATA", help="What they are built on.")
@click.option("--norm", default="linf", help="linf or l2.")
@click.option("--eps", default="8/255", help="The budget.")
@click.option("--steps", type=click.IntRange(1), help="Iterations.")
@click.option("--targeted", is_flag=True, help="To wanted classes: the data's, else drawn.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--png/--no-png", default=True, help="Also write PNG files under images/.")
@click.option("--trace", is_flag=True, help="Write per-step losses and more to traces/.")
@device_option
@trust_option
@batch_option
@set_option
def craft(attack: str, surrogates: str, data: str, out: Path, limit: int | None, targets: str | None,
          build: str | None, train: str | None, norm: str, eps: str, steps: int | None, targeted: bool,
          seed: int, png: bool, trace: bool, device: str, batch_size: int | None,
          settings: tuple[str, ...]) -> None:  # fmt: skip
    """Craft adversarial images with ATTACK; --set overrides its options (--set fusion=ens-loss).

    Surrogates that are built (--build lgv --set build.lr=0.1) are compared with the models they come from.
    """
    from advens.benchmarks.craft import PLAIN, craft_images, suite_for
    from advens.benchmarks.suites import parse_settings

    typed(data, *([train] if train else []))
    suite = suite_for(
        attack, _names(surrogates, "--surrogates"), data, norm=norm, eps=eps, steps=steps, targeted=targeted,
        seed=seed, options=parse_settings(settings), batch_size=batch_size, build=build, train=train,
        limit=limit, targets=_names(targets, "--targets") if targets else (),
    )  # fmt: skip
    made = craft_images(
        suite, out, device=resolve_device(device), png=png, trace=trace, progress=_progress()
    )
    verb = "reach the wanted class on" if targeted else "fool"
    plain = made.fooled.get(PLAIN, {})
    for name, rate in made.fooled["surrogates"].items():
        beside = f"; on the plain surrogates {plain[name]:.1%}" if plain else ""
        known = f" ({'a surrogate' if not plain else 'built from it'})" if name in made.surrogates else ""
        say(f"{rate:6.1%} of the images {verb} {name}{known}{beside}")
    if made.same_images:
        say("surrogates were built on the images that are attacked; --train DATA builds on others")
    for warning in made.warnings:
        say(f"warning: {warning}", err=True)
    where = f"{out}/images and {out}/examples" if png else f"{out}/examples"
    say(f"{made.images} images in {where}{f', traces in {out}/traces' if trace else ''}")


def resolve_device(device: str) -> str:
    """``auto`` to the best device here. Raises InputError for one that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{device}' is not to be had: {str(error).splitlines()[0]}"
        ) from None
    return device


def _names(text: str, option: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InputError(f"{option} names nothing; write {option} A,B")
    typed(*names)
    return names


def _only(suite: Suite, only: str | None) -> Suite:
    if only is None:
        return suite
    from advens.errors import unknown

    entries = {entry.title: entry for entry in suite.attacks}
    names = _names(only, "--attacks")
    for name in names:
        if name not in entries:
            raise unknown("attack in this suite", name, entries)
    return suite.model_copy(update={"attacks": [entries[name] for name in names]})


def _print_outline(suite: Suite) -> None:
    from advens.benchmarks.building import Build
    from advens.benchmarks.estimate import estimate
    from advens.benchmarks.plan import outline

    seen = outline(suite)
    say(
        f"suite      {suite.name}: {suite.threat.norm} {suite.threat.eps}, data {suite.source}"
    )
    for name, models in seen.sets.items():
        wanted = suite.surrogates.get(name)
        if isinstance(wanted, Build):
            made = f"{len(models)} by '{wanted.build}' of {', '.join(wanted.models)}, on {wanted.source}"
        say(f"surrogates {name}: {made if isinstance(wanted, Build) else ', '.join(models)}")
    for target in seen.targets:
        inside = [name for name, models in seen.sets.items() if target in models]
        say(
            f"target     {target}{'  (white-box for ' + ', '.join(inside) + ')' if inside else ''}"
        )
    most = "" if suite.goal == "transfer" else "at most "
    for (label, name), stage in seen.stages.items():
        spent = stage.attack.passes(len(seen.sets[name]))
        say(f"attack     {label} on {name}: {most}{spent.forward} F, {spent.backward} B per image")
    for line in estimate(suite, seen):
        say(line)


def _progress() -> Progress:
    from rich.console import Console

    from advens.benchmarks.progress import Progress

    return Progress(Console(stderr=True))


def _conclude(report: Report, goal: str = "transfer", form: str = "table") -> None:
    from advens.results.commands import show_matrix, show_robustness

    show = show_matrix if goal == "transfer" else show_robustness
    for warning in report.warnings:
        say(f"warning: {warning}", err=True)
    if report.crafted or report.evaluated:
        done = f"{report.crafted} cells crafted, {report.evaluated} evaluations"
    else:
        done = f"nothing to do: all {report.cells} cells are there"
    if not report.failures:
        show(report.directory, form)
    say(done)
    if report.failures:
        for _, why in report.failures:
            say(f"failed: {why}", err=True)
        raise RunError(
            f"{len(report.failures)} cells failed; see 'advens status {report.directory}'"
        )
    say(
        f"files in {report.directory}: matrix.parquet, leaderboard.parquet, samples/, examples/"
    )


__all__: list[Any] = ["craft", "evaluate", "run", "suites"]
