"""What an attack crafts stays the same from version to version, as runs are verified by crafting again.

``crafted.json`` holds, for each attack, some pixels of what it crafted when it was recorded, in 8-bit levels
from the clean image, and ``specs.json`` what descriptions of attacks and parts are named by. An attack or a
part that is changed on purpose is recorded again:

    python -m tests.attacks.test_unchanged NAME...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn

import advens
from advens.attacks import attack_info, create_attack
from advens.attacks.commands import PASSES
from advens.attacks.parts import FIELD_KINDS, PARTS, from_spec, options, to_spec
from advens.digest import value_digest
from advens.errors import InputError
from tests.attacks.conftest import CLASSES, among, bytes_like, net_of, small_attack

RECORDED, SPECS = (Path(__file__).with_name(name) for name in ("crafted.json", "specs.json"))
EPS = {"linf": "32/255", "l2": 1.5, "l1": 9.0}
EVERY = 16
"""One pixel in so many is recorded."""
PARTS_OF = {"estimator": "estimator", "update": "update", "loss": "loss", "start": "start",
            "change": "changes", "transform": "transforms", "filter": "transforms",
            "feature": "feature"}  # fmt: skip
"""The option of an attack that a kind of parts is given as."""
MORE: dict[str, dict[str, dict[str, Any]]] = {
    "apgd-ce": {"restarts=2": {"restarts": 2}},
    "fab": {"restarts=2": {"restarts": 2}},
    "pgd-ce": {"start=odi": {"start": "odi"}, "restarts=2": {"restarts": 2}, "eot=2": {"eot": 2}},
    "square": {"restarts=2": {"restarts": 2}},
}
"""Options of white-box attacks whose default leaves code aside."""
LONGER: dict[str, dict[str, Any]] = {
    "apgd-ce": {"steps": 30}, "apgd-t": {"steps": 12, "targets": 2}, "arc": {"steps": 6},
    "fab": {"steps": 12}, "lgv": {"steps": 7}, "md": {"steps": 9}, "mifgsm": {"steps": 6},
    "pma": {"steps": 9}, "square": {"queries": 80}, "svre": {"steps": 4},
}  # fmt: skip
"""Attacks that do something else later on."""
RANDOMIZED = ("adaptive-pgd", "apgd-ce", "arc", "pma")


@dataclass(frozen=True)
class Case:
    """An attack with some options, untargeted or targeted, on two models or on one that draws one of them."""

    name: str
    norm: str = "linf"
    options: dict[str, Any] = field(default_factory=dict)
    targeted: bool = False
    randomized: bool = False
    small: bool = True


def cases() -> dict[str, Case]:
    """Attacks in every norm and targeted, each switch turned once, and parts of an attack otherwise plain."""
    found, seen = {}, set[tuple[Any, ...]]()
    for name in advens.list_attacks():
        info = attack_info(name)
        away = info.untargeted
        found |= {f"{name} {norm}": Case(name, norm, targeted=not away) for norm in info.norms}
        if info.targeted and away:
            found[f"{name} targeted"] = Case(name, targeted=True)
        found |= {f"{name} {key}": Case(name, options=given) for key, given in MORE.get(name, {}).items()}
        for key, value in turned(name, seen):
            found[f"{name} {key}={value}"] = Case(name, options={key: value}, targeted=not away)
        for norm in info.norms if name in LONGER else ():
            found[f"{name} {norm} longer"] = Case(name, norm, LONGER[name], small=False)
        if name in RANDOMIZED:
            found[f"{name} randomized"] = Case(name, randomized=True)
    for kind, field_ in PARTS_OF.items():
        for part in PARTS[kind]:
            if PARTS[kind].info(part).family != "white-box":  # asks the model, as white-box attacks let it
                value: Any = [part] if field_ in ("transforms", "changes") else part
                base = "ens-loss" if kind == "feature" else "ens-probs"
                targeted = not PARTS[kind].info(part).untargeted
                found[f"{kind} {part}"] = Case(base, options={field_: value}, targeted=targeted)
    return found


def turned(name: str, seen: set[tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
    """The other values of switches and choices of an attack and its parts, but those that were ``seen``."""
    attack = create_attack(name)
    owners = [(key, part) for key in FIELD_KINDS for given in [getattr(attack, key, None) or ()]
              for part in (given if isinstance(given, tuple) else (given,))]  # fmt: skip
    for where, owner in [("", attack), *owners]:
        hints = get_type_hints(type(owner))
        for key, now in options(owner).items():
            choices = get_args(hints[key]) if get_origin(hints[key]) is Literal else ()
            for value in (False, True) if isinstance(now, bool) else choices:
                what = (where, type(owner), key, value)
                if value != now and what not in seen and possible(name, key, value):
                    seen.add(what)
                    yield key, value


def possible(name: str, key: str, value: Any) -> bool:
    try:
        create_attack(name, **{key: value})
    except InputError:
        return False
    return True


def crafted(case: Case) -> list[int]:
    """8-bit levels from the clean image, of one pixel in so many."""
    make, x = small_attack if case.small else create_attack, bytes_like(0)
    attack = make(case.name, norm=case.norm, eps=EPS[case.norm], **case.options)
    models = [net_of(attack)(seed) for seed in range(2)]
    ensemble = nn.Module()
    ensemble.members, ensemble.probabilities = nn.ModuleList(models), torch.tensor([0.25, 0.75])
    with torch.no_grad():
        y = torch.stack([model(x) for model in models]).mean(0).argmax(1)
    target = (y + 2) % CLASSES if case.targeted else None
    y[-1] = (y[-1] + 1) % CLASSES  # wrong from the start
    if "aa" in (case.name, case.options.get("feature")):
        y, target = among(y)
    result = attack.run(ensemble if case.randomized else models, x, y, target, seed=3)
    stored = attack.threat.quantise(result.x_adv, x)
    levels: list[int] = (stored.int() - (255 * x).round().int()).flatten()[::EVERY].tolist()
    return levels


@cache
def known() -> dict[str, Case]:
    return cases()


@cache
def recorded() -> dict[str, list[int]]:
    found: dict[str, list[int]] = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    return found


@pytest.mark.parametrize("key", recorded())
def test_the_same_images_as_when_they_were_recorded(key: str) -> None:
    """Of a few pixels the gradient is next to zero, where another machine may round to another sign."""
    then, now = recorded()[key], crafted(known()[key])
    assert len(now) == len(then)
    assert sum(abs(a - b) <= 1 for a, b in zip(now, then, strict=True)) >= 0.95 * len(then)


def specs() -> dict[str, str]:
    """Digests of the descriptions that stored cells are named by, of attacks, builders and parts."""
    parts = {f"{kind} {name}": to_spec(from_spec(kind, name)) for kind in PARTS for name in PARTS[kind]}
    found = {name: create_attack(name).spec for name in advens.list_attacks()} | parts
    return {name: value_digest(spec, 12) for name, spec in found.items()}


def test_the_same_descriptions_as_when_they_were_recorded() -> None:
    """A new option is left out of the description while it has its default, as it names nothing new."""
    then, now = json.loads(SPECS.read_text()), specs()
    assert {name: now.get(name) for name in then} == then


@pytest.mark.parametrize(
    ("spec", "digest"),
    [({"name": "members", "attack": "composed"}, "648fef3cf0db"),
     ({"name": "cascade", "attacks": ["composed"]}, "c53819d7b39a")],
)  # fmt: skip
def test_the_same_description_inside_another_attack(spec: dict[str, Any], digest: str) -> None:
    assert value_digest(from_spec("attack", spec).spec, 12) == digest


def test_a_late_option_is_described_where_it_is_given() -> None:
    inner = {"name": "composed", "warm_up": 2}
    described = from_spec("attack", {"name": "members", "attack": inner}).spec
    assert described["attack"]["warm_up"] == 2
    assert from_spec("attack", described).attack.warm_up == 2


if __name__ == "__main__":
    every, named, before = cases(), sys.argv[1:], recorded()
    kept = {key for key in before if named and set(key.split()).isdisjoint(named)}
    made = {key: before[key] if key in kept else crafted(case) for key, case in every.items()}
    lines = [f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in made.items()]
    RECORDED.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    SPECS.write_text(json.dumps(specs(), indent=1) + "\n")
    costs = [f"{json.dumps(name)}: {list(create_attack(name).passes(1))}" for name in advens.list_attacks()]
    PASSES.write_text("{\n" + ",\n".join(costs) + "\n}\n")
