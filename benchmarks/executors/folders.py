"""Whether other machines see the folders that tasks write into."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from advens.benchmarks.executors.base import Task
from advens.errors import InputError
from advens.files import write_bytes

PATIENCE = 5.0
"""Seconds in which a file appears on every machine: network file systems remember what was not there."""


@contextmanager
def marked(tasks: Iterable[Task]) -> Iterator[dict[str, str]]:
    """A file in every folder that tasks write into; they are removed in the end.

    Returns:
        The absolute path of every file, and what is in it: for `look`.
    """
    found = {getattr(task, "directory", None) for task in tasks}
    with ExitStack() as stack:
        marks = {}
        for folder in sorted(Path(each).absolute() for each in found if each is not None):
            path, token = folder / f"seen-{secrets.token_hex(8)}.tmp", secrets.token_hex(16)
            write_bytes(path, token.encode())
            stack.callback(path.unlink, missing_ok=True)
            marks[str(path)] = token
        yield marks


def look(marks: Mapping[str, str], machine: str) -> None:
    """Raise InputError when this machine does not see the files of `marked`."""
    deadline = time.monotonic() + PATIENCE
    for path, token in marks.items():
        while _content(path) != token:
            if time.monotonic() > deadline:
                raise InputError(
                    f"{machine} does not see {os.path.dirname(path)}; give a folder that all machines share"
                )
            time.sleep(0.2)


def _content(path: str) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return Path(path).read_text()
    return None
