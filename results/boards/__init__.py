"""Boards: tables that follow from the rows of runs, each declared once and found by name.

`BOARDS` has all of them by name, those of other packages too (entry-point group ``advens.boards``).
"""

from __future__ import annotations

from advens.results.boards.board import (
    BOARDS,
    Board,
    board_mismatches,
    declare,
    read_board,
    to_table,
    write_board,
)
from advens.results.columns import Column

__all__ = [
    "BOARDS", "Board", "Column", "board_mismatches", "declare", "read_board", "to_table", "write_board",
]
