"""``advens defenses``."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
def defenses(name: str | None) -> None:
    """List defenses (NAME may be a wildcard), or show one with its parameters, defaults and paper."""
    from advens.defenses.registry import DEFENSES, create_defense, describe, list_defenses
    from advens.errors import unknown
    from advens.listing import show

    if name is not None and not any(c in name for c in "*?["):
        info = DEFENSES.info(name)
        click.echo(f"{name}: {info.summary}\nfamily    {info.family}\npaper     {info.paper}\nparameters")
        described = describe(create_defense(name))
        described.pop("defense")
        for key, value in (described | described.pop("training")).items():
            click.echo(f"  {key:<22} {value}")
        return
    found = list_defenses(name or "*")
    if not found:
        raise unknown("defense", str(name), DEFENSES)
    infos = ((each, DEFENSES.info(each)) for each in found)
    show(
        ("defense", "family", "year", "what it is"),
        ((each, info.family, info.year or "", info.summary) for each, info in infos),
        "'advens defenses NAME' shows one.",
    )
