"""Parts: frozen, validated dataclasses an attack is composed of, found by kind and name.

A part is written as JSON by `to_spec` and built again from it by `from_spec`, so an attack can stand
in a parquet row and be rebuilt from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, PlainValidator, ValidationError
from pydantic.dataclasses import dataclass as _dataclass
from typing_extensions import dataclass_transform

from advens.attacks.names import KINDS, PACKAGE
from advens.errors import InputError, nearest
from advens.registry import Info, Registry, one_line
from advens.threat import Threat

PARTS: dict[str, Registry[type]] = {
    kind: Registry(kind, package=PACKAGE, group=PACKAGE) for kind in KINDS
}

FIELD_KINDS = {
    "loss": "loss",
    "changes": "change",
    "transforms": "transform",
    "filters": "filter",
    "estimator": "estimator",
    "fusion": "fusion",
    "update": "update",
    "step_size": "step",
    "start": "start",
    "feature": "feature",
}
"""Fields of an attack that hold parts, and the kind each holds."""

C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True)
def part(kind: str, name: str, **info: Any) -> Callable[[C], C]:
    """Make a class a part: a frozen dataclass whose fields are validated, registered under a name.

    Keywords go to `advens.registry.Info` (paper, year, targeted, norms, couples).
    """

    def decorate(cls: C) -> C:
        made = _dataclass(
            frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True)
        )(cls)
        made.part_kind, made.part_name = kind, name  # type: ignore[attr-defined]
        PARTS[kind].register(Info(name, summary=one_line(cls.__doc__), **info), made)
        return cast("C", made)

    return decorate


def is_part(value: object) -> bool:
    """Whether a value is a part, of any kind."""
    return hasattr(type(value), "part_name")


def name_of(value: Any) -> str:
    """The registered name of a part."""
    return str(type(value).part_name)


def options(value: Any) -> dict[str, Any]:
    """The fields of a part, by name."""
    return {field.name: getattr(value, field.name) for field in fields(value)}


def to_spec(value: Any) -> Any:
    """A JSON-able description of a part or an attack.

    Options that its class names in ``LATER`` came after cells were stored, which are named by their
    descriptions: they are left out while they have their defaults, also inside another attack.
    """
    if isinstance(value, Threat):
        return {"norm": value.norm, "eps": value.eps}
    if is_dataclass(value):
        late = {f.name: f.default for f in fields(value) if f.name in getattr(value, "LATER", ())}
        said = {k: v for k, v in options(value).items() if k not in late or v != late[k]}
        return {"name": name_of(value)} | {k: to_spec(v) for k, v in said.items()}
    if isinstance(value, (tuple, list)):
        return [to_spec(item) for item in value]
    return value


def from_spec(kind: str, spec: Any) -> Any:
    """The part a name, a table with ``name`` and fields, or a part itself stands for."""
    if is_dataclass(spec) and not isinstance(spec, type):
        if getattr(spec, "part_kind", kind) != kind:
            raise InputError(f"{kind}: {spec!r} is a part of another kind")
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise InputError(f"{kind}: {spec!r} is neither a name nor a table with a name")
    cls = PARTS[kind].get(str(spec["name"]))
    return make(cls, {k: _field(k, v) for k, v in spec.items() if k != "name"})


def _field(key: str, value: Any) -> Any:
    if key == "threat" and isinstance(value, Mapping):
        for option in value:
            if option not in ("norm", "eps"):
                raise InputError(f"threat has no option '{option}'{nearest(option, ('norm', 'eps'))}")
        return Threat(**value)
    kind = FIELD_KINDS.get(key)
    if kind is None:
        return value
    if isinstance(value, (list, tuple)):
        return tuple(from_spec(kind, item) for item in value)
    return from_spec(kind, value)


def one(kind: str) -> PlainValidator:
    """For the annotation of a field: one part of a kind, from its name, a table or the part itself."""
    return PlainValidator(partial(from_spec, kind))


def perhaps(kind: str) -> PlainValidator:
    """For the annotation of a field: the same, or None."""
    return PlainValidator(lambda spec: None if spec is None else from_spec(kind, spec))


def several(kind: str) -> PlainValidator:
    """For the annotation of a field: parts of a kind, in order."""

    def built(values: Any) -> tuple[Any, ...]:
        if not isinstance(values, (tuple, list)):
            raise ValueError(f"a list of {kind}s is wanted")
        return tuple(from_spec(kind, value) for value in values)

    return PlainValidator(built)


def make(cls: type, values: Mapping[str, Any]) -> Any:
    """Construct a part; InputError names an unknown field or a value that does not fit."""
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            raise InputError(f"'{cls.part_name}' has no option '{key}'{nearest(key, known)}")  # type: ignore[attr-defined]
    try:
        return cls(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "?"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"'{cls.part_name}': {where} = {first['input']!r}: {message}") from None  # type: ignore[attr-defined]


def changed(value: Any, **changes: Any) -> Any:
    """A copy of a part with some fields replaced, validated like a new one."""
    return make(type(value), options(value) | changes)


__all__ = [
    "PARTS",
    "changed",
    "from_spec",
    "make",
    "name_of",
    "one",
    "options",
    "part",
    "perhaps",
    "several",
    "to_spec",
]
