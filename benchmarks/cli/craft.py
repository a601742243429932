"""``advens craft``: adversarial images of a data source, no suite needed."""

from __future__ import annotations

from pathlib import Path

import click

from advens.benchmarks.cli.options import (
    batch_option,
    executor_of,
    names_in,
    progress,
    set_option,
    store_option,
    worker_options,
)
from advens.printable import say
from advens.trust import trust_option, typed


@click.command()
@click.argument("attack")
@click.option("--surrogates", required=True, help="Models, with wildcards: A,B.")
@click.option("--data", required=True, help="A data source.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Where to.")
@click.option("--limit", type=click.IntRange(1), help="Only so many images.")
@click.option("--targets", help="Models to try the images on, with wildcards: M,N.")
@click.option(
    "--build", help="Build surrogates first; 'none' to leave out what ATTACK is made for."
)
@click.option("--train", metavar="DATA", help="What they are built on.")
@click.option("--norm", default="linf", help="linf, l2 or l1.")
@click.option("--eps", default="8/255", help="The budget.")
@click.option("--steps", type=click.IntRange(1), help="Iterations.")
@click.option("--targeted", is_flag=True, help="To wanted classes: the data's, else drawn.")
@click.option("--seed", type=click.IntRange(0), default=0)
@click.option("--png/--no-png", default=True, help="Also write PNG files under images/.")
@click.option("--trace", is_flag=True, help="Write per-step losses and more to traces/.")
@worker_options
@trust_option
@batch_option
@store_option
@set_option
def craft(attack: str, surrogates: str, data: str, out: Path, limit: int | None, targets: str | None,
          build: str | None, train: str | None, norm: str, eps: str, steps: int | None, targeted: bool,
          seed: int, png: bool, trace: bool, device: str, executor: str, workers: int | None,
          batch_size: int | None, store: str | None, settings: tuple[str, ...]) -> None:  # fmt: skip
    """Craft adversarial images with ATTACK; --set overrides its options (--set fusion=ens-loss).

    Surrogates that are built (--build lgv --set build.lr=0.1) are compared with the models they come from.
    """
    from advens.benchmarks.export import PLAIN, craft_images, suite_for
    from advens.benchmarks.suites import parse_settings

    typed(data, *([train] if train else []))
    suite = suite_for(
        attack, names_in(surrogates, "--surrogates"), data, norm=norm, eps=eps, steps=steps,
        targeted=targeted, seed=seed, options=parse_settings(settings), batch_size=batch_size, build=build,
        train=train, limit=limit, targets=names_in(targets, "--targets") if targets else (),
        store=store or "differences",
    )  # fmt: skip
    made = craft_images(
        suite,
        out,
        executor=executor_of(executor, device, workers),
        png=png,
        trace=trace,
        progress=progress(),
    )
    verb = "reach the wanted class on" if targeted else "fool"
    plain = made.fooled.get(PLAIN, {})
    for name, rate in made.fooled["surrogates"].items():
        beside = f"; on the plain surrogates {plain[name]:.1%}" if plain else ""
        known = (
            f" ({'a surrogate' if not plain else 'built from it'})"
            if name in made.surrogates
            else ""
        )
        say(f"{rate:6.1%} of the images {verb} {name}{known}{beside}")
    if made.same_images:
        say("surrogates were built on the images that are attacked; --train DATA builds on others")
    for warning in made.warnings:
        say(f"warning: {warning}", err=True)
    where = f"{out}/images and {out}/examples" if png else f"{out}/examples"
    say(f"{made.images} images in {where}{f', traces in {out}/traces' if trace else ''}")
