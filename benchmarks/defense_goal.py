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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advens.benchmarks.plan import outline
from advens.benchmarks.suites import DefenseSuite, SanityTable, Suite, expanded, from_table
from advens.benchmarks.tasks import Measure, Train
from advens.errors import InputError
from advens.threat import parse_eps

WHITE_BOX: dict[str, dict[str, Any]] = {
    "pgd": {"name": "pgd-ce", "steps": 50, "restarts": 5}, "pma-plus": {"name": "pma-plus"},
}  # fmt: skip
"""White-box attacks by label, where a suite names none; others go by their own names."""
ADAPTIVE: dict[str, dict[str, Any]] = {
    "adaptive-pgd": {"name": "adaptive-pgd"},
    "arc": {"name": "arc"},
}
"""Attacks that randomized ensembles are put through beside."""
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
    """A line of a table: a training, and how many of its members are taken.

    Args:
        table, label, members: on the table.
        training: what is trained; those that are cut from one training share it.
    """

    table: str
    label: str
    members: int
    training: Train

    def model(self, trained: str) -> str:
        """The name of the model, given that of the training."""
        whole = self.training.defense.members
        return trained if self.members == whole else f"{trained}?members={self.members}"


def lines_of(suite: DefenseSuite) -> list[Line]:
    """All lines that are trained. Raises InputError for unknown defenses, options or models."""
    from advens.defenses.phases import Nested

    if suite.training is None:
        return []
    common, found = dict(suite.training.model_extra or {}), []
    for entry in suite.defenses:
        options = common | (entry.model_extra or {})
        for seed in suite.seeds:
            for members in entry.members:
                train = _train(suite, entry.name, options | {"members": members}, seed)
                if isinstance(train.defense, Nested):
                    train = _train(
                        suite, entry.name, options | {"members": max(entry.members)}, seed
                    )
                found.append(Line(entry.table, entry.title, members, train))
    return found


def _train(suite: DefenseSuite, name: str, options: dict[str, Any], seed: int) -> Train:
    from advens.defenses.members import architecture

    assert suite.training is not None
    arch, data = suite.training.arch, suite.training.data
    return Train(name, tuple(sorted(options.items())), architecture(arch, data), data, seed)


def trainings(suite: DefenseSuite) -> list[Train]:
    """What is trained, each once, the largest first."""
    found = dict.fromkeys(line.training for line in lines_of(suite))
    return sorted(found, key=lambda task: int(task.defense.members), reverse=True)


def models_of(suite: DefenseSuite, trained: Mapping[Train, str]) -> list[str]:
    """The models of all lines, by name: those that were trained, then those that were given."""
    names = [line.model(trained[line.training]) for line in lines_of(suite)]
    return [*names, *(name for name in expanded(suite.models) if name not in names)]


def parts_of(
    suite: DefenseSuite, models: Sequence[str], randomized: Sequence[str]
) -> dict[str, Suite]:
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
        "batch_size": suite.batch_size,
    }  # fmt: skip
    found: dict[str, Suite] = {}
    for eps in suite.budgets:
        name = f"transfer-{eps.replace('/', '-')}"
        found[name] = from_table(
            common | {
                "name": name.replace(".", "-"), "threat": {"norm": "linf", "eps": eps},
                "surrogates": {"surrogates": list(surrogates)},
                "attacks": [{"name": attack} for attack in suite.attacks],
            }, name,
        )  # fmt: skip
    own = suite.white_box or list(WHITE_BOX)
    attacks: list[dict[str, Any]] = [
        {**WHITE_BOX.get(label, {"name": label}), "label": label} for label in own
    ]
    attacks += [
        {**entry, "label": label, "surrogates": list(randomized)}
        for label, entry in ADAPTIVE.items() if randomized and label not in own
    ]  # fmt: skip
    found[FOLDER] = from_table(
        common | {
            "name": FOLDER, "goal": "robustness", "crossed": False, "sanity": _sanity(suite, surrogates),
            "limit": min((n for n in (suite.white_box_limit, suite.limit) if n), default=None),
            "threat": {"norm": "linf", "eps": suite.budgets[-1]},
            "surrogates": {name: [name] for name in models}, "attacks": attacks,
        }, FOLDER,
    )  # fmt: skip
    return found


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
    for part in parts_of(suite, [*dict.fromkeys(models)], ()).values():
        outline(part, held_out=False)
    lines_of(suite)


def trial(suite: DefenseSuite) -> bytes:
    """The budgets and attacks of a folder, in the order of the columns of its tables."""
    own = suite.white_box or list(WHITE_BOX)
    found = {"budgets": list(suite.budgets), "open": own, "adaptive": list(ADAPTIVE)}
    return (json.dumps(found, indent=1) + "\n").encode()


def measures(suite: DefenseSuite, models: Sequence[str]) -> list[Measure]:
    """The measurements of every model, once."""
    source = parts_of(suite, models, ())[FOLDER].source
    eps = parse_eps(suite.budgets[-1])
    return [
        Measure(name, source, suite.measured, eps, suite.seed) for name in dict.fromkeys(models)
    ]


def rows_of(
    suite: DefenseSuite, trained: Mapping[Train, str], measured: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Rows of ``models``: what the suite says of every line, and what was measured of its model."""
    lines = [(line, line.model(trained[line.training])) for line in lines_of(suite)]
    for line, name in lines:
        said = {"table": line.table, "label": line.label, "seed": line.training.seed}
        yield {**measured[name], **said, "members": line.members}
    for name in models_of(suite, trained)[len(lines) :]:
        yield {**measured[name], "table": None, "label": None, "seed": None}


def defense_suite(
    models: Sequence[str], data: str, surrogates: Sequence[str], attacks: Sequence[str],
    budgets: Sequence[str], white_box: Sequence[str] = (), **more: Any,
) -> DefenseSuite:  # fmt: skip
    """The suite of ``advens defend``; for digits, what is not said is taken from the embedded models."""
    digits = data.startswith("digits:")
    if not surrogates and not digits:
        raise InputError("name separately trained surrogates: --surrogates A,B")
    chosen = budgets or (("0.05", "0.1", "0.15", "0.2") if digits else ("2/255", "4/255", "8/255"))
    for eps in chosen:
        parse_eps(eps)
    return DefenseSuite(
        name="defend", goal="defense", data=data, surrogates=list(surrogates or SURROGATES),
        attacks=list(attacks or TRANSFER), eps=list(chosen), white_box=list(dict.fromkeys(white_box)),
        models=list(dict.fromkeys(_model(name) for name in models)), **more,
    )  # fmt: skip


def _model(text: str) -> str:
    """A folder is a saved ensemble."""
    return (
        f"defense:{text}" if ":" not in text and (Path(text) / "ensemble.json").is_file() else text
    )
