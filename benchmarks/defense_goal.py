"""The goal ``defense``: everything that should be asked of a defense, in one suite and one folder of runs.

Defenses are trained, unless they are given. Transfer from separately trained surrogates at every budget
and white-box attacks at the largest are runs of their own, in sub-folders, that can be continued, verified
and shown with the other commands. Beside them stand the tables: what every model is and costs (``models``),
what every rate is a mean of (``images``), a row for every model (``defenses``) and, over several trainings,
``study``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advens.benchmarks.goals import ATTACK_GOALS
from advens.benchmarks.plan import outline, repeatable
from advens.benchmarks.suites import (
    DefenseSuite,
    SanityTable,
    Suite,
    expanded,
    from_table,
    validated,
)
from advens.benchmarks.tasks import Measure, Train, opened
from advens.classifier import Classifier
from advens.errors import InputError
from advens.models import find_model
from advens.threat import parse_eps

WHITE_BOX: dict[str, dict[str, Any]] = {
    "pgd": {"name": "pgd-ce", "steps": 50, "restarts": 5},
    **{name: {"name": name} for name in ("apgd-ce", "apgd-t", "pma-members", "adaptive-pgd", "arc")},
}
"""White-box attacks by label, where a suite names none; others go by their own names.

Every model meets all of them. Those that are made for randomized ensembles take another model as an ensemble
of one: ``pma-members`` is PMA from two starts, ``adaptive-pgd`` is PGD on its own output.
"""
SURROGATES = ("digits:convnext", "digits:resnet-b", "digits:vit-b")
"""Surrogates for defenses of the digits, where nobody names any."""
TRANSFER = ("mifgsm", "di-mi-ens-logits", "mi-smer")
"""Attacks on the surrogates, where nobody names any."""
FOLDER = "white-box"
"""Where the run of white-box attacks lies."""


@dataclass(frozen=True)
class DefenseGoal:
    """The goal of a suite of defenses: see `advens.benchmarks.goals.Goal`."""

    name: str = "defense"
    boards: tuple[str, ...] = ("images", "defenses", "study")
    shown: str = "study"
    given: tuple[str, ...] = ("models",)  # not computed from other tables, but measured


DEFENSE = DefenseGoal()


@dataclass(frozen=True)
class Line:
    """A line of a table: a training, and which of its members are taken.

    Args:
        table, label, members: on the table.
        training: what is trained; those that are cut from one training share it.
        alone: the only member that is taken, from 1; 0 for the first ``members``.
        kind: what its control is: ``at``, ``plain`` or ``none``.
        control: label of the line that was trained with as much compute to be compared with it.
    """

    table: str
    label: str
    members: int
    training: Train
    alone: int = 0
    kind: str = "none"
    control: str | None = None

    def model(self, trained: str) -> str:
        """The name of the model, given that of the training."""
        if self.alone:
            return f"{trained}?member={self.alone}"
        whole = self.training.defense.members
        return trained if self.members == whole else f"{trained}?members={self.members}"

    @property
    def defense(self) -> Any:
        """The defense as if only the members of the line had been trained."""
        return replace(self.training.defense, members=self.members)


def lines_of(suite: DefenseSuite) -> list[Line]:
    """The lines that a suite names, and the last members of boosted ensembles where controls are wanted.

    Raises:
        InputError: unknown defenses, options or models.
    """
    from advens.defenses.control import kind_of
    from advens.defenses.phases import Nested

    if suite.training is None:
        return []
    common, found = dict(suite.training.model_extra or {}), []
    for entry in suite.defenses:
        options, last = common | (entry.model_extra or {}), []
        for seed in suite.seeds:
            for members in entry.members:
                train = _train(suite, entry.name, options | {"members": members}, seed)
                if isinstance(train.defense, Nested):
                    train = _train(
                        suite, entry.name, options | {"members": max(entry.members)}, seed
                    )
                kind = (entry.control or kind_of(train.defense)) if suite.controls else "none"
                found.append(Line(entry.table, entry.title, members, train, kind=kind))
                if kind != "none" and members > 1 and boosted(train.defense):
                    title = f"{entry.title}, member {members} alone"
                    last.append(Line(entry.table, title, 1, train, alone=members))
        found += last
    return found


def boosted(defense: Any) -> bool:
    """Whether members are trained one after the other, so that the last ones have learned the longest."""
    from advens.defenses.phases import Nested

    phases: int = len(defense.phases())
    return isinstance(defense, Nested) and phases > 1


def _train(suite: DefenseSuite, name: str, options: dict[str, Any], seed: int) -> Train:
    from advens.defenses.members import architecture

    assert suite.training is not None
    arch, data = suite.training.arch, suite.training.data
    return Train(name, tuple(sorted(options.items())), architecture(arch, data), data, seed)


def trainings(lines: Sequence[Line]) -> list[Train]:
    """What is trained, each once, the longest first."""

    def length(task: Train) -> int:
        defense = task.defense
        return int(defense.members * defense.training.epochs)

    return sorted(dict.fromkeys(line.training for line in lines), key=length, reverse=True)


def models_of(
    suite: DefenseSuite, lines: Sequence[Line], trained: Mapping[Train, str]
) -> list[str]:
    """The models of all lines, by name: those that were trained, then those that were given."""
    names = [line.model(trained[line.training]) for line in lines]
    return [*names, *(name for name in expanded(suite.models) if name not in names)]


def parts_of(suite: DefenseSuite, models: Sequence[str]) -> dict[str, Suite]:
    """The suites of attacks that the models are put through, by the names of their folders.

    Raises:
        InputError: a surrogate is among the models.
    """
    surrogates = expanded(suite.surrogates)
    if both := sorted(set(models) & set(surrogates)):
        raise InputError(
            f"{', '.join(both)}: transfer is measured from models that are not attacked themselves"
        )
    common: dict[str, Any] = {
        "data": suite.data, "limit": suite.limit, "seeds": [suite.seed], "targets": list(models),
        "batch_size": suite.batch_size, "store": suite.store,
    }  # fmt: skip
    found: dict[str, Suite] = {}
    for eps in suite.budgets:
        name = f"transfer-{eps.replace('/', '-')}"
        found[name] = from_table(common | _transfer(suite, eps, surrogates, name), name)
    found[FOLDER] = from_table(
        common | {
            "name": FOLDER, "goal": "robustness", "crossed": False, "sanity": _sanity(suite, surrogates),
            "limit": min((n for n in (suite.white_box_limit, suite.limit) if n), default=None),
            "threat": {"norm": "linf", "eps": suite.budgets[-1]},
            "surrogates": {name: [name] for name in models},
            "attacks": [_white_box(suite, label) for label in white_box(suite)],
        }, FOLDER,
    )  # fmt: skip
    return found


def _white_box(suite: DefenseSuite, label: str) -> dict[str, Any]:
    """An attack on the models themselves, with rounds if there are any and it starts at random."""
    entry = {**WHITE_BOX.get(label, {"name": label}), "label": label}
    if suite.white_box_until is not None:
        from advens.attacks import create_attack

        stages = ATTACK_GOALS["robustness"].stages(entry["name"])
        if any(repeatable(create_attack(name)) for name, _ in stages):
            entry["until"] = suite.white_box_until
    return entry


def _transfer(
    suite: DefenseSuite, eps: str, surrogates: Sequence[str], name: str
) -> dict[str, Any]:
    """What a transfer run at one budget does not share with the other runs."""
    how = suite.transfer
    sets: dict[str, Any] = {"surrogates": list(surrogates)}
    if how.singles and len(surrogates) > 1:
        sets["each"] = list(surrogates)
    attacks: list[dict[str, Any]] = [{"name": attack} for attack in suite.attacks]
    if how.losses:
        attacks = [
            attack | {"loss": loss, "label": f"{attack['name']} {loss}"}
            for attack in attacks for loss in how.losses
        ]  # fmt: skip
    defaults = {"start": "uniform"} if how.starts else {}
    return {
        "name": name.replace(".", "-"),
        "threat": {"norm": "linf", "eps": eps, "steps": how.steps},
        "seeds": [suite.seed + start for start in range(how.starts or 1)],
        "defaults": defaults | ({"step_size": how.step_size} if how.step_size is not None else {}),
        "surrogates": sets,
        "attacks": attacks,
    }


def white_box(suite: DefenseSuite) -> list[str]:
    """The labels of the attacks on the models themselves."""
    return suite.white_box or list(WHITE_BOX)


def refuse_known(models: Sequence[str], surrogates: Sequence[str]) -> None:
    """Raise InputError when a surrogate has the weights of a model or of one of its members."""
    known = {
        digest: name for name in expanded(surrogates) for digest in _weights(find_model(name))
    }
    for name in dict.fromkeys(models):
        for digest in _weights(find_model(name)):
            if digest in known:
                raise InputError(
                    f"the surrogate {known[digest]} is {name} or one of its members; transfer is measured "
                    "from models that the defense does not hold"
                )


def _weights(model: Classifier) -> Iterator[str]:
    """Digests of the weights of a model and of its members."""
    yield model.weights
    for member in model.members:
        if isinstance(member, Classifier):
            yield from _weights(member)


def _sanity(suite: DefenseSuite, surrogates: Sequence[str]) -> bool | dict[str, Any]:
    """The sanity report of the white-box run, in which the surrogates of the suite transfer images."""
    if suite.sanity is False:
        return False
    table = SanityTable() if suite.sanity is True else suite.sanity
    return table.model_dump() | {"surrogates": table.surrogates or list(surrogates)}


def check(suite: DefenseSuite) -> None:
    """Raise InputError for names that would go wrong after the trainings; nothing is loaded."""
    from advens.defenses.members import architecture

    models = list(expanded(suite.models))
    if suite.training is not None:
        models.append(architecture(suite.training.arch, ""))
    for part in parts_of(suite, [*dict.fromkeys(models)]).values():
        outline(part, held_out=False)


def trial(suite: DefenseSuite) -> bytes:
    """The budgets and attacks of a folder, in the order of the columns of its tables."""
    found = {"budgets": list(suite.budgets), "open": white_box(suite)}
    return (json.dumps(found, indent=1) + "\n").encode()


def measures(suite: DefenseSuite, models: Sequence[str]) -> list[Measure]:
    """The measurements of every model, once."""
    source = parts_of(suite, models)[FOLDER].source
    eps = parse_eps(suite.budgets[-1])
    return [
        Measure(name, source, suite.measured, eps, suite.seed) for name in dict.fromkeys(models)
    ]


def rows_of(
    suite: DefenseSuite, lines: Sequence[Line], trained: Mapping[Train, str],
    measured: Mapping[str, Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Rows of ``models``: what the suite says of every line, and what was counted and measured of it."""
    for line in lines:
        name = line.model(trained[line.training])
        said = {
            "table": line.table, "label": line.label, "seed": line.training.seed,
            "members": line.members, "control": line.control,
        }  # fmt: skip
        yield {**measured[name], **_counted(name, len(opened(line.training.data))), **said}
    for name in models_of(suite, lines, trained)[len(lines) :]:
        yield {**measured[name], **_counted(name), "table": None, "label": None, "seed": None}


