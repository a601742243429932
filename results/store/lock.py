"""One writer per run directory, among all processes that see the file system."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from advens.errors import InputError
from advens.files import os_errors


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds ``<directory>/.lock``; the kernel frees it however this process ends.

    Raises:
        InputError: when another process holds it (its id and host are named), or the directory
            cannot be written.
    """
    import fcntl

    path = directory / ".lock"
    with os_errors("lock", path):
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                raise InputError(f"{directory} is in use by process {holder or '?'}") from None
            raise InputError(f"cannot lock {path}: {error.strerror}") from error
        with os_errors("lock", path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # the file stays: to remove it would let two processes lock two files
