"""Text that came from a file, as it is shown: it moves no cursor, breaks no line and starts no formula."""

from __future__ import annotations

import unicodedata

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


_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\textasciigrave{}", '"': "''", "\u2013": "--", "\u2014": "---",
    "\u2026": r"\ldots{}",
    "±": r"$\pm$", "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$",
}  # fmt: skip


def latex(text: str) -> str:
    """Text inside LaTeX: no command, no formula and no column comes of it, in any engine without packages.

    Characters that the standard fonts lack are escaped, as ``\\u4e2d``.
    """
    shown = " ".join(printable(line) for line in text.split("\n"))
    parts = []
    for before, c in zip(" " + shown, shown, strict=False):
        parts.append("{}" * (c == before and c in "-',"))  # two of these would become one sign
        parts.append(_LATEX[c] if c in _LATEX else c if _in_latex(c) else _escaped(c))
    return "".join(parts)


def _in_latex(c: str) -> bool:
    return c.isascii() or ("\u00c0" <= c <= "\u00ff" and bool(unicodedata.decomposition(c)))


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode().replace("\\", _LATEX["\\"])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
