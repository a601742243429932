"""Named things: a registry finds them in the package, in plug-ins, by wildcard, and suggests on a miss.

Attacks, defenses and parts are registered by a decorator in their own file. The registry discovers them by
importing the package it stands for, and third-party ones by importing the entry points of a group. An entry
point may point at a module (importing it registers what it decorates) or at anything inside one.

Sources of models and data are declared: a small record says where the code is, and nothing is imported until
a name needs it. A registry of such records makes them from entry points without loading these, because a
plug-in may be called only for names that are trusted.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from advens.errors import InputError, first_line, unknown

T = TypeVar("T")


@dataclass(frozen=True)
class Info:
    """What the registry says of an entry, beside its code.

    Args:
        name: how users call it.
        family: what it changes (fusion, surrogate, loss, gradient, input, feature), or is for (targeted,
            white-box).
        paper: authors, venue and title of its source.
        year: of the paper.
        targeted: whether it supports targets.
        untargeted: whether it supports their absence.
        norms: the norms it is defined for.
        couples: ``"no"``, ``"option"`` (an option couples the batch) or ``"shard"`` (takes other
            images of the same shard by design).
        builder: what makes the surrogates that an attack is meant for, when they are not plain models.
        summary: one line.
    """

    name: str
    family: str = ""
    paper: str = ""
    year: int | None = None
    targeted: bool = True
    untargeted: bool = True
    norms: tuple[str, ...] = ("linf", "l2")
    couples: str = "no"
    builder: str = ""
    summary: str = ""


@dataclass
class Registry(Generic[T]):
    """Entries of one kind.

    Args:
        kind: the word used in messages.
        package: the package whose modules register entries when imported.
        group: the entry-point group for third-party ones.
        declare: makes an entry of a third-party entry point without loading it; by default entry points are
            loaded when entries are first asked for, and register themselves.
        entries: those of the package, and of plug-ins that have registered themselves.
    """

    kind: str
    package: str | None = None
    group: str | None = None
    declare: Callable[[EntryPoint], tuple[T, Info]] | None = None
    entries: dict[str, tuple[T, Info]] = field(default_factory=dict)
    _found: bool = False

    def register(self, info: Info, value: T) -> None:
        """Add an entry. The same name twice is an error, unless it is the same definition again."""
        known = self.entries.get(info.name)
        if known is not None and _origin(known[0]) != _origin(value):
            raise InputError(
                f"{self.kind} '{info.name}' is registered twice: by {_origin(known[0])} "
                f"and by {_origin(value)}"
            )
        self.entries[info.name] = (value, info)

    def names(self, pattern: str = "*") -> list[str]:
        """Sorted names that match a shell wildcard."""
        return sorted(name for name in self._known() if fnmatch(name, pattern))

    def get(self, name: str) -> T:
        """The entry of a name. Raises InputError with the nearest name."""
        return self._entry(name)[0]

    def info(self, name: str) -> Info:
        """What is known of a name."""
        return self._entry(name)[1]

    def __contains__(self, name: object) -> bool:
        return name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _known(self) -> set[str]:
        self._discover()
        return {*self.entries, *(point.name for point in self._declared())}

    def _entry(self, name: str) -> tuple[T, Info]:
        self._discover()
        claims = {point.value: point for point in self._declared() if point.name == name}
        if len(claims) + (name in self.entries) > 1:
            values = ["advens"] * (name in self.entries) + list(claims)
            raise InputError(f"{self.kind} '{name}' is defined more than once: by {', '.join(values)}")
        if self.declare is not None and claims:
            return self.declare(*claims.values())
        if name not in self.entries:
            raise unknown(self.kind, name, self._known())
        return self.entries[name]

    def _declared(self) -> tuple[EntryPoint, ...]:
        """Third-party entry points that are not loaded."""
        if self.declare is None or self.group is None:
            return ()
        return _points(self.group, tuple(sys.path), entry_points)

    def _discover(self) -> None:
        if self._found:
            return
        if self.package is not None:
            import_all(self.package)
        for point in entry_points(group=self.group) if self.group and self.declare is None else ():
            try:
                point.load()
            except Exception as error:
                raise InputError(
                    f"plug-in '{point.name}' ({point.value}) in group '{self.group}' does not load: "
                    f"{type(error).__name__}: {first_line(error)}"
                ) from error
        self._found = True


@lru_cache(maxsize=16)
def _points(group: str, path: tuple[str, ...], find: Callable[..., Any]) -> tuple[EntryPoint, ...]:
    """The entry points of a group on a path. They are kept: a look-up reads the metadata of all packages."""
    return tuple(find(group=group))


def import_all(package: str) -> None:
    """Import every module of a package that holds entries (not its commands)."""
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, prefix=f"{package}."):
        if not module.name.endswith((".commands", ".__main__")):
            importlib.import_module(module.name)


def one_line(text: str | None) -> str:
    """The first line of a docstring."""
    return (text or "").strip().split("\n")[0].rstrip(".")


def _origin(value: object) -> str:
    target: Callable[..., object] | object = getattr(value, "__wrapped__", value)
    module = getattr(target, "__module__", type(target).__module__)
    return f"{module}.{getattr(target, '__qualname__', repr(target))}"
