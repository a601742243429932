"""From a suite to cells and the targets that are evaluated on their images."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from advens.benchmarks.cells import Cell
from advens.benchmarks.goals import ATTACK_GOALS
from advens.benchmarks.suites import AttackEntry, BuiltSet, Suite, expanded
from advens.datasets.classes import check_classes
from advens.digest import value_digest
from advens.errors import InputError
from advens.models import ModelCard, check_name, describe, origins

if TYPE_CHECKING:
    from advens.attacks.attack import Attack
    from advens.datasets import Dataset
    from advens.results.store import Listing

Sets = Mapping[tuple[str, int], tuple[str, ...]]
"""Models of surrogate sets that were built, by set and seed."""


@dataclass(frozen=True)
class Stage:
    """An attack and its place in a sequence.

    Args:
        attack, family: the attack.
        after: label of the stage before; empty for the first.
        round, until: of a round that may follow a sequence; see `Cell`.
    """

    attack: Attack
    family: str
    after: str = ""
    round: int = 0
    until: float | None = None


@dataclass(frozen=True)
class Plan:
    """All cells of a suite and the targets that are evaluated on their images.

    Args:
        suite, cards, targets, cells: see above.
        rounds: the cells of rounds that may follow, if those before break enough; in order.
    """

    suite: Suite
    cards: dict[str, ModelCard]
    targets: tuple[str, ...]
    cells: tuple[Cell, ...]
    rounds: tuple[Cell, ...] = ()

    def extended(self, rounds: Iterable[Cell]) -> Plan:
        """The plan with some of the rounds among its cells."""
        there = {cell.key for cell in self.cells}
        return replace(self, cells=(*self.cells, *(cell for cell in rounds if cell.key not in there)))

    def white_box(self, cell: Cell, target: str) -> bool:
        """Whether a target is white-box to a cell."""
        return cell.knows(self.cards[target])

    def pairs(self) -> Iterator[tuple[str, Cell]]:
        """Which targets are evaluated on which cells."""
        return ((target, cell) for cell in self.cells for target in self.targets_of(cell))

    def targets_of(self, cell: Cell) -> tuple[str, ...]:
        """The targets that are evaluated on a cell.

        All of them, but in a suite that is not crossed an attacked model only on what was crafted on itself.
        """
        if self.suite.crossed:
            return self.targets
        return tuple(name for name in self.targets if name not in self._attacked or name in cell.specs)

    @cached_property
    def _attacked(self) -> frozenset[str]:
        return frozenset(model for cell in self.cells for model in cell.specs)

    def pending(self, there: Listing) -> Iterator[tuple[Cell, tuple[str, ...]]]:
        """The cells of which rows are missing, each with the targets that they are missing for."""
        for cell in self.cells:
            done = there.rows.get(cell.key, {})
            missing = tuple(name for name in self.targets_of(cell) if self.keys[name] not in done)
            if missing:
                yield cell, missing

    @cached_property
    def keys(self) -> dict[str, str]:
        """The targets in names of files: name and weights of each, so that new weights are evaluated anew."""
        return {target: target_key(target, self.cards[target].digest) for target in self.targets}


def target_key(target: str, digest: str) -> str:
    """A target in the name of a file of samples."""
    return value_digest([target, digest], 16)


@dataclass(frozen=True)
class Outline:
    """What can be said of a suite without loading a model or the data: for ``--dry-run``.

    Args:
        sets, targets: models by set, and targets.
        stages: attacks by label and set.
        rounds: those that may follow, by label and set.
    """

    sets: dict[str, tuple[str, ...]]
    targets: tuple[str, ...]
    stages: dict[tuple[str, str], Stage]
    rounds: dict[tuple[str, str], Stage]


def outline(suite: Suite, held_out: bool = True, built: Sets | None = None) -> Outline:
    """Resolve and check every name of a suite; ``held_out=False`` asks for no held-out target.

    Args:
        built: the models of the sets that are built; without, they are counted and not made.

    Raises:
        InputError: unknown attacks, options or models, or a set that leaves no target held out.
    """
    with suite.located():
        return _outline(suite, held_out and ATTACK_GOALS[suite.goal].held_out, built or {})


def _outline(suite: Suite, held_out: bool, built: Sets) -> Outline:
    sets = surrogate_sets(suite, built)
    targets = expanded(suite.targets)
    named = {name: named_models(suite, name, models) for name, models in sets.items()}
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
            own = stages_of(suite, entry, len(sets[name]))
            for label, stage in [*own, *rounds_of(suite, entry, own, len(sets[name]))]:
                if stages.setdefault((label, name), stage) != stage:
                    raise InputError(
                        f"suite '{suite.name}': two attacks called '{label}' have other options; "
                        "give one a label"
                    )
            if entry.until is not None and (len(sets[name]) > 1 or sets[name][0] not in targets):
                raise InputError(
                    f"suite '{suite.name}': attack '{entry.title}': 'until' needs surrogates of one model "
                    f"each, and {sets[name][0]} among the targets: what a round breaks is counted on the "
                    "model itself"
                )
    return Outline(
        sets, targets, {key: stage for key, stage in stages.items() if not stage.round},
        {key: stage for key, stage in stages.items() if stage.round},
    )  # fmt: skip


def make_plan(
    suite: Suite, data: Dataset, built: Sets | None = None, *, held_out: bool = True
) -> Plan:
    """The cells of a suite, each with the hash of all that determines it.

    Args:
        built: the models of the sets that are built.
    """
    held_out = held_out and ATTACK_GOALS[suite.goal].held_out
    seen = outline(suite, held_out, built)
    each = {
        (name, seed): (built or {}).get((name, seed), models)
        for name, models in seen.sets.items() for seed in suite.seeds
    }  # fmt: skip
    names = dict.fromkeys([*(m for models in each.values() for m in models), *seen.targets])
    cards = {name: describe(name) for name in names}
    _check_classes(suite, cards, data)
    shards = [
        (start, min(start + suite.shard, len(data))) for start in range(0, len(data), suite.shard)
    ]
    fingerprints = {shard: data.fingerprint(slice(*shard)) for shard in shards}
    cells: dict[tuple[str, str, int, tuple[int, int]], Cell] = {}
    for (label, name), stage in (seen.stages | seen.rounds).items():
        params = stage.attack.spec
        for seed, shard in product(suite.seeds, shards):
            models = each[name, seed]
            cells[(label, name, seed, shard)] = Cell(
                suite=suite.name,
                attack=label,
                family=stage.family,
                params=params,
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
                after=cells[(stage.after, name, seed, shard)].key if stage.after else "",
                bases=tuple(dict.fromkeys(b for m in models for b in origins(cards[m]))),
                round=stage.round,
                until=stage.until,
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
    ordered = sorted(cells.values(), key=lambda cell: cell.surrogates)
    return Plan(
        suite, cards, seen.targets, tuple(cell for cell in ordered if not cell.round),
        tuple(cell for cell in ordered if cell.round),
    )  # fmt: skip


def surrogate_sets(suite: Suite, built: Sets) -> dict[str, tuple[str, ...]]:
    """The models of every set, wildcards expanded and ``each`` taken apart; built sets for the first seed."""
    sets: dict[str, tuple[str, ...]] = {}
    for name, wanted in suite.surrogates.items():
        if isinstance(wanted, BuiltSet):
            sets[name] = built.get((name, suite.seeds[0])) or wanted.placeholders()
            continue
        models = expanded([wanted] if isinstance(wanted, str) else wanted)
        if name == "each":
            sets |= {model: (model,) for model in models}
        else:
            sets[name] = models
    return sets


def named_models(suite: Suite, name: str, models: tuple[str, ...]) -> tuple[str, ...]:
    """The models of a set that exist before the run: of one that is built, those that it is built from."""
    wanted = suite.surrogates.get(name)
    return wanted.models if isinstance(wanted, BuiltSet) else models


def stages_of(suite: Suite, entry: AttackEntry, surrogates: int) -> list[tuple[str, Stage]]:
    """The attacks of an entry with their labels: one, or those of a sequence where the goal has sequences.

    A sequence is ``a+b`` or the name of a published one. An option of one of its attacks is written
    ``b.steps``; others are for all.
    """
    from advens.attacks import attack_info

    stages = ATTACK_GOALS[suite.goal].stages(entry.name, suite.threat.threat().norm)
    names = {name for name, _ in stages}
    found: list[tuple[str, Stage]] = []
    for number, (name, options) in enumerate(stages):
        given = options | _given(entry, name, names)
        attack = _attack(suite, name, given, entry, surrogates)
        whole = number + 1 == len(stages)
        label = entry.title if whole else "+".join(name for name, _ in stages[: number + 1])
        after = found[-1][0] if found else ""
        found.append((label, Stage(attack, attack_info(name).family, after)))
    return found


def _given(entry: AttackEntry, name: str, names: set[str]) -> dict[str, Any]:
    """The options of an entry for one of its attacks: those for all, and those that name it."""
    names = names | {entry.round_attack or ""}
    every = {k: v for k, v in entry.options.items() if k.partition(".")[0] not in names}
    own = f"{name}."
    return every | {k.removeprefix(own): v for k, v in entry.options.items() if k.startswith(own)}


def rounds_of(
    suite: Suite, entry: AttackEntry, stages: list[tuple[str, Stage]], surrogates: int
) -> list[tuple[str, Stage]]:
    """The rounds that may follow the attacks of an entry, with their labels; none without ``until``.

    Raises:
        InputError: the attack of the rounds would do the same in every round.
    """
    if entry.until is None:
        return []
    from advens.attacks import attack_info

    names = [name for name, _ in ATTACK_GOALS[suite.goal].stages(entry.name)]
    own = dict(zip(names, stages, strict=True))
    if (name := entry.round_attack) is None:
        random = {name: stage for name, (_, stage) in own.items() if repeatable(stage.attack)}
        gradient = [name for name, stage in random.items() if stage.attack.passes(surrogates).backward]
        name = (gradient or [*random] or [""])[-1]
    if name in own:
        attack, family = own[name][1].attack, own[name][1].family
    elif name:
        attack = _attack(suite, name, _given(entry, name, {*own}), entry, surrogates)
        family = attack_info(name).family
    if not name or not repeatable(attack):
        raise InputError(
            f"suite '{suite.name}': attack '{entry.title}': rounds repeat a white-box attack from new "
            f"starts, and {f'{name!r} is' if name else 'here is'} none that starts at random; "
            "name another, as round_attack = \"apgd-t\""
        )
    found, after = [], stages[-1][0]
    for number in range(1, entry.most_rounds + 1):
        label = f"{entry.title}, round {number}"
        found.append((label, Stage(attack, family, after, number, entry.until)))
        after = label
    return found


def repeatable(attack: Attack) -> bool:
    """Whether an attack with another seed is another run, whose samples have numbers of their own."""
    from advens.attacks.whitebox.engine import WhiteBox

    return isinstance(attack, WhiteBox) and attack.random_start


def _attack(
    suite: Suite, name: str, given: dict[str, Any], entry: AttackEntry, surrogates: int
) -> Attack:
    from advens.attacks import attack_info, create_attack

    threat, where = suite.threat, f"suite '{suite.name}': attack '{entry.title}'"
    info = attack_info(name)
    if threat.threat().norm not in info.norms:
        raise InputError(f"{where} is not defined for {threat.norm}; only {', '.join(info.norms)}")
    if threat.targeted and not info.targeted:
        raise InputError(f"{where} has no targeted form")
    if not threat.targeted and not info.untargeted:
        raise InputError(f"{where} has no untargeted form: set targeted in [threat] (craft: --targeted)")
    base = create_attack(name)
    options: dict[str, Any] = {"eps": threat.eps, "norm": threat.norm}
    if threat.steps is not None and getattr(base, "steps", 1) > 1:  # one-step attacks stay so
        options["steps"] = threat.steps
    try:
        attack = create_attack(name, **(options | suite.defaults | given))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if attack.threat != threat.threat():
        raise InputError(f"{where}: norm and eps are for all: set [threat] (craft: --norm, --eps)")
    budget = entry.budget or suite.budget
    return attack if budget is None else with_budget(attack, budget, surrogates, where)


def with_budget(attack: Attack, budget: int, surrogates: int, where: str = "attack") -> Attack:
    """The attack with as many steps as ``budget`` backward passes per sample allow."""
    from advens.attacks.registry import override

    if not hasattr(attack, "steps"):
        raise InputError(f"{where} has no steps to fit a budget with")

    def cost(steps: int) -> int:
        return override(attack, steps=steps).passes(surrogates).backward

    if budget < cost(1):
        raise InputError(f"{where}: a budget of {budget} is less than one step, {cost(1)} passes")
    return override(attack, steps=bisect_right(range(1, budget + 1), budget, key=cost))


def _sets_of(entry: AttackEntry, suite: Suite, sets: dict[str, tuple[str, ...]]) -> list[str]:
    if entry.surrogates is None:
        return list(sets)
    named = set(entry.surrogates)
    alone = [name for name in sets if name not in suite.surrogates] if "each" in named else []
    return [name for name in sets if name in named] + alone


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
