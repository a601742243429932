"""``advens suites``: the bundled suites."""

from __future__ import annotations

import re
from itertools import takewhile

import click

from advens.printable import say


@click.command()
@click.argument("name", required=False)
def suites(name: str | None) -> None:
    """List bundled suites, or print one."""
    from advens.benchmarks.suites import bundled_by_group, load, text_of
    from advens.listing import show

    if name is not None:
        load(name)
        say(*text_of(name).rstrip().split("\n"))
        return
    for group, names in bundled_by_group().items():
        show((group, "what it asks"), ((each, _purpose(text_of(each))) for each in names))
        say("")
    say("'advens suites NAME' prints one; 'advens run NAME' runs it.")


def _purpose(text: str) -> str:
    """The first sentence of the comment that a suite begins with."""
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    return re.split(r"(?<=\.)\s", " ".join(line.lstrip("# ") for line in lines))[0]
