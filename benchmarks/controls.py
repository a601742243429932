"""Controls of suites of defenses: for every line, training of the plain kind with as much compute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

from advens.benchmarks.defense_goal import Line
from advens.benchmarks.suites import DefenseSuite
from advens.benchmarks.tasks import Train, opened
from advens.datasets import Dataset
from advens.errors import InputError

SHARED = 1.1
"""Lines whose compute differs by at most this factor share a control."""
Key = tuple[str, str, int]
Form = tuple[str, Any]
"""A table, and a control that stands on it without its number of epochs."""


@dataclass(frozen=True)
class Candidate:
    """A line that is trained as a control would be.

    Args:
        key: of the line.
        passes: that its training took.
        epochs: of its training.
    """

    key: Key
    passes: float
    epochs: int


def with_controls(
    suite: DefenseSuite, lines: Sequence[Line], trained: Mapping[Train, str]
) -> list[Line]:
    """The lines with the names of their controls, then the lines of controls that are still to be trained.

    The compute of a line is the mean over its trainings of what was counted. A line that is trained as a
    control would be serves all lines whose compute is within a factor of `SHARED` of its own. The others are
    sorted by compute, and those within this factor share a control with the geometric mean of the least and
    the most. All trainings of a line have the same control, with a seed each.

    Args:
        trained: the model of every training.

    Raises:
        InputError: the compute of a training was not counted.
    """
    from advens.defenses.control import control, equal_compute

    compared = _compared(lines)
    if suite.training is None or not compared:
        return list(lines)
    own: dict[Key, list[float]] = {}
    for line in lines:
        own.setdefault(_key(line), []).append(_passes(line, trained))
    spent = {key: mean(values) for key, values in own.items()}
    candidates = _candidates(lines, spent)
    waiting: dict[Form, list[Line]] = {}
    controls: dict[Key, str] = {}
    for key, line in sorted(compared.items(), key=lambda pair: spent[pair[0]]):
        form = _form(line.table, control(line.defense, line.kind))  # type: ignore[arg-type]
        near = [c for c in candidates.get(form, []) if _factor(c.passes, spent[key]) <= SHARED]
        if any(c.key == key for c in near):
            continue
        if near:
            nearest = min(near, key=lambda c: _factor(c.passes, spent[key]))
            controls[key] = _named(nearest.key, spent)
        else:
            waiting.setdefault(form, []).append(line)
    made: list[Line] = []
    labels = {(line.table, line.label) for line in lines}
    data = opened(suite.training.data)
    for form, group in ((form, g) for form, every in waiting.items() for g in _groups(every, spent)):
        wanted = math.sqrt(spent[_key(group[0])] * spent[_key(group[-1])])
        one = equal_compute(form[1], len(data), wanted, batch_norm=_has_batch_norm(group[0].training, data))
        same = [c for c in candidates.get(form, []) if c.epochs == one.training.epochs]
        label = _label(one, group[0], labels)
        controls |= dict.fromkeys(map(_key, group), _named(same[0].key, spent) if same else label)
        if not same:
            labels.add((form[0], label))
            key = (form[0], label, one.members)
            candidates.setdefault(form, []).append(Candidate(key, wanted, one.training.epochs))
            made += _lines(one, label, group[0], suite.seeds)
    named = [replace(line, control=controls.get(_key(line))) for line in lines]
    return [*named, *made]


def to_be_controlled(lines: Sequence[Line], trained: Mapping[Train, str] | None) -> list[Line]:
    """Lines that get a control which cannot be told before all lines are trained; of each the first training.

    Args:
        trained: the name that the model of every training has, if it is there; None when it is not known.
    """
    from advens.defenses.control import control, training_compute

    if trained is not None and all(
        training_compute(line.model(trained[line.training])) for line in lines
    ):
        return []
    return [
        line for line in _compared(lines).values()
        if _form("", control(line.defense, line.kind)) != _form("", line.defense)  # type: ignore[arg-type]
    ]  # fmt: skip


def _compared(lines: Sequence[Line]) -> dict[Key, Line]:
    """The lines that have a control, each as its first training."""
    found: dict[Key, Line] = {}
    for line in lines:
        if line.kind != "none":
            found.setdefault(_key(line), line)
    return found


def _candidates(lines: Sequence[Line], spent: Mapping[Key, float]) -> dict[Form, list[Candidate]]:
    """The lines that are trained as some control would be."""
    found: dict[Form, list[Candidate]] = {}
    for key, line in {_key(line): line for line in lines if not line.alone}.items():
        epochs = line.defense.training.epochs
        found.setdefault(_form(line.table, line.defense), []).append(
            Candidate(key, spent[key], epochs)
        )
    return found


def _groups(lines: Sequence[Line], spent: Mapping[Key, float]) -> list[list[Line]]:
    """Lines in the order of their compute, parted where it exceeds the least of a group by `SHARED`."""
    found: list[list[Line]] = []
    for line in lines:
        if found and spent[_key(line)] <= SHARED * spent[_key(found[-1][0])]:
            found[-1].append(line)
        else:
            found.append([line])
    return found


def _lines(one: Any, label: str, served: Line, seeds: Sequence[int]) -> list[Line]:
    """The lines of a control, one for each seed."""
    from advens.defenses.control import options

    task = replace(
        served.training, name=one.defense_name, options=tuple(sorted(options(one).items()))
    )
    return [Line(served.table, label, one.members, replace(task, seed=seed)) for seed in seeds]


def _label(one: Any, served: Line, taken: set[tuple[str, str]]) -> str:
    """What a control is called on a table; it says for which line it is made where its name is not enough."""
    label = f"{one.defense_name}, {one.training.epochs} epochs"
    if (served.table, label) in taken:
        label += f", as {served.label} of {served.members}"
    return label


def _named(key: Key, every: Iterable[Key]) -> str:
    """A line of a table in words: its label, and its size where there are several."""
    table, label, members = key
    sizes = {size for where, name, size in every if (where, name) == (table, label)}
    return f"{label} of {members}" if len(sizes) > 1 else label


def _form(table: str, defense: Any) -> Form:
    return table, replace(defense, training=replace(defense.training, epochs=1))


def _key(line: Line) -> Key:
    return line.table, line.label, line.members


def _has_batch_norm(task: Train, data: Dataset) -> bool:
    """Whether the members of a training have batch-norm."""
    from torch.nn.modules.batchnorm import _BatchNorm

    from advens.defenses.members import fresh

    member = fresh(task.arch, data.num_classes, data.size or (32, 32), 0, 0)
    return any(isinstance(module, _BatchNorm) for module in member.modules())


def _factor(one: float, other: float) -> float:
    return max(one, other) / min(one, other)


def _passes(line: Line, trained: Mapping[Train, str]) -> float:
    """Forward and backward passes of a line's training."""
    from advens.defenses.control import training_compute

    name = line.model(trained[line.training])
    found = training_compute(name)
    if found is None:
        raise InputError(
            f"{line.training.title}: the compute of {name} was not counted when it was trained, so that it "
            "has no control; remove it from the cache to train it again, or set controls = false"
        )
    return found["forwards"] + found["backwards"]
