"""Files: written whole or not at all, read only when they are regular, and errors of one line."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from advens.errors import InputError


@contextlib.contextmanager
def os_errors(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError into one line: ``cannot write runs/x: No space left on device``."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot {action} {path}: {error.strerror or error}") from error


def write_bytes(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file atomically from its consecutive parts, and the folders above it where they are missing.

    Temporary file in the same folder, fsync, rename, fsync of the folder. A process that is killed in between
    leaves at most a file ``NAME.*.tmp``.

    Raises:
        InputError: the file cannot be written, because the disk is full or read-only for instance.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with os_errors("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill; it takes the place of ``path`` when the block ends without an error."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    if path.exists():
        shutil.rmtree(path)
    fresh.rename(path)


def open_regular(path: Path) -> BinaryIO:
    """A regular file, opened for reading without waiting for a writer.

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
    """All bytes of a regular file. Raises as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


class LinkError(InputError):
    """A link in a folder from elsewhere that leads out of it."""


def inside(folder: Path, *parts: str) -> Path:
    """The path of something in a folder from elsewhere, whether or not it is there.

    Raises:
        LinkError: it is a link, or lies in one, that leads out of the folder.
    """
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink() and not _leads_into(folder, path):
            raise LinkError(f"'{path}' is a link that leads out of {folder}")
    return path


def _leads_into(folder: Path, link: Path) -> bool:
    try:
        return link.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError):  # links in a circle
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(descriptor)
