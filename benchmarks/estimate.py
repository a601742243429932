"""What a run will cost and need, told before it: for ``advens run SUITE --dry-run``.

Nothing is downloaded, and no weights are loaded; the data are listed, not decoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from advens.benchmarks.building import Build
from advens.datasets import find_data
from advens.datasets.classes import check_classes
from advens.datasets.loading import downloads
from advens.errors import InputError
from advens.models import absent, known_card

if TYPE_CHECKING:
    from advens.benchmarks.plan import Outline
    from advens.benchmarks.suites import Suite
    from advens.datasets import Dataset

SHRUNK = 0.9
"""What compression leaves of adversarial images, about."""
ROW = 30
"""Bytes of an image's row for one target, about."""


def estimate(suite: Suite, seen: Outline) -> Iterator[str]:
    """Lines on cells, images, passes, bytes on disk and downloads.

    Raises:
        InputError: the data cannot be opened, or their labels and the models' classes differ.
    """
    data = None if downloads(suite.source) else find_data(suite.source)
    named = [m for name, models in seen.sets.items() for m in _named(suite, name, models)]
    models = list(dict.fromkeys([*named, *seen.targets]))
    if data is not None:
        _check_labels(suite, models, data)
    for entry in suite.attacks:
        steps = {"[threat]": suite.threat.steps, "the attack": entry.options.get("steps")}
        given = " and ".join(where for where, count in steps.items() if count)
        if given and (entry.budget or suite.budget):
            yield f"note       {entry.title}: its budget sets the steps; steps of {given} do not count"
    seeds = len(suite.seeds)
    if data is None:
        cells = len(seen.stages) * seeds
        yield f"{cells} cells per shard of {suite.shard} images; the data are downloaded first"
    else:
        shards = -(-len(data) // suite.shard)
        cells = len(seen.stages) * seeds * shards
        yield (
            f"{cells} cells: {len(data):,} images in {shards} shards of {suite.shard}, {seeds} seeds; "
            f"each shown to {len(seen.targets)} targets"
        )
        spent = [stage.attack.passes(len(seen.sets[name])) for (_, name), stage in seen.stages.items()]
        forward, backward = (seeds * len(data) * sum(passes[i] for passes in spent) for i in (0, 1))
        crafted = len(seen.stages) * seeds * len(data)
        most = "" if suite.goal == "transfer" else "at most "
        looks = (crafted + len(data)) * len(seen.targets)
        yield (
            f"passes     {most}{forward:,} F, {backward:,} B to craft {crafted:,} images, "
            f"{looks:,} F to evaluate"
        )
        if data.size is not None:
            height, width = data.size
            stored = crafted * (SHRUNK * 3 * height * width + ROW * len(seen.targets))
            yield f"disk       about {stored / 1e6:,.1f} MB"
    missing = [what for what in dict.fromkeys(map(absent, models)) if what]
    for what in missing:
        yield f"download   {what}"
    if not missing and data is not None:
        yield "download   nothing"


def _named(suite: Suite, name: str, models: tuple[str, ...]) -> tuple[str, ...]:
    """The models of a set that exist: of one that is built, those that it is built from."""
    wanted = suite.surrogates.get(name)
    return wanted.models if isinstance(wanted, Build) else models


def _check_labels(suite: Suite, models: list[str], data: Dataset) -> None:
    """Raise InputError when classes differ, as far as sources tell them without loading weights."""
    known = {name: card.num_classes for name in models if (card := known_card(name)) is not None}
    for name, classes in known.items():
        first = next(iter(known))
        if classes != known[first]:
            raise InputError(
                f"suite '{suite.name}': {name} has {classes} classes and {first} has {known[first]}; "
                "surrogates and targets share one label space"
            )
        check_classes(data, classes)
