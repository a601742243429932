"""``advens attacks``: what there is, or one attack with its parameters, defaults and paper."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
def attacks(name: str | None) -> None:
    """List attacks (NAME may be a wildcard), or show one with its parameters, defaults and paper."""
    from advens.attacks.registry import RECIPES, attack_info, list_attacks
    from advens.errors import unknown
    from advens.listing import show

    if name is not None and not any(c in name for c in "*?["):
        _show(name)
        return
    found = list_attacks(name or "*")
    if not found:
        raise unknown("attack", str(name), RECIPES)
    infos = ((each, attack_info(each)) for each in found)
    show(
        ("attack", "family", "year", "what it is"),
        ((each, info.family, info.year or "", info.summary) for each, info in infos),
        "Parts go before a name: di-ti-mi-ens-logits. 'advens attacks NAME' shows one.",
    )


def _show(name: str) -> None:
    from advens.attacks.parts import FIELD_KINDS, options
    from advens.attacks.registry import attack_info, create_attack

    info, attack = attack_info(name), create_attack(name)
    click.echo(f"{name}: {info.summary}")
    click.echo(f"family    {info.family}")
    click.echo(f"paper     {info.paper}")
    click.echo(f"targeted  {'yes' if info.targeted else 'no'};  norms {', '.join(info.norms)}")
    if info.couples != "no":
        click.echo("couples   takes other images of the same shard" if info.couples == "shard"
                   else "couples   an option couples the batch")  # fmt: skip
    if info.builder:
        click.echo(f"builder   made for surrogates of '{info.builder}'; 'advens craft' builds them first")
    one = attack.passes(1)
    click.echo(f"passes    {one.forward} F, {one.backward} B per image on one surrogate")
    click.echo("parameters")
    for key, value in options(attack).items():
        if key == "threat":
            click.echo(f"  {'norm':<12} {value.norm}")
            click.echo(f"  {'eps':<12} {value.eps}")
        elif key in FIELD_KINDS:
            parts = value if isinstance(value, tuple) else (value,)
            click.echo(f"  {key:<12} {', '.join(_part(part) for part in parts) or '-'}")
        else:
            click.echo(f"  {key:<12} {value}")


@click.command()
@click.argument("name", required=False)
def builders(name: str | None) -> None:
    """List surrogate builders, or show one with its parameters, defaults and paper."""
    from advens.attacks.parts import PARTS, from_spec, options
    from advens.listing import show

    known = PARTS["builder"]
    if name is None:
        infos = ((each, known.info(each)) for each in known.names())
        show(
            ("builder", "year", "what it is"),
            ((each, info.year or "", info.summary) for each, info in infos),
            "'advens builders NAME' shows one.",
        )
        return
    builder = from_spec("builder", name)
    click.echo(f"{name}: {known.info(name).summary}\npaper     {known.info(name).paper}\nparameters")
    for key, value in options(builder).items():
        click.echo(f"  {key:<13} {_part(value) if hasattr(value, 'part_name') else value}")


def _part(value: object) -> str:
    from advens.attacks.parts import name_of, options

    inside = ", ".join(f"{k}={v!r}" for k, v in options(value).items())
    return f"{name_of(value)}({inside})" if inside else name_of(value)
