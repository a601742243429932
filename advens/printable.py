"""Text that came from a file, as it is shown: it moves no cursor, breaks no line and starts no formula."""

from __future__ import annotations

import click


def printable(text: object) -> str:
    """One line: control characters, line breaks and marks of direction are escaped, as ``\\x1b``."""
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)


def say(*lines: object, err: bool = False) -> None:
    """Print lines for people."""
    for line in lines:
        click.echo(printable(line), err=err)


def table_cell(value: object) -> object:
    """A value of a CSV table: text that a spreadsheet would take for a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) and not _is_number(shown) else shown


def markdown(text: str) -> str:
    """Text inside markdown: no tags, links, code or table borders come of it."""
    shown = " ".join(printable(line) for line in text.split("\n"))
    for sign in ("\\", "`", "|", "*"):
        shown = shown.replace(sign, f"\\{sign}")
    return shown.replace("](", "]\\(").replace("<", "&lt;")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
