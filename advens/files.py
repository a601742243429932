"""Opening files that somebody else may have put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from advens.errors import InputError


def open_regular(path: Path) -> BinaryIO:
    """A file for reading, which waits for nobody.

    Raises:
        InputError: it is a pipe, a socket, a device or a folder.
        OSError: it does not exist or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"'{path}' is not a regular file")
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """All bytes of a file; raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()
