"""Names of attacks and parts, and what is known of each without importing it: what `advens attacks` lists.

A name is a recipe (``mifgsm``), or a recipe with parts in front of it (``dlr-di-mi-ens-logits``). The
catalogue of both is read from the decorators in the files of this package, which needs no torch. Where
plug-ins are installed, or a decorator's arguments are not literals, the modules are imported instead.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from advens.errors import unknown
from advens.registry import Info, one_line

PACKAGE = "advens.attacks"
"""The package whose modules register recipes and parts, and the entry-point group of plug-ins."""

KINDS = (
    "attack", "loss", "change", "transform", "filter", "estimator", "fusion", "update", "step", "start",
    "feature", "builder",
)  # fmt: skip
"""Kinds of parts."""

SEVERAL = ("change", "transform", "filter")
"""Kinds of which an attack may have several."""

PREFIXES = (*SEVERAL, "estimator", "update", "loss", "step", "start", "feature")
"""Kinds of parts that may stand in front of a recipe's name, in any order."""

COMPOSED = ("di-mi-adaea", "di-ti-mi-adaea", "di-ti-mi-cwa", "di-ti-mi-ens-logits", "ssa-cwa", "vmi-cwa")
"""Compositions that papers name, listed beside the recipes."""


@dataclass(frozen=True)
class Catalogue:
    """What is known of every recipe and part.

    Args:
        recipes: by name.
        parts: by kind and name.
    """

    recipes: Mapping[str, Info]
    parts: Mapping[str, Mapping[str, Info]]

    def attacks(self, pattern: str = "*") -> list[str]:
        """Sorted names of recipes, and of compositions that papers name, that match a shell wildcard."""
        return sorted(name for name in {*self.recipes, *COMPOSED} if fnmatch(name, pattern))

    def split(self, name: str) -> tuple[list[tuple[str, str]], str]:
        """A composition's prefixes as (kind, part), and the recipe it ends in.

        Raises:
            InputError: the name is neither a recipe nor parts in front of one.
        """
        prefixes: list[tuple[str, str]] = []
        rest = name
        while rest not in self.recipes:
            words = rest.split("-")
            ends = range(len(words) - 1, 0, -1)  # "logit-margin" before "logit"
            heads = ("-".join(words[:end]) for end in ends)
            found = next(
                ((kind, head) for head in heads for kind in PREFIXES if head in self.parts[kind]), None
            )
            if found is None:
                raise unknown("attack", name, self.recipes)
            prefixes.append(found)
            rest = rest[len(found[1]) + 1 :]
        return prefixes, rest

    def info(self, name: str) -> Info:
        """What is known of an attack; a composition inherits from the recipe it ends in."""
        prefixes, base = self.split(name)
        info = self.recipes[base]
        if not prefixes:
            return info
        parts = [self.parts[kind][token] for kind, token in prefixes]
        return Info(
            name,
            family=info.family,
            paper="; ".join(dict.fromkeys(i.paper for i in [info, *parts] if i.paper)),
            year=max((i.year for i in [info, *parts] if i.year), default=None),
            targeted=all(i.targeted for i in [info, *parts]),
            untargeted=all(i.untargeted for i in [info, *parts]),
            norms=tuple(n for n in info.norms if all(n in i.norms for i in parts)),
            couples=next((i.couples for i in [info, *parts] if i.couples != "no"), "no"),
            builder=info.builder,
            summary=f"{info.summary}, with {', '.join(token for _, token in prefixes)}",
        )

    def kinds(self, name: str) -> list[str]:
        """The kinds of which there is a part of this name."""
        return [kind for kind in KINDS if name in self.parts[kind]]


def catalogue() -> Catalogue:
    """All recipes and parts, plug-ins included; modules are imported only where they have to be."""
    if not entry_points(group=PACKAGE):
        read = from_files()
        if read is not None:
            return read
    registered: Catalogue = import_module("advens.attacks.registry").registered()
    return registered


def from_files() -> Catalogue | None:
    """What the decorators in the files of this package say; None where an argument is not a literal."""
    recipes: dict[str, Info] = {}
    parts: dict[str, dict[str, Info]] = {kind: {} for kind in KINDS}
    for folder in import_module(PACKAGE).__path__:
        for file in sorted(Path(folder).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            if not re.search(r"^@.*\b(part|recipe)\(", text, re.MULTILINE):
                continue
            try:
                for kind, info in _declared(ast.parse(text)):
                    (recipes if kind == "" else parts[kind])[info.name] = info
            except (ValueError, KeyError, TypeError):
                return None
    return Catalogue(recipes, parts)


def _declared(module: ast.Module) -> Iterator[tuple[str, Info]]:
    """The kind ("" for a recipe) and the entry of every decorator of a module.

    Raises:
        ValueError, KeyError, TypeError: an argument is no literal and no constant of the module.
    """
    constants: dict[str, ast.expr] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            constants[node.targets[0].id] = node.value
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            continue
        for call in node.decorator_list:
            if not isinstance(call, ast.Call):
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name not in ("part", "recipe"):
                continue
            given = [_literal(value, constants) for value in call.args]
            about = {str(key.arg): _literal(key.value, constants) for key in call.keywords}
            kind = given.pop(0) if name == "part" else ""
            about.pop("symbol", None)
            yield kind, Info(given[0], summary=one_line(ast.get_docstring(node)), **about)


def _literal(value: ast.expr, constants: Mapping[str, ast.expr]) -> Any:
    return ast.literal_eval(constants[value.id] if isinstance(value, ast.Name) else value)
