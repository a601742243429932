"""Progress: a bar on a terminal, plain lines in a log, nothing when nobody looks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from advens.printable import printable

if TYPE_CHECKING:
    from rich.console import Console

_NOTE: ContextVar[Callable[[str], None] | None] = ContextVar("note", default=None)


def tick(text: str) -> None:
    """Says how far the task at hand is, where it is done in the process that shows the progress."""
    note = _NOTE.get()
    if note is not None:
        note(text)


class Progress:
    """Says how far a list of tasks is.

    Args:
        console: where to; None says nothing.
        every: seconds between two lines of a log.
        part: which part of a longer work this is, said before every task.
    """

    def __init__(self, console: Console | None = None, every: float = 10.0, part: str = "") -> None:
        self.console = console
        self.every = every
        self.part = part

    def of(self, part: str) -> Progress:
        """The same for one part of a longer work."""
        return Progress(self.console, self.every, part)

    @contextmanager
    def task(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        """A context for ``total`` tasks; call what it gives with a title after each."""
        what = f"{self.part}, {what}" if self.part else what
        if self.console is None or total == 0:
            yield lambda title: None
        elif self.console.is_terminal:
            yield from self._bar(what, total)
        else:
            yield from self._lines(what, total)

    def _bar(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("[dim]{task.fields[title]}", markup=True),
        )  # fmt: skip

        def say(text: str, advance: int) -> None:
            bar.update(task, advance=advance, title=escape(printable(text)))

        with Bar(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(what, total=total, title="")
            token = _NOTE.set(lambda text: say(text, 0))
            try:
                yield lambda title: say(title, 1)
            finally:
                _NOTE.reset(token)

    def _lines(self, what: str, total: int) -> Iterator[Callable[[str], None]]:
        assert self.console is not None
        console, started = self.console, time.monotonic()
        state = {"done": 0, "said": started}

        def say(text: str, at_once: bool = False) -> None:
            now = time.monotonic()
            if at_once or now - state["said"] >= self.every:
                state["said"] = now
                console.print(
                    f"{what}: {state['done']:.0f}/{total}, {now - started:.0f} s, {printable(text)}",
                    soft_wrap=True, markup=False, highlight=False,
                )  # fmt: skip

        def advance(title: str) -> None:
            state["done"] += 1
            say(f"last: {title}", at_once=state["done"] == total)

        token = _NOTE.set(say)
        try:
            yield advance
        finally:
            _NOTE.reset(token)