def _counted(name: str, images: int | None = None) -> dict[str, float]:
    """The compute of a training, per training image and in seconds; empty where it is not known."""
    from advens.defenses.control import training_compute

    found = training_compute(name) or {}
    images = int(found.get("images", images or 0))
    if not images:
        return {}
    return {
        "train_forwards": found["forwards"] / images,
        "train_backwards": found["backwards"] / images,
        "train_seconds": found["seconds"],
    }


def defense_suite(
    models: Sequence[str], data: str, surrogates: Sequence[str], attacks: Sequence[str],
    budgets: Sequence[str], white_box: Sequence[str] = (), transfer: str | None = None, **more: Any,
) -> DefenseSuite:  # fmt: skip
    """The suite of ``advens defend``; for digits, what is not said is taken from the embedded models.

    Raises:
        InputError: no surrogates where none can be taken, a budget that is no number, or an unknown
            ``transfer``.
    """
    digits = data.startswith("digits:")
    if not surrogates and not digits:
        raise InputError("name separately trained surrogates: --surrogates A,B")
    chosen = budgets or (("0.05", "0.1", "0.15", "0.2") if digits else ("2/255", "4/255", "8/255"))
    for eps in chosen:
        parse_eps(eps)
    table = {
        "name": "defend", "goal": "defense", "data": data, "surrogates": list(surrogates or SURROGATES),
        "eps": list(chosen), "white_box": list(dict.fromkeys(white_box)),
        "models": list(dict.fromkeys(_model(name) for name in models)), **more,
    }  # fmt: skip
    if transfer is not None:
        table["transfer"] = transfer
    if attacks or transfer is None:
        table["attacks"] = list(attacks or TRANSFER)
    return validated(DefenseSuite, table, "advens defend")


def _model(text: str) -> str:
    """A folder is a saved ensemble; a part of it may be named after it, as ``?member=2``."""
    folder = Path(text.partition("?")[0]) / "ensemble.json"
    return f"defense:{text}" if ":" not in text and folder.is_file() else text
