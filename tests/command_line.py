"""The command line called in the process of the tests, and its one line for people."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest

from advens.cli import invoke

Said = TypeVar("Said")


def caller(
    said: Callable[[int, str, str], Said], capsys: pytest.CaptureFixture[str]
) -> Callable[..., Said]:
    """``call("run", path)``: the exit code and what stood on standard output and error, given to ``said``."""

    def call(*arguments: object) -> Said:
        capsys.readouterr()
        code = invoke([str(argument) for argument in arguments])
        return said(code, *capsys.readouterr())

    return call


def only_line(lines: Sequence[str], *words: str) -> str:
    """Asserts that there is one line, which begins with ``advens:`` and holds the words; gives it."""
    assert len(lines) == 1, lines
    assert lines[0].startswith("advens: "), lines
    for word in words:
        assert word in lines[0], lines[0]
    return lines[0]
