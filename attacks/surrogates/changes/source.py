"""The model source ``changed:CHANGE+CHANGE?of=MODEL``: one copy of a model under changes, as a surrogate.

Options of a change carry its name (``head-drop.p=0.2``); ``member`` tells copies apart, which draw
differently. ``of`` is the model's own name, with ``?``, ``&`` and ``+`` percent-encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from advens.attacks.hooks import Changed, attached
from advens.attacks.interfaces import (
    ChangeContext,
    ModelChange,
    OwnBackward,
    PreparedEveryStep,
    PreparedOnClean,
)
from advens.attacks.parts import from_spec, name_of, options, to_spec
from advens.classifier import Classifier, borrowed
from advens.digest import value_digest
from advens.errors import InputError
from advens.models import ModelCard, check_name, describe, find_model, origins
from advens.seeding import Draws
from advens.spec import Spec


class ChangedModel(Classifier):
    """A copy of a surrogate under changes, with its weights and preprocessing.

    Args:
        base: the surrogate; its network is shared, not copied.
        changes: what is done inside it.
        member: which copy this is.

    Raises:
        InputError: the surrogate is an ensemble, or a change needs an attack around it.
    """

    def __init__(self, base: Classifier, changes: Sequence[ModelChange], member: int = 0) -> None:
        if type(base).forward is not Classifier.forward:
            raise InputError(f"model '{base.name}' is no single network; change its members")
        for change in changes:
            if isinstance(change, PreparedOnClean):
                raise InputError(f"'{name_of(change)}' needs clean images: name it in front of an attack")
            if isinstance(change, (OwnBackward, PreparedEveryStep)):
                raise InputError(f"'{name_of(change)}' takes more passes: name it in front of an attack")
        with borrowed([base]):  # a Classifier freezes its network; this one is another's, too
            super().__init__(
                Changed(base.net, changes, member), name=name(base.name, changes, member),
                num_classes=base.num_classes, family=base.family, input_size=base.input_size,
                interpolation=base.interpolation,
            )  # fmt: skip
        self.mean, self.std = base.mean.clone(), base.std.clone()
        self.precision = base.precision
        self.bases = (base.digest, *origins(base))
        self.base_weights = base.weights
        self.changes, self.member = tuple(changes), member

    def at_step(self, draws: Draws | None) -> None:
        """A step begins: these are its draws; None when the attack is over."""
        changed: Changed = self.net  # type: ignore[assignment]
        changed.at_step(draws)

    @property
    def digest(self) -> str:
        """Hex sha256 of the weights and of what is done to them."""
        return _digest(self.bases[0], self.changes, self.member)

    @property
    def weights(self) -> str:
        """The same, however images are prepared."""
        return _digest(self.base_weights, self.changes, self.member)


def name(base: str, changes: Sequence[Any], member: int) -> str:
    """What `load` finds the copy by."""
    query: dict[str, Any] = {
        f"{name_of(c)}.{key}": value for c in changes for key, value in options(c).items()
    }
    query |= {"member": member, "of": base}
    return f"changed:{'+'.join(map(name_of, changes))}?{urlencode(query, safe=':/')}"


def load(spec: Spec) -> ChangedModel:
    """The copy, on the CPU.

    Raises:
        InputError: an unknown change, option or model, or one with nothing to change.
    """
    changes, member, of = _parsed(spec)
    base = find_model(of)
    with attached(base, changes, ChangeContext()):
        pass  # refused here, by the model's name
    model = ChangedModel(base, changes, member)
    model.name = spec.text
    return model


def card(spec: Spec) -> ModelCard:
    """What is known without loading weights, where that is so of the model."""
    changes, member, base = _parsed(spec)
    of = describe(base)
    return ModelCard(
        spec.text, of.family, _digest(of.digest, changes, member), of.num_classes, of.input_size,
        (of.digest, *origins(of)), _digest(of.weights or of.digest, changes, member),
    )  # fmt: skip


def check(spec: Spec) -> None:
    """Raise InputError for a name that cannot be."""
    check_name(_parsed(spec)[2])


def _digest(base: str, changes: Sequence[Any], member: int) -> str:
    return value_digest([base, [to_spec(change) for change in changes], member])


def _parsed(spec: Spec) -> tuple[tuple[Any, ...], int, str]:
    """Changes, member and the model's name."""
    names = spec.rest.split("+")
    if "of" not in spec.query:
        raise InputError(f"'{spec.text}': write changed:{spec.rest}?of=MODEL")
    given: dict[str, dict[str, Any]] = {each: {} for each in names}
    for key, value in spec.literals(skip=("of", "member")).items():
        change, dot, option = key.partition(".")
        if not dot or change not in given:
            raise InputError(f"'{spec.text}': unknown option '{key}'; write {names[0]}.OPTION")
        given[change][option] = value
    changes = tuple(from_spec("change", {"name": each, **given[each]}) for each in names)
    return changes, spec.number("member", 0) or 0, spec.query["of"]
