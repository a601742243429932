"""What a run will cost and need, told before it: for ``advens run SUITE --dry-run``.

Nothing is downloaded, and no weights are loaded; the data are listed, not decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from advens.attacks.interfaces import Passes
from advens.benchmarks import defense_goal
from advens.benchmarks.calibrate import Times, described, known_times
from advens.benchmarks.controls import to_be_controlled, with_controls
from advens.benchmarks.goals import ATTACK_GOALS
from advens.benchmarks.likeness import MOST
from advens.benchmarks.plan import Outline, Stage, named_models, outline
from advens.benchmarks.suites import AnySuite, BuiltSet, DefenseSuite, Suite, expanded
from advens.datasets import Dataset, find_data
from advens.datasets.classes import check_classes
from advens.datasets.loading import downloads
from advens.errors import InputError
from advens.models import absent, absent_bytes, known_card

SHRUNK = {"images": 0.9, "differences": 0.4}
"""What compression leaves of adversarial images, about; from `advens.benchmarks.speed.storing`."""
ROW = 30
"""Bytes of an image's row for one target, about."""
LOOKS = 2
"""What a white-box attack looks at beside its formula: the image that it is given, and a rounded one."""


@dataclass(frozen=True)
class Cost:
    """What a suite of attacks will spend; at most, where its goal says so.

    Args:
        shards, cells, crafted: of the data, of the plan, and images that are crafted.
        craft: forward and backward passes of surrogates.
        evaluate: forward passes of targets on crafted and on clean images.
        compare: forward passes of all models on clean images, to find near-duplicates.
        stored: bytes, about; None where the size of the images is not known.
        seconds: of crafting, and of all else; None without a calibration of every model.
        missing: models without a calibration on this device.
    """

    shards: int
    cells: int
    crafted: int
    craft: Passes
    evaluate: int
    compare: int
    stored: float | None = None
    seconds: tuple[float, float] | None = None
    missing: tuple[str, ...] = ()


def dry_run_lines(suite: AnySuite, device: str = "cpu") -> list[str]:
    """The plan of a suite and what it costs, in lines for people. Raises InputError for mistakes in it.

    Args:
        device: which the time is estimated for.
    """
    return [*(_defenses(suite) if isinstance(suite, DefenseSuite) else _attacks(suite, device))]


def _attacks(suite: Suite, device: str) -> Iterator[str]:
    seen = outline(suite)
    yield f"suite      {suite.name}: {suite.threat.norm} {suite.threat.eps}, data {suite.source}"
    for name, models in seen.sets.items():
        wanted = suite.surrogates.get(name)
        if isinstance(wanted, BuiltSet):
            made = f"{len(models)} by '{wanted.build}' of {', '.join(wanted.models)}, on {wanted.source}"
            yield f"surrogates {name}: {made}"
        else:
            yield f"surrogates {name}: {', '.join(models)}"
    for target in seen.targets:
        inside = [name for name, models in seen.sets.items() if target in models]
        yield f"target     {target}{'  (white-box for ' + ', '.join(inside) + ')' if inside else ''}"
    for (label, name), stage in seen.stages.items():
        spent = stage.attack.passes(len(seen.sets[name]))
        yield f"attack     {label} on {name}: {_most(suite)}{spent.forward} F, {spent.backward} B per image"
    lasts = {
        (label.removesuffix(f", round {stage.round}"), name): stage
        for (label, name), stage in seen.rounds.items()
    }
    for (label, name), last in lasts.items():
        spent = last.attack.passes(len(seen.sets[name]))
        yield (
            f"rounds     after {label} on {name}: up to {last.round}, until one breaks less than "
            f"{last.until:.3g} of all images; each at most {spent.forward} F, {spent.backward} B per image"
        )
    yield from estimate(suite, seen, device)


