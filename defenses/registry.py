"""Named defenses: frozen dataclasses of parameters, validated, found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform

from advens.errors import InputError, nearest
from advens.registry import Info, Registry, one_line

DEFENSES: Registry[type] = Registry("defense", package="advens.defenses", group="advens.defenses")

C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True)
def defense(name: str, **info: Any) -> Callable[[C], C]:
    """Make a class a defense; keywords go to `advens.registry.Info` (family, paper, year)."""

    def decorate(cls: C) -> C:
        made = dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
        made.defense_name = name  # type: ignore[attr-defined]
        DEFENSES.register(Info(name, summary=one_line(cls.__doc__), **info), made)
        return cast("C", made)

    return decorate


def list_defenses(pattern: str = "*") -> list[str]:
    """Names of defenses that match a shell wildcard."""
    return DEFENSES.names(pattern)


def create_defense(name: str, **overrides: Any) -> Any:
    """The defense of a name, with any default overridden; options of ``training`` by their own names.

    Raises:
        InputError: an unknown defense or option, or a value that does not fit.
    """
    cls = DEFENSES.get(name)
    known = {f.name: f for f in fields(cls)}
    training = _training_fields()
    own = {k: v for k, v in overrides.items() if k in known}
    inner = {k: v for k, v in overrides.items() if k in training and k not in known}
    for key in overrides:
        if key not in known and key not in training:
            raise InputError(f"'{name}' has no option '{key}'{nearest(key, [*known, *training])}")
    try:
        made = cls(**own)
        if inner:
            learning = type(made.training)(**asdict(made.training) | inner)
            made = cls(**{key: getattr(made, key) for key in known} | {"training": learning})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "?"
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"'{name}': {where} = {first['input']!r}: {message}") from None
    return made


def describe(value: Any) -> dict[str, Any]:
    """A JSON-able description of a defense."""
    described: Mapping[str, Any] = asdict(value)
    return {"defense": type(value).defense_name, **described}


def identity(value: Any) -> dict[str, Any]:
    """A description that names a training: options in ``added`` of a class are left out at their defaults.

    These came after the first trainings, whose names and descriptions so stay the same.
    """
    described = describe(value)
    for holder, found in ((value, described), (value.training, described["training"])):
        for name in getattr(holder, "added", ()):
            if found[name] == type(holder).__dataclass_fields__[name].default:
                del found[name]
    return described


def _training_fields() -> set[str]:
    from advens.defenses.phases import Training

    return {f.name for f in fields(Training)}
