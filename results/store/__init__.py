"""The files of a run: where they lie, what they hold, and how they are written whole or not at all."""

from __future__ import annotations

from advens.files import write_bytes
from advens.results.store.files import (
    CorruptFile,
    is_whole,
    read_cell,
    read_json,
    read_table,
    write_examples,
    write_table,
)
from advens.results.store.listing import Listing, Piece
from advens.results.store.run_store import RunStore, rows_of

__all__ = [
    "CorruptFile", "Listing", "Piece", "RunStore", "is_whole", "read_cell", "read_json", "read_table",
    "rows_of", "write_bytes", "write_examples", "write_table",
]
