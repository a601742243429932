"""From a suite to cells: the unit of work is one attack on one surrogate set for one shard and seed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from advens.benchmarks.building import Build, build_sets
from advens.benchmarks.stages import Stage, stages_of, with_budget
from advens.benchmarks.suites import AttackEntry, Suite
from advens.datasets.classes import check_classes
from advens.digest import value_digest
from advens.errors import InputError, unknown
from advens.models import ModelCard, check_name, describe, expand, origins

if TYPE_CHECKING:
    from advens.attacks.attack import Attack
    from advens.benchmarks.progress import Progress
    from advens.classifier import Classifier
    from advens.datasets import Dataset

CRAFT_VERSION = 2
"""Raised when the same cell would give other images, so that old cells are not taken for new."""


@dataclass(frozen=True)
class Cell:
    """One attack on one surrogate set for one shard and seed.

    Args:
        suite, attack, family: names for the rows; ``attack`` is the label.
        params: the attack's spec, which rebuilds it.
        surrogates: name of the set.
        specs, digests: its models and their weights, in order.
        seed: the suite's.
        shard: [start, stop) in the data.
        data, fingerprint: the data source, and what the shard's rows are.
        targeted: whether there are wanted classes.
        shard_size: of the plan; the shard's number is start // shard_size.
        goal: of the suite.
        after: the cell whose standing samples this one attacks; empty for none.
        bases: weights of its models, and the models that these were built from.
    """

    suite: str
    attack: str
    family: str
    params: dict[str, Any]
    surrogates: str
    specs: tuple[str, ...]
    digests: tuple[str, ...]
    seed: int
    shard: tuple[int, int]
    data: str
    fingerprint: str
    targeted: bool
    shard_size: int
    goal: str = "transfer"
    after: str = ""
    bases: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The hash of all that determines the cell's images: its name on disk."""
        determined = asdict(self)
        for name in ("data", "family", "specs", "bases"):  # said by fingerprint, params and digests
            determined.pop(name)
        if self.goal == "transfer":
            determined = {k: v for k, v in determined.items() if k not in ("goal", "after")}
        return value_digest([CRAFT_VERSION, json.loads(json.dumps(determined))], 32)

    def knows(self, model: Classifier | ModelCard) -> bool:
        """Whether a model has the weights of a surrogate, or of what one was built from: white-box."""
        return bool({model.digest, model.weights} & {*self.digests, *self.bases})

    def build(self) -> Attack:
        """The attack."""
        from advens.attacks import attack_from_spec

        attack: Attack = attack_from_spec(self.params)
        return attack


@dataclass(frozen=True)
class Plan:
    """All cells of a suite and the targets their images are shown to."""

    suite: Suite
    sets: dict[str, tuple[str, ...]]
    cards: dict[str, ModelCard]
    targets: tuple[str, ...]
    cells: tuple[Cell, ...]

    def white_box(self, cell: Cell, target: str) -> bool:
        """Whether a target is white-box to a cell."""
        return cell.knows(self.cards[target])

    def pairs(self) -> Iterator[tuple[str, Cell]]:
        """Which cells each target sees: all, but those crafted on other attacked models if not crossed."""
        attacked = () if self.suite.crossed else {model for cell in self.cells for model in cell.specs}
        for target in self.targets:
            yield from (
                (target, cell) for cell in self.cells if target not in attacked or target in cell.specs
            )


@dataclass(frozen=True)
class Outline:
    """What can be said of a suite without loading a model or the data: for ``--dry-run``."""

    sets: dict[str, tuple[str, ...]]
    targets: tuple[str, ...]
    stages: dict[tuple[str, str], Stage]  # (label, set) -> stage


def outline(
    suite: Suite, held_out: bool = True, built: Mapping[str, tuple[str, ...]] | None = None
) -> Outline:
    """Resolve and check every name of a suite; ``held_out=False`` asks for no held-out target.

    Args:
        built: the models of the sets that are built; without, they are counted and not made.

    Raises:
        InputError: unknown attacks, options or models, or a set that leaves no target held out.
    """
    with suite.located():
        return _outline(suite, held_out and suite.goal == "transfer", built or {})


def _outline(suite: Suite, held_out: bool, built: Mapping[str, tuple[str, ...]]) -> Outline:
    sets = surrogate_sets(suite, built)
    targets = tuple(dict.fromkeys(name for pattern in suite.targets for name in expand(pattern)))
    named = {name: _named(suite, name, models) for name, models in sets.items()}
    for name in dict.fromkeys([*targets, *(m for models in named.values() for m in models)]):
        check_name(name)
    for name, models in named.items():
        if held_out and set(targets) <= set(models):
            raise InputError(
                f"suite '{suite.name}': surrogates '{name}' leave no target held out; "
                "a transfer rate needs a target that is not a surrogate"
            )
    stages: dict[tuple[str, str], Stage] = {}
    for entry in suite.attacks:
        for name in _sets_of(entry, suite, sets):
            for label, stage in stages_of(suite, entry, len(sets[name])):
                if stages.setdefault((label, name), stage) != stage:
                    raise InputError(
                        f"suite '{suite.name}': two attacks called '{label}' have other options; "
                        "give one a label"
                    )
    return Outline(sets, targets, stages)


