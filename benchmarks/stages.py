"""The attacks an entry of a suite stands for: one, or a sequence in which each takes what still stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from advens.benchmarks.suites import AttackEntry, Suite
from advens.errors import InputError

if TYPE_CHECKING:
    from advens.attacks.attack import Attack


@dataclass(frozen=True)
class Stage:
    """An attack and its place in a sequence.

    Args:
        attack, family: the attack.
        after: label of the stage before; empty for the first.
    """

    attack: Attack
    family: str
    after: str = ""


def stages_of(suite: Suite, entry: AttackEntry, surrogates: int) -> list[tuple[str, Stage]]:
    """The stages of an entry with their labels: one, but for sequences under ``robustness``.

    A sequence is ``a+b`` or the name of a published one. An option of one of its attacks is written
    ``b.steps``; one without a dot is for all.
    """
    from advens.attacks import attack_info

    if suite.goal == "transfer":
        attack = _attack(suite, entry.name, entry.options, entry, surrogates)
        return [(entry.title, Stage(attack, attack_info(entry.name).family))]
    stages = named_stages(entry.name)
    found: list[tuple[str, Stage]] = []
    for number, (name, options) in enumerate(stages):
        own = options | {k: v for k, v in entry.options.items() if "." not in k}
        own |= {
            k.removeprefix(f"{name}."): v for k, v in entry.options.items() if k.startswith(f"{name}.")
        }
        attack = _attack(suite, name, own, entry, surrogates)
        whole = number + 1 == len(stages)
        label = entry.title if whole else "+".join(name for name, _ in stages[: number + 1])
        after = found[-1][0] if found else ""
        found.append((label, Stage(attack, attack_info(name).family, after)))
    return found


def named_stages(name: str) -> list[tuple[str, dict[str, Any]]]:
    """``a+b``, or the name of a published sequence, as single attacks with their options in it."""
    from advens.attacks.whitebox.cascade import SEQUENCES

    return [stage for part in name.split("+") for stage in SEQUENCES.get(part, {part: {}}).items()]


def _attack(
    suite: Suite, name: str, given: dict[str, Any], entry: AttackEntry, surrogates: int
) -> Attack:
    from advens.attacks import attack_info, create_attack

    threat, where = suite.threat, f"suite '{suite.name}': attack '{entry.title}'"
    info = attack_info(name)
    if threat.norm not in info.norms:
        raise InputError(f"{where} is not defined for {threat.norm}; only {', '.join(info.norms)}")
    if threat.targeted and not info.targeted:
        raise InputError(f"{where} has no targeted form")
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
    one = override(attack, steps=1).passes(surrogates).backward
    if budget < one:
        raise InputError(f"{where}: a budget of {budget} is less than one step, {one} passes")
    return override(attack, steps=budget // one)
