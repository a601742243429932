"""The columns of tables, declared once: type, unit and meaning, and how people read them.

A column declared here or in a board is part of the parquet schema and its metadata, of csv and json, of the
tables on terminals and in markdown, and of the generated documentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from advens.results.formats import Format, Plain

SCHEMA_VERSION = 1
KIND = b"advens.kind"
VERSION = b"advens.schema_version"
PLAIN = Plain()
TEXT, INT, REAL, BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()


def matches(pattern: str, name: str) -> bool:
    """Whether a name is a pattern's: the same, or with something in place of its ``*``."""
    if "*" not in pattern:
        return name == pattern
    before, _, after = pattern.partition("*")
    return len(name) > len(before) + len(after) and name.startswith(before) and name.endswith(after)


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: its name; with a ``*`` in it, a pattern for columns whose names depend on the suite.
        type: of its values.
        meaning: one line.
        unit: of its values.
        nullable: whether a value may be missing.
        optional: whether the column may be missing; a pattern always may.
        header: above the column where people read it, with the ``*`` of a pattern replaced by what it
            matched; None for a column that is only in files, csv and json.
        format: how its values are written for people.
        when: ``several`` shows it only when its values differ, ``known`` only when it holds a value.
        unless: a column in whose place it is shown, when that one holds no value.
    """

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    nullable: bool = False
    optional: bool = False
    header: str | None = None
    format: Format = PLAIN
    when: Literal["always", "several", "known"] = "always"
    unless: str = ""

    @property
    def pattern(self) -> bool:
        """Whether the name stands for several columns."""
        return "*" in self.name

    def matches(self, name: str) -> bool:
        """Whether a column of this name is declared here."""
        return matches(self.name, name)

    def title(self, name: str) -> str:
        """The header of a column of this name."""
        before, _, after = self.name.partition("*")
        inside = name[len(before) : len(name) - len(after)] if self.pattern else ""
        return (self.header or "").replace("*", inside)

    def field(self, name: str) -> pa.Field:
        """The parquet field of a column of this name."""
        about = {"description": self.meaning, "unit": self.unit}
        return pa.field(name, self.type, nullable=self.nullable, metadata=about)


@dataclass(frozen=True)
class Layout:
    """The columns of one kind of table.

    Args:
        kind: its name, which stands in the metadata of every file.
        columns: in order. Of two that match a name the first declares it.
    """

    kind: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """The names that every table has, in order."""
        return [column.name for column in self.columns if not column.pattern and not column.optional]

    @property
    def fixed(self) -> bool:
        """Whether all tables of the kind have the same columns."""
        return len(self.names) == len(self.columns)

    def column(self, name: str) -> Column | None:
        """The declaration of a name."""
        return next((column for column in self.columns if column.matches(name)), None)

    def schema(self, names: Sequence[str] | None = None) -> pa.Schema:
        """The parquet schema of a table with these columns; of the fixed ones when none are named."""
        declared = [(name, self.column(name)) for name in (self.names if names is None else names)]
        fields = [column.field(name) for name, column in declared if column is not None]
        metadata = {KIND: self.kind.encode(), VERSION: str(SCHEMA_VERSION).encode()}
        return pa.schema(fields, metadata=metadata)

    def missing(self, names: Iterable[str]) -> list[str]:
        """The columns that a table with these names lacks."""
        known = set(names)
        return [name for name in self.names if name not in known]

    def unknown(self, names: Iterable[str]) -> list[str]:
        """The names that are not declared."""
        return [name for name in names if self.column(name) is None]

    def fits(self, schema: pa.Schema) -> bool:
        """Whether names and types are those of the kind, and in order where these are fixed.

        Nullable columns of a fixed layout may be missing: older runs did not have them.
        """
        names = list(schema.names)
        if len(set(names)) < len(names) or self.unknown(names):
            return False
        if schema.types != self.schema(names).types:
            return False
        if not self.fixed:
            return not self.missing(names)
        there = [name for name in self.names if name in names]
        return names == there and all(c.nullable for c in self.columns if c.name not in there)
