"""Named attacks: recipes, compositions such as ``di-ti-mi-ens-logits``, and plug-ins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import update_wrapper
from inspect import signature
from typing import Any

from advens.attacks.interfaces import Attack
from advens.attacks.names import PACKAGE, SEVERAL, Catalogue
from advens.attacks.parts import FIELD_KINDS, PARTS, changed, from_spec, name_of, options
from advens.errors import InputError, nearest, unknown
from advens.registry import Info, Registry, one_line
from advens.threat import Threat

ALSO_FILTERS = "transforms"
PLURALS = {
    "estimator": "estimators", "update": "updates", "loss": "losses", "step": "step rules", "start": "starts",
    "feature": "features",
}  # fmt: skip

class Recipe:
    """A published method as a composition: calling it gives the attack, with defaults overridden.

    ``AdaEA(eps=8/255, steps=20)`` is the same as ``create_attack("adaea", eps=8/255, steps=20)``.
    """

    def __init__(self, name: str, build: Callable[..., Attack]) -> None:
        update_wrapper(self, build)
        self.__name__: str
        self.name = name
        self._build = build
        self._by_norm = bool(signature(build).parameters)

    def build(self, norm: str = Threat().norm) -> Attack:
        """The composition, with the defaults that its paper has in a norm."""
        return self._build(norm) if self._by_norm else self._build()

    def __call__(self, **overrides: Any) -> Attack:
        return _made(self.name, self.build(_norm(overrides)), overrides)


RECIPES: Registry[Recipe] = Registry("attack", package=PACKAGE, group=PACKAGE)


def recipe(
    name: str, symbol: str | None = None, **info: Any
) -> Callable[[Callable[..., Attack]], Recipe]:
    """Register a function that composes a method with its paper's defaults.

    The function takes the norm where the defaults depend on it, else nothing.
    ``from advens.attacks import SYMBOL`` finds it; the function's own name by default. Keywords go
    to `advens.registry.Info`: family, paper, year, targeted, norms, couples, builder.
    """

    def decorate(build: Callable[..., Attack]) -> Recipe:
        made = Recipe(name, build)
        made.__name__ = symbol or build.__name__
        RECIPES.register(Info(name, summary=one_line(build.__doc__), **info), made)
        return made

    return decorate


def list_attacks(pattern: str = "*") -> list[str]:
    """Names of attacks that match a shell wildcard."""
    return registered().attacks(pattern)


def create_attack(name: str, **overrides: Any) -> Attack:
    """The attack of a name, with any default overridden.

    Args:
        name: a recipe (``"mifgsm"``) or a composition, parts before a recipe
            (``"di-ti-mi-ens-logits"``).
        overrides: ``eps``, ``norm``, any field of the attack (parts by name, table or value), or an
            option of one of its parts (``copies=5``, or ``{"estimator.copies": 5}`` where two have it).

    Raises:
        InputError: an unknown name or option, a value that does not fit, or a norm in which the attack is
            not defined.
    """
    return _made(name, _compose(name, _norm(overrides)), overrides)


def _norm(overrides: dict[str, Any]) -> str:
    """The norm that is asked for, as threats name it."""
    return Threat(overrides["norm"], 1).norm if "norm" in overrides else Threat().norm


def _made(name: str, attack: Attack, overrides: dict[str, Any]) -> Attack:
    """`override`, whose complaints name the attack as the user knows it."""
    if "norm" in overrides and _norm(overrides) not in (norms := attack_info(name).norms):
        raise InputError(f"attack '{name}' is not defined for {_norm(overrides)}; only {', '.join(norms)}")
    try:
        return override(attack, **overrides)
    except InputError as error:
        raise InputError(str(error).replace("'composed':", f"'{name}':", 1)) from None


def attack_info(name: str) -> Info:
    """What is known of an attack; a composition inherits from the recipe it ends in."""
    return registered().info(name)


def registered() -> Catalogue:
    """Every recipe and part that is registered, plug-ins included."""
    recipes = {name: RECIPES.info(name) for name in RECIPES}
    parts = {kind: {name: known.info(name) for name in known} for kind, known in PARTS.items()}
    return Catalogue(recipes, parts)


def attack_from_spec(spec: dict[str, Any]) -> Attack:
    """The attack that ``attack.spec`` describes."""
    attack: Attack = from_spec("attack", spec)
    return attack


def split(name: str) -> tuple[list[tuple[str, str]], str]:
    """A composition's prefixes as (kind, part), and the recipe it ends in."""
    return registered().split(name)