def make_plan(
    suite: Suite,
    data: Dataset,
    *,
    held_out: bool = True,
    apart: bool = True,
    progress: Progress | None = None,
    device: str = "cpu",
) -> Plan:
    """The cells of a suite, each with the hash of all that determines it; builds what must be built.

    Args:
        apart: whether building on images that are attacked is refused.
    """
    held_out = held_out and suite.goal == "transfer"
    wanted = {name: each for name, each in suite.surrogates.items() if isinstance(each, Build)}
    if wanted:
        outline(suite, held_out)  # mistakes first
    built = build_sets(wanted, suite.seeds, data if apart else None, progress, device)
    seen = outline(suite, held_out, {name: built[name, suite.seeds[0]] for name in wanted})
    each = {
        (name, seed): built.get((name, seed), models)
        for name, models in seen.sets.items() for seed in suite.seeds
    }  # fmt: skip
    names = dict.fromkeys([*(m for models in each.values() for m in models), *seen.targets])
    cards = {name: describe(name) for name in names}
    _check_classes(suite, cards, data)
    plan = Plan(suite, seen.sets, cards, seen.targets, ())
    shards = [
        (start, min(start + suite.shard, len(data))) for start in range(0, len(data), suite.shard)
    ]
    fingerprints = {shard: data.fingerprint(slice(*shard)) for shard in shards}
    cells: dict[tuple[str, str, int, tuple[int, int]], Cell] = {}
    for (label, name), stage in seen.stages.items():
        for seed, shard in product(suite.seeds, shards):
            models = each[name, seed]
            before = cells[(stage.after, name, seed, shard)].key if stage.after else ""
            cells[(label, name, seed, shard)] = Cell(
                suite=suite.name,
                attack=label,
                family=stage.family,
                params=stage.attack.spec,
                surrogates=name,
                specs=models,
                digests=tuple(cards[model].digest for model in models),
                seed=seed,
                shard=shard,
                data=suite.source,
                fingerprint=fingerprints[shard],
                targeted=suite.threat.targeted,
                shard_size=suite.shard,
                goal=suite.goal,
                after=before,
                bases=tuple(dict.fromkeys(b for m in models for b in origins(cards[m]))),
            )
    for (name, _), models in each.items():
        digests = {d for m in models for d in (cards[m].digest, *origins(cards[m]))}
        targets = [{cards[target].digest, cards[target].weights} for target in seen.targets]
        if held_out and all(target & digests for target in targets):
            raise InputError(
                f"suite '{suite.name}': every target has the weights of a surrogate of '{name}'; "
                "none is held out"
            )
    # by set, so that a set's models are loaded once
    return replace(plan, cells=tuple(sorted(cells.values(), key=lambda cell: cell.surrogates)))


def surrogate_sets(
    suite: Suite, built: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Set names and their models, wildcards expanded and ``each`` taken apart."""
    sets: dict[str, tuple[str, ...]] = {}
    for name, wanted in suite.surrogates.items():
        if isinstance(wanted, Build):
            sets[name] = built.get(name) or wanted.placeholders()
            continue
        patterns = [wanted] if isinstance(wanted, str) else wanted
        models = tuple(dict.fromkeys(model for p in patterns for model in expand(p)))
        if name == "each":
            sets |= {model: (model,) for model in models}
        else:
            sets[name] = models
    return sets


def target_labels(labels: np.ndarray, start: int, classes: int, seed: int) -> np.ndarray:
    """A wanted class for every sample of a shard: uniform over the others, (N,) int64.

    Drawn per sample from its place in the data, so that a shard's size changes nothing.
    """
    shifts = [
        np.random.RandomState((seed * 1_000_003 + start + i) % 2**32).randint(1, classes)
        for i in range(len(labels))
    ]
    return (labels + np.array(shifts, dtype=np.int64)) % classes


def _sets_of(entry: AttackEntry, suite: Suite, sets: dict[str, tuple[str, ...]]) -> list[str]:
    if entry.surrogates is None:
        return list(sets)
    named = set(entry.surrogates)
    alone = [name for name in sets if name not in suite.surrogates] if "each" in named else []
    return [name for name in sets if name in named] + alone


def _named(suite: Suite, name: str, models: tuple[str, ...]) -> tuple[str, ...]:
    """The models a set is made of, by names that stand in a suite."""
    wanted = suite.surrogates.get(name)
    return wanted.models if isinstance(wanted, Build) else models


def _check_classes(suite: Suite, cards: dict[str, ModelCard], data: Dataset) -> None:
    widths = {name: card.num_classes for name, card in cards.items()}
    first, classes = next(iter(widths.items()))
    for name, width in widths.items():
        if width != classes:
            raise InputError(
                f"suite '{suite.name}': {name} has {width} classes and {first} has {classes}; "
                "surrogates and targets share one label space"
            )
    check_classes(data, classes)


__all__ = ["Cell", "Outline", "Plan", "make_plan", "outline", "unknown", "with_budget"]
