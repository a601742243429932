"""The archive of an entry: a plain tar file that is packed alike everywhere, and read as a stranger's.

    submission.toml       who made it and how often it was tried, the suite, the code
    run/                  suite, environment, plan, rows, images and boards, as the run stored them
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO

from advens.benchmarks.defense_goal import DEFENSE
from advens.benchmarks.goals import ATTACK_GOALS
from advens.errors import InputError, first_line
from advens.files import open_regular, read_regular
from advens.results.boards.board import BOARDS

ABOUT, RUN = "submission.toml", "run"
MOST_FILES, MOST_ROWS = 200_000, 10_000_000
"""Files of an archive, and rows of a table."""
LARGEST_TEXT, LARGEST_TABLE = 1 << 24, 1 << 31
"""Bytes of a text, and of a table before and after decompression."""
_KEY = r"[A-Za-z0-9_=+@~-][A-Za-z0-9_.=+@~-]*"
_TABLE = rf"(?:(?:examples|samples|measures)/)?{_KEY}\.parquet"
_OF_RUN = re.compile(rf"(?!traces/)(?:{_KEY}/)?(?:suite\.toml|(?:environment|plan|trial)\.json|{_TABLE})")
"""Files of a run, or of one of the runs in a folder."""


@lru_cache(maxsize=1)
def _boards() -> frozenset[str]:
    """The files of boards, which follow from the rows of a run."""
    given = {*DEFENSE.given, *(name for goal in ATTACK_GOALS.values() for name in goal.given)}
    return frozenset(BOARDS.get(name).file for name in BOARDS.names() if name not in given)


def _belongs(name: str) -> bool:
    """Whether a file of this name belongs to the run of an entry."""
    return bool(_OF_RUN.fullmatch(name)) and PurePosixPath(name).name not in _boards()


def pack(directory: Path, about: bytes, file: IO[bytes]) -> None:
    """Write an archive; the same run gives the same bytes.

    Boards, which follow from the rows, traces, PNG files and leftovers are not packed, and the environment
    without the kernel's release.

    Args:
        directory: of the run.
        about: the bytes of ``submission.toml``.

    Raises:
        InputError: a file is a link.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, name in _files(directory):
            content = read_regular(path)
            _add(tar, f"{RUN}/{name}", _general(content) if path.name == "environment.json" else content)
        _add(tar, ABOUT, about)  # last, so that an archive that was cut off has none


def _files(directory: Path) -> Iterator[tuple[Path, str]]:
    """The files of a run that belong to an entry, and their names."""
    names = {path.relative_to(directory).as_posix(): path for path in directory.rglob("*")}
    for name, path in sorted(names.items()):
        if _belongs(name) and not path.is_dir():
            if path.resolve() != directory.resolve() / name:
                raise InputError(f"{path} is a link; an entry holds files")
            yield path, name


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # nobody's, of 1970, mode 0644
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _general(content: bytes) -> bytes:
    """The environment without the kernel's release, which may tell one machine from all others."""
    try:
        told = json.loads(content)
        system, *rest = str(told["platform"]).split("-")
        kinds = [part for part in rest if part in ("x86_64", "aarch64", "arm64")]
        told["platform"] = "-".join([system, *kinds[:1]])
    except (ValueError, KeyError, TypeError, RecursionError):
        return content  # damaged, which verify says
    return (json.dumps(told, indent=2) + "\n").encode()


def unpack(archive: Path, folder: Path) -> None:
    """Unpack an entry into a new folder.

    Every header is looked at before anything is written: an entry is a plain tar archive of regular files
    whose names are those of a submission and a run, each once.

    Raises:
        InputError: the archive is damaged or holds anything else, or the disk is too small for it.
    """
    try:
        with open_regular(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            total = _looked_at(tar, file)
            folder.mkdir()
            if total > shutil.disk_usage(folder).free:
                raise InputError(f"{total >> 20} MiB are not free in {folder.parent}")
            # it refuses what was refused already, once more; older Pythons have no filters
            tar.extraction_filter = getattr(tarfile, "data_filter", None)
            tar.extractall(folder)
    except InputError:
        raise
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise InputError(f"not a tar archive, or a damaged one ({first_line(error)})") from None
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}") from None


def _looked_at(tar: tarfile.TarFile, file: IO[bytes]) -> int:
    """Bytes of all members. Raises InputError for a member that no entry has."""
    names: set[str] = set()
    total = end = 0
    for member in tar:
        name = member.name
        if name != ABOUT and not (name.startswith(f"{RUN}/") and _belongs(name[len(RUN) + 1 :])):
            raise InputError(f"'{name[:200]}' is no file of an entry")
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse or member.pax_headers:
            raise InputError(f"'{name}' is no plain file; an entry holds no links, devices or sparse files")
        if name.casefold() in names:
            raise InputError(f"'{name}' is there twice, or another name differs from it in capitals only")
        names.add(name.casefold())
        if len(names) > MOST_FILES:
            raise InputError(f"there are more than {MOST_FILES} files in it")
        if member.size > (LARGEST_TABLE if name.endswith(".parquet") else LARGEST_TEXT):
            raise InputError(f"'{name}' is too large: {member.size} bytes")
        total += member.size
        end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    file.seek(end)
    rest = file.read(4 * tarfile.RECORDSIZE)
    if len(rest) < 2 * tarfile.BLOCKSIZE or rest.strip(b"\0") or file.read(1):
        raise InputError("the archive is cut off, or something follows its end")
    for wanted in (ABOUT, f"{RUN}/suite.toml"):
        if wanted not in names:
            raise InputError(f"it is no entry: it holds no {wanted}")
    return total


def refuse_large_tables(folder: Path) -> None:
    """Raise InputError for a table below a folder that claims more rows or bytes than any run has.

    What claims less than it holds meets the limits of the sandbox.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted(folder.rglob("*.parquet")):
        try:
            about = pq.read_metadata(path)
            size = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups))
        except (pa.ArrowException, OSError, ValueError):
            continue  # damaged, which is said where it is read
        if size > LARGEST_TABLE or about.num_rows > MOST_ROWS:
            raise InputError(f"{path.name} is too large: {about.num_rows} rows, {size} bytes")
