"""Images that are files on a disk: what ``folder:`` and ``csv:`` share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from advens.datasets.decoding import decode, header_size
from advens.datasets.source import Bytes, Integers
from advens.digest import file_digest
from advens.errors import InputError


@dataclass(frozen=True, eq=False)
class FileSource:
    """One file per image, listed but not opened.

    Args:
        root: the folder the names are relative to.
        sample_ids: (N,) file names below ``root``, unique.
        labels: (N,) int64.
        num_classes: how many classes there are.
        class_names: their names.
        target_labels: (N,) wanted classes for targeted attacks.
    """

    root: Path
    sample_ids: Sequence[str]
    labels: Integers
    num_classes: int
    class_names: tuple[str, ...] | None = None
    target_labels: Integers | None = None
    in_memory: bool = False
    _digests: dict[int, bytes] = field(default_factory=dict, repr=False)

    def path(self, row: int) -> Path:
        """Where a row's file lies."""
        return self.root / self.sample_ids[row]

    def header_sizes(self, rows: Integers) -> Iterator[tuple[int, tuple[int, int]]]:
        """(H, W) from every file's header."""
        for row in rows.tolist():
            yield row, header_size(self.path(row), f"'{self.path(row)}'")

    def pixels(self, row: int) -> Bytes:
        """The decoded file, (3, H, W)."""
        return decode(self.path(row), f"'{self.path(row)}'")

    def content(self, rows: Integers) -> Iterator[bytes]:
        """The digest of every file's bytes, each read once."""
        for row in rows.tolist():
            if row not in self._digests:
                try:
                    self._digests[row] = bytes.fromhex(file_digest(self.path(row)))
                except OSError as error:
                    reason = error.strerror or "unreadable"
                    raise InputError(f"cannot read '{self.path(row)}': {reason}") from error
            yield self._digests[row]
