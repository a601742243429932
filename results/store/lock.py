"""Who works in a run's directory, among all processes that see the file system.

A run has one writer, or several that share it. Those that share it claim each piece of work by a file that
only one of them can create, and whose holder writes into it from time to time. A claim that stays as it is
was left by a process that died: who watches it measures that by its own clock, so clocks need not agree.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from advens.errors import InputError
from advens.files import os_errors

BEAT = 10.0
"""Seconds after which the holder of a claim writes into it again."""
DEAD = 60.0
"""Seconds after which a claim that nobody wrote into is taken for one of a process that died."""


@contextlib.contextmanager
def locked(
    directory: Path, name: str = ".lock", *, shared: bool = False, wait: bool = False
) -> Iterator[None]:
    """Holds a lock of a directory; the kernel frees it however this process ends.

    Args:
        name: of the file that is locked.
        shared: whether others may hold it at the same time that share it, too.
        wait: whether to wait for those that hold it, or else to refuse.

    Raises:
        InputError: when another process holds it (its id and host are named), or the directory
            cannot be written.
    """
    import fcntl

    path = directory / name
    with os_errors("lock", path):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                raise InputError(f"{directory} is in use by process {holder or '?'}") from None
            raise InputError(f"cannot lock {path}: {error.strerror}") from error
        with os_errors("lock", path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _holder().encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the file stays: to remove it would let two processes lock two files


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether a piece of work was claimed for the time of the block; False when it is another's.

    Raises:
        InputError: the file cannot be created.
    """
    with os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        except FileExistsError:
            descriptor = None
    if descriptor is None:
        yield False
        return
    ended, about = threading.Event(), f"{_holder()} {secrets.token_hex(8)}"
    beat = threading.Thread(target=_keep, args=(descriptor, about, ended), daemon=True)
    beat.start()
    try:
        yield True
    finally:
        ended.set()
        beat.join()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # not one that took its place
                os.unlink(path)
        os.close(descriptor)


def silent(claims: Iterable[Path]) -> list[Path]:
    """The claims that nobody writes into for `DEAD` seconds; returns early when all have shown life."""
    seen = {path: _content(path) for path in claims}
    end = time.monotonic() + DEAD
    while True:
        same = [path for path, content in seen.items() if content is not None and _content(path) == content]
        if not same or time.monotonic() >= end:
            return same
        time.sleep(min(1.0, DEAD / 10))


def _keep(descriptor: int, about: str, ended: threading.Event) -> None:
    """Write into a claim until it ends; a full disk costs the claim and not the work."""
    for count in itertools.count():
        with contextlib.suppress(OSError):
            os.pwrite(descriptor, f"{about} {count:09d}\n".encode(), 0)
            os.fsync(descriptor)
        if ended.wait(BEAT):
            return


def _content(path: Path) -> bytes | None:
    """What a claim holds, opened anew, as network file systems need it to see what others wrote."""
    try:
        return path.read_bytes()
    except OSError:
        return None


def _holder() -> str:
    return f"{os.getpid()} on {socket.gethostname()}"