def estimate(suite: Suite, seen: Outline, device: str) -> Iterator[str]:
    """Lines on cells, images, passes, time, bytes on disk and downloads.

    Raises:
        InputError: the data cannot be opened, or their labels and the models' classes differ.
    """
    data = None if downloads(suite.source) else find_data(suite.source)
    models = _named(suite, seen)
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
        cost = cost_of(suite, seen, data, device)
        yield (
            f"{cost.cells} cells: {len(data):,} images in {cost.shards} shards of {suite.shard}, "
            f"{seeds} seeds; {_evaluations(suite, seen) * seeds * cost.shards} evaluations of "
            f"{len(seen.targets)} targets"
        )
        if seen.rounds:
            forward, backward = _passes(suite, seen.rounds, seen.sets, len(data))
            yield (
                f"rounds     up to {len(seen.rounds) * seeds * cost.shards} more cells, at most "
                f"{forward:,} F, {backward:,} B"
            )
        yield (
            f"passes     {_most(suite)}{cost.craft.forward:,} F, {cost.craft.backward:,} B to craft "
            f"{cost.crafted:,} images, {cost.evaluate:,} F to evaluate"
            + (f", {cost.compare:,} F to compare models" if cost.compare else "")
        )
        yield f"time       {_time(suite, cost, device)}"
        if cost.stored is not None:
            yield f"disk       about {cost.stored / 1e6:,.1f} MB"
    yield from _downloads(models, known=data is not None)


