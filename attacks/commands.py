"""Attacks and builders on a terminal: what there is, or one entry with its parameters and paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from advens.attacks.names import Catalogue

PASSES = Path(__file__).parent / "passes.json"
WILD = frozenset("*?[")


def list_or_show(name: str | None, parts: bool) -> None:
    """List attacks, or parts; or show one. A name may be a wildcard, and without ``parts`` also a part."""
    from advens.attacks.names import catalogue
    from advens.errors import InputError, unknown
    from advens.listing import show

    known = catalogue()
    if parts:
        _parts(known, name)
        return
    if name is not None and not WILD.intersection(name):
        try:
            known.split(name)
        except InputError:
            if not known.kinds(name):
                raise
            _parts(known, name)
        else:
            _show_attack(name)
        return
    found = known.attacks(name or "*")
    if not found:
        raise unknown("attack", str(name), known.recipes)
    passes, rows = passes_of(found), []
    for each in found:
        info = known.info(each)
        what = f"{info.summary}. {info.paper}"
        rows.append((each, info.family, info.year or "", "/".join(map(str, passes[each])), what))
    show(
        ("attack", "family", "year", "F/B", "what it is, and its source"), rows,
        "F/B: forward and backward passes per image on one surrogate. Parts go before a name: "
        "di-ti-mi-ens-logits. 'advens attacks NAME' shows one, 'advens attacks --parts' lists the parts.",
    )  # fmt: skip


def passes_of(names: Sequence[str]) -> dict[str, Sequence[int]]:
    """Forward and backward passes of attacks on one surrogate, by name.

    Those of this package stand in a file, so that they are listed without importing torch; the tests hold it
    against the formulas.
    """
    kept: dict[str, Sequence[int]] = json.loads(PASSES.read_text(encoding="utf-8"))
    if set(names) <= set(kept):
        return {name: kept[name] for name in names}
    from advens.attacks.registry import create_attack

    return {name: kept[name] if name in kept else create_attack(name).passes(1) for name in names}


@click.command()
@click.argument("name", required=False)
def builders(name: str | None) -> None:
    """List surrogate builders, or show one with its parameters, defaults and paper."""
    from advens.attacks.names import catalogue
    from advens.errors import unknown
    from advens.listing import show

    known = catalogue().parts["builder"]
    if name is None:
        show(
            ("builder", "year", "what it is"),
            ((each, known[each].year or "", known[each].summary) for each in sorted(known)),
            "'advens builders NAME' shows one.",
        )
        return
    if name not in known:
        raise unknown("builder", name, known)
    _show_part("builder", name)


def _parts(known: Catalogue, name: str | None) -> None:
    """The parts whose names match, by kind; or each part of one name."""
    from fnmatch import fnmatch

    from advens.errors import unknown
    from advens.listing import show

    if name is not None and not WILD.intersection(name):
        kinds = known.kinds(name)
        if not kinds:
            raise unknown("part", name, {each for entries in known.parts.values() for each in entries})
        for number, kind in enumerate(kinds):
            if number:
                click.echo()
            _show_part(kind, name)
        return
    found = [
        (kind, each, f"{info.summary}. {info.paper}" if info.paper else info.summary)
        for kind, entries in known.parts.items() for each, info in sorted(entries.items())
        if fnmatch(each, name or "*")
    ]  # fmt: skip
    if not found:
        raise unknown("part", str(name), ())
    show(("kind", "part", "what it is, and its source"), found, "'advens attacks --parts NAME' shows one.")


def _show_attack(name: str) -> None:
    from advens.attacks.registry import attack_info, create_attack

    info, attack = attack_info(name), create_attack(name)
    click.echo(f"{name}: {info.summary}")
    click.echo(f"family    {info.family}")
    click.echo(f"paper     {info.paper}")
    targeted = ("yes" if info.untargeted else "always") if info.targeted else "no"
    click.echo(f"targeted  {targeted};  norms {', '.join(info.norms)}")
    if info.couples != "no":
        click.echo("couples   takes other images of the same shard" if info.couples == "shard"
                   else "couples   an option couples the batch")  # fmt: skip
    if info.builder:
        click.echo(f"builder   made for surrogates of '{info.builder}'; 'advens craft' builds them first")
    one = attack.passes(1)
    click.echo(f"passes    {one.forward} F, {one.backward} B per image on one surrogate")
    _show_options(attack)


def _show_part(kind: str, name: str) -> None:
    from advens.attacks.names import PREFIXES
    from advens.attacks.parts import PARTS, from_spec

    info = PARTS[kind].info(name)
    click.echo(f"{name}: {info.summary}")
    click.echo(f"kind      {kind}")
    if info.paper:
        click.echo(f"paper     {info.paper}")
    if kind in PREFIXES:
        click.echo(f"in names  {name}-NAME, as {name}-mifgsm")
    _show_options(from_spec(kind, name))


def _show_options(value: Any) -> None:
    """The fields of an attack or a part, with their values."""
    from advens.attacks.parts import FIELD_KINDS, is_part, options

    if not (known := options(value)):
        click.echo("no parameters")
        return
    click.echo("parameters")
    for key, given in known.items():
        if key == "threat":
            click.echo(f"  {'norm':<13} {given.norm}")
            click.echo(f"  {'eps':<13} {given.eps}")
            continue
        parts = given if isinstance(given, tuple) else () if given is None else (given,)
        if key in FIELD_KINDS or any(map(is_part, parts)):
            click.echo(f"  {key:<13} {', '.join(map(_written, parts)) or '-'}")
        else:
            click.echo(f"  {key:<13} {given}")


def _written(part: object) -> str:
    from advens.attacks.parts import name_of, options

    inside = ", ".join(f"{k}={v!r}" for k, v in options(part).items() if k != "threat")
    return f"{name_of(part)}({inside})" if inside else name_of(part)
