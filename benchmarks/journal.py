"""What an interrupted verification has found already, so that the same command goes on.

The journal is in the cache of the user who verifies, never in the run, which may come from somebody else. It
names cells in which nothing was wrong, with the digest of every file that was read for this. Files are read
again before it is believed, and models and data are compared with the plan of the run in any case.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from advens.benchmarks.checks import Checked
from advens.benchmarks.environment import arithmetic, source_digest, versions
from advens.cache import cache_root
from advens.digest import value_digest
from advens.errors import InputError, RunError
from advens.results.store import Piece, RunStore
from advens.results.store.files import seal_of

Pieces = Mapping[str, Sequence[Piece]]


class Journal:
    """Sound cells of a run, found by this code with these packages on such a device.

    Args:
        store: of the run.
        device: that checks.
    """

    def __init__(self, store: RunStore, device: str) -> None:
        self.store = store
        about = [str(store.directory.resolve()), source_digest(), versions(), arithmetic(device)]
        self.path = cache_root("verify") / f"{value_digest(about, 32)}.jsonl"

    def found(self, pieces: Pieces) -> dict[str, Checked]:
        """The cells that need not be checked again, by name.

        Args:
            pieces: the rows of every cell that are to be checked.
        """
        entries: dict[str, dict[str, Any]] = {}
        for line in self._lines():
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                entry = json.loads(line)
                name, seals = entry["cell"], dict(entry["seals"])
                if entry["pieces"] == _told(pieces[name]) and seals.keys() == _files(name, pieces[name]):
                    entries[name] = entry
        files = sorted({file for entry in entries.values() for file in entry["seals"]})
        with ThreadPoolExecutor(8) as pool:
            now = dict(zip(files, pool.map(self._seal, files), strict=True))
        return {
            name: Checked(name, True, int(entry["rows"]), int(entry["borderline"]), (), entry["seals"])
            for name, entry in entries.items()
            if all(now[file] == seal for file, seal in entry["seals"].items())
        }

    def add(self, cells: Sequence[Checked], pieces: Pieces) -> None:
        """Note the cells in which nothing is wrong; where this cannot be written, they are checked again."""
        lines = [
            json.dumps({
                "cell": each.cell, "pieces": _told(pieces[each.cell]), "rows": each.rows,
                "borderline": each.borderline, "seals": dict(each.seals),
            })
            for each in cells if each.sound and not each.mismatches
        ]  # fmt: skip
        if not lines:
            return
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
            with os.fdopen(os.open(self.path, flags, 0o600), "w") as file:
                file.write("\n" + "\n".join(lines))  # whatever a killed process left before it

    def remove(self) -> None:
        """The verification is finished, or starts anew."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _lines(self) -> list[str]:
        """What is noted; nothing where somebody else can write it."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with suppress(OSError), os.fdopen(os.open(self.path, flags), "rb") as file:
            about = os.fstat(file.fileno())
            if stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o022:
                return file.read().decode(errors="replace").splitlines()
        return []

    def _seal(self, file: str) -> str | None:
        """The digest that a file has now; None where it cannot be read."""
        try:
            return seal_of(self.store.path(*Path(file).parts))
        except (InputError, RunError):
            return None


def _told(pieces: Sequence[Piece]) -> list[list[Any]]:
    return [[piece.key, piece.file, piece.start, piece.stop] for piece in pieces]


def _files(name: str, pieces: Sequence[Piece]) -> set[str]:
    """The files that the check of a cell reads."""
    return {f"examples/{name}.parquet", *(f"samples/{piece.file}" for piece in pieces)}