def cost_of(suite: Suite, seen: Outline, data: Dataset, device: str) -> Cost:
    """What a suite will spend on its data, without the rounds that may follow.

    Args:
        device: which the time is estimated for.
    """
    images, seeds = len(data), len(suite.seeds)
    shards = -(-images // suite.shard)
    crafted = len(seen.stages) * seeds * images
    looked = {target: _looked_at(suite, seen, target) * seeds * images + images for target in seen.targets}
    compared = len(range(0, images, -(-images // MOST))) if ATTACK_GOALS[suite.goal].held_out else 0
    members = [model for models in seen.sets.values() for model in models]
    compare = compared * len({*members, *_named(suite, seen)})
    craft = Passes(*_passes(suite, seen.stages, seen.sets, images))
    if ATTACK_GOALS[suite.goal].sequences:
        craft = Passes(craft.forward + LOOKS * crafted, craft.backward)
    cost = Cost(
        shards, len(seen.stages) * seeds * shards, crafted, craft, sum(looked.values()), compare
    )
    if data.size is None:
        return cost
    height, width = data.size
    each = SHRUNK[suite.store] * 3 * height * width + ROW * len(seen.targets)
    cost = replace(cost, stored=crafted * each)
    times, missing = known_times(_named(suite, seen), data.size, device)
    if missing:
        return replace(cost, missing=tuple(missing))
    crafting = 0.0
    for (_, name), stage in seen.stages.items():
        models = named_models(suite, name, seen.sets[name])
        spent = stage.attack.passes(len(seen.sets[name]))
        mean = Times(*(fmean(times[model][i] for model in models) for i in (0, 1)))
        crafting += seeds * images * (spent.forward * mean.forward + spent.backward * mean.backward)
    evaluating = sum(count * times[target].forward for target, count in looked.items())
    comparing = compared * sum(each.forward for each in times.values())
    return replace(cost, seconds=(crafting, evaluating + comparing))


def _named(suite: Suite, seen: Outline) -> list[str]:
    """The models that are loaded, each once."""
    named = [m for name, models in seen.sets.items() for m in named_models(suite, name, models)]
    return list(dict.fromkeys([*named, *seen.targets]))


def _looked_at(suite: Suite, seen: Outline, target: str) -> int:
    """On how many attacks and surrogate sets a target is evaluated."""
    attacked = () if suite.crossed else {model for models in seen.sets.values() for model in models}
    return sum(target not in attacked or target in seen.sets[name] for _, name in seen.stages)


def _time(suite: Suite, cost: Cost, device: str) -> str:
    """The time that a suite takes on a device, in words."""
    if cost.seconds is None:
        models = ", ".join(cost.missing[:3]) + ", ..." * (len(cost.missing) > 3)
        return f"not known: 'advens calibrate SUITE' measures {models or 'models'} on this device"
    unit = "GPU hours" if device.startswith("cuda") else "hours"
    craft, rest = (f"{seconds / 3600:,.2g}" for seconds in cost.seconds)
    return f"{_most(suite)}about {craft} {unit} to craft, {rest} to evaluate ({described(device)})"


def _evaluations(suite: Suite, seen: Outline) -> int:
    """Evaluations of targets on the cells of one shard and seed; see `Plan.targets_of`."""
    attacked = set() if suite.crossed else {model for models in seen.sets.values() for model in models}
    return sum(
        target not in attacked or target in seen.sets[name]
        for _, name in seen.stages for target in seen.targets
    )  # fmt: skip


def _defenses(suite: DefenseSuite) -> Iterator[str]:
    """The same for a suite of defenses: trainings, models, and what every run in its folder costs."""
    defense_goal.check(suite)
    lines = defense_goal.lines_of(suite)
    trained = None
    if suite.training and not downloads(suite.training.data):
        trained = {task: task.trained_name() for task in defense_goal.trainings(lines)}
    open_ = to_be_controlled(lines, trained)
    if trained is not None and not open_:
        lines = with_controls(suite, lines, trained)
    yield f"suite      {suite.name}: l_inf {', '.join(suite.budgets)}, data {suite.data}"
    declared = {line.training for line in defense_goal.lines_of(suite)}
    for training in dict.fromkeys(line.training for line in lines):
        made = [line for line in lines if line.training == training]
        if training in declared:
            sizes = sorted({line.members for line in made if not line.alone})
            yield f"train      {training.title}: members {', '.join(map(str, sizes))}"
        else:
            yield f"control    {made[0].label}, seed {training.seed}"
    for line in open_:
        yield f"control    {line.kind} with the compute of {line.label} of {line.members}"
    for name in suite.models:
        yield f"defense    {name}"
    yield f"transfer   {', '.join(suite.attacks)} on {', '.join(suite.surrogates)}{_how(suite)}"
    yield f"white-box  {', '.join(defense_goal.white_box(suite))} at the largest eps"
    sizes = [*(line.members for line in lines), *(line.members for line in open_ for _ in suite.seeds)]
    sizes += [1] * len(expanded(suite.models))
    most = len(open_) * len(suite.seeds)  # controls
    models = len(sizes)
    sources = [suite.data, *([suite.training.data] if suite.training else [])]
    missing = [source for source in sources if downloads(source)]
    if not missing:
        count = len(find_data(suite.data))
        stand_in = [*expanded(suite.models), *(line.training.arch for line in lines)][:1]
        for folder, part in defense_goal.parts_of(suite, stand_in).items():
            alone = ATTACK_GOALS[part.goal].sequences  # the models are attacked themselves
            images = min(count, part.limit or count)
            seen = outline(part, held_out=False)
            forward, backward = _passes(
                part, seen.stages | seen.rounds, seen.sets, images, sizes if alone else None
            )
            crafted = len(seen.stages) * len(part.seeds) * images * (models if alone else 1)
            looks = crafted if alone else crafted * models
            yield (
                f"{folder}: {crafted:,} images, {_most(part)}{forward:,} F, {backward:,} B, "
                f"{looks:,} F to evaluate"
            )
    yield from _downloads([*expanded(suite.surrogates), *expanded(suite.models)], known=not missing)
    yield f"{models - most} models of {len({line.training for line in lines})} trainings"
    if most:
        yield f"at most {most} trainings of controls, whose epochs follow from the compute of the others"


def _how(suite: DefenseSuite) -> str:
    """How the attacks of transfer are run, where a suite says more than their names."""
    how = suite.transfer
    parts = [
        f"losses {', '.join(how.losses)}" if how.losses else "",
        f"{how.starts} uniform starts" if how.starts else "",
        f"{how.steps} steps" if how.steps else "",
        f"steps of {how.step_size}" if how.step_size is not None else "",
        "together and each alone" if how.singles else "",
    ]
    said = "; ".join(part for part in parts if part)
    return f" ({said})" if said else ""


def _passes(
    suite: Suite, stages: Mapping[tuple[str, str], Stage], sets: Mapping[str, tuple[str, ...]], images: int,
    sizes: Sequence[int] | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Forward and backward passes of attacks on all images.

    Args:
        sizes: of models that are attacked one by one in place of the sets, the number of members.
    """
    spent = [
        stage.attack.passes(size)
        for (_, name), stage in stages.items()
        for size in (sizes or [len(sets[name])])
    ]
    forward, backward = (
        len(suite.seeds) * images * sum(passes[i] for passes in spent) for i in (0, 1)
    )
    return forward, backward


def _most(suite: Suite) -> str:
    return "" if ATTACK_GOALS[suite.goal].exact else "at most "


def _downloads(models: Sequence[str], known: bool) -> Iterator[str]:
    missing = {what: name for name in models if (what := absent(name))}
    total = 0
    for what, name in missing.items():
        size = absent_bytes(name)
        total += size or 0
        yield f"download   {what} ({'of unknown size' if size is None else f'about {size / 1e6:,.1f} MB'})"
    if len(missing) > 1:
        yield f"download   {len(missing)} files, about {total / 1e6:,.1f} MB where the size is known"
    if not missing and known:
        yield "download   nothing"


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