def _compose(name: str, norm: str) -> Attack:
    prefixes, base = split(name)
    attack = RECIPES.get(base).build(norm)
    changes: dict[str, Any] = {}
    field_of = {kind: field for field, kind in FIELD_KINDS.items()}
    for kind, token in prefixes:
        field, made = field_of[kind], from_spec(kind, token)
        if not hasattr(attack, field):
            raise InputError(f"attack '{name}': '{base}' has a loop of its own and takes no {kind}")
        if kind in SEVERAL:
            changes[field] = (*changes.get(field, getattr(attack, field)), made)
        elif field in changes:
            both = f"'{name_of(changes[field])}' and '{token}'"
            raise InputError(f"attack '{name}' names two {PLURALS[kind]}, {both}; an attack has one")
        else:
            changes[field] = made
    return changed(attack, **changes) if changes else attack


def override(attack: Attack, /, **overrides: Any) -> Attack:
    """A copy of an attack with defaults replaced; see `create_attack`."""
    threat = {k: overrides.pop(k) for k in ("eps", "norm") if k in overrides}
    if threat:
        attack = changed(attack, threat=Threat(**(options(attack.threat) | threat)))
    for key, value in sorted(overrides.items(), key=lambda item: item[0] == "feature"):  # needs its fusion
        attack = _override(attack, key, value)
    return attack


def _override(attack: Attack, key: str, value: Any) -> Attack:
    known = options(attack)
    head, _, tail = key.partition(".")
    if tail and is_dataclass(known.get(head)):
        return changed(attack, **{head: changed(known[head], **{tail: value})})  # type: ignore[no-any-return]
    if key == ALSO_FILTERS and "filters" in known and isinstance(value, (list, tuple)):
        return _transforms(attack, value)
    if key in known:
        return changed(attack, **{key: _part(key, value, known[key])})  # type: ignore[no-any-return]
    owners = _owners(attack, key)
    if len(owners) == 1:
        where, index = owners[0]
        current = known[where]
        if index is None:
            return changed(attack, **{where: changed(current, **{key: value})})  # type: ignore[no-any-return]
        parts = list(current)
        parts[index] = changed(parts[index], **{key: value})
        return changed(attack, **{where: tuple(parts)})  # type: ignore[no-any-return]
    if owners:
        names = ", ".join(f"{where}.{key}" for where, _ in owners)
        raise InputError(f"option '{key}' belongs to several parts; write one of: {names}")
    every = {
        *known,
        "eps",
        "norm",
        *(f for w, i in _parts(attack) for f in options(_at(known, w, i))),
    }
    raise InputError(f"this attack has no option '{key}'{nearest(key, every - {'threat'})}")


def _part(key: str, value: Any, current: Any) -> Any:
    """A part from what a user wrote; a table without a name changes the current part."""
    kind = FIELD_KINDS.get(key)
    if kind is None:
        return value
    if isinstance(current, tuple) != isinstance(value, (list, tuple)):
        wanted = f"a list of {kind}s" if isinstance(current, tuple) else f"one {kind}"
        raise InputError(f"{key} = {value!r}: write {wanted}")
    if isinstance(value, (list, tuple)):
        return tuple(from_spec(kind, item) for item in value)
    if kind == "step" and isinstance(value, (str, float, int)):
        return changed(current, alpha=value)
    if isinstance(value, dict) and "name" not in value:
        return changed(current, **value)
    return from_spec(kind, value)


def _transforms(attack: Attack, wanted: list[Any] | tuple[Any, ...]) -> Attack:
    """Transforms and filters from one list, as users write them (``["di", "ti"]``)."""
    found: dict[str, list[Any]] = {"transforms": [], "filters": []}
    for item in wanted:
        name = (
            item if isinstance(item, str) else item.get("name") if isinstance(item, dict) else None
        )
        part_name = getattr(item, "part_name", None) if name is None else str(name)
        if part_name is None:
            from_spec("transform", item)  # says what is wrong with it
        is_filter = part_name in PARTS["filter"]
        if name is not None and not is_filter and name not in PARTS["transform"]:
            raise unknown("transform", str(name), [*PARTS["transform"], *PARTS["filter"]])
        kind = "filter" if is_filter else "transform"
        found[f"{kind}s"].append(from_spec(kind, item))
    return changed(attack, **{key: tuple(parts) for key, parts in found.items()})  # type: ignore[no-any-return]


def _parts(attack: Attack) -> list[tuple[str, int | None]]:
    """Where the parts of an attack are: its field, and the index in a tuple of parts."""
    places: list[tuple[str, int | None]] = []
    for field in fields(attack):  # type: ignore[arg-type]
        if field.name in FIELD_KINDS:
            value = getattr(attack, field.name)
            if value is None:
                continue
            many = isinstance(value, tuple)
            places += [(field.name, i) for i in range(len(value))] if many else [(field.name, None)]
    return places


def _at(known: dict[str, Any], where: str, index: int | None) -> Any:
    return known[where] if index is None else known[where][index]


def _owners(attack: Attack, key: str) -> list[tuple[str, int | None]]:
    known = options(attack)
    return [(w, i) for w, i in _parts(attack) if key in options(_at(known, w, i))]
