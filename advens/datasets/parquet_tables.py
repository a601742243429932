"""Reading and checking what a parquet shard says of its images: all columns but the images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from advens.datasets.source import Integers
from advens.errors import InputError, first_line, nearest

IMAGE, LABEL, ID, TARGET, HEIGHT, WIDTH = (
    "image", "label", "sample_id", "target_label", "height", "width",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Table:
    """The small columns of one shard.

    Args:
        file: the shard.
        group_rows: how many rows every row group has.
        labels: (n,) int64.
        targets: (n,) int64 or None.
        sizes: (n, 2) height and width, or None; only where images may be raw pixels.
        ids: n names or None.
        class_names: from Hugging Face's metadata, or None.
    """

    file: Path
    group_rows: tuple[int, ...]
    labels: Integers
    targets: Integers | None
    sizes: Integers | None
    ids: tuple[str, ...] | None
    class_names: tuple[str, ...] | None


def read_table(file: Path) -> Table:
    """Read and check the columns of a shard. Raises InputError; see `parquet.load`."""
    with _opened(file) as shard:
        schema = shard.schema_arrow
        for column in (IMAGE, LABEL):
            if column not in schema.names:
                raise InputError(f"{file} has no column '{column}'{nearest(column, schema.names)}")
        raw = _holds_plain_bytes(file, schema.field(IMAGE).type) and all(
            column in schema.names and _is_integer(schema.field(column).type)
            for column in (HEIGHT, WIDTH)
        )
        columns = [c for c in (LABEL, ID, TARGET) if c in schema.names]
        columns += [HEIGHT, WIDTH] if raw else []
        try:
            table = shard.read(columns=columns, use_threads=False)
        except (OSError, ValueError) as error:
            raise _damaged(file, error) from error
        groups = tuple(
            shard.metadata.row_group(i).num_rows for i in range(shard.metadata.num_row_groups)
        )
    return Table(
        file,
        groups,
        _whole_numbers(file, table, LABEL),
        _whole_numbers(file, table, TARGET) if TARGET in columns else None,
        np.stack([_whole_numbers(file, table, c) for c in (HEIGHT, WIDTH)], 1) if raw else None,
        tuple(map(str, table.column(ID).to_pylist())) if ID in columns else None,
        _class_names(schema),
    )


def read_images(file: Path, group: int) -> Any:
    """The image cells of one row group: a pyarrow array of bytes.

    Without pyarrow's threads: the process may be a forked worker.
    """
    with _opened(file) as shard:
        try:
            cells = shard.read_row_group(group, columns=[IMAGE], use_threads=False).column(IMAGE)
        except (OSError, ValueError) as error:
            raise _damaged(file, error) from error
    array = cells.combine_chunks()
    import pyarrow as pa

    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    return array.field("bytes") if pa.types.is_struct(array.type) else array


def joined(tables: Sequence[Table], column: str) -> Integers | None:
    """One column of all shards, or None where none has it. Raises InputError where only some do."""
    parts = {table.file: getattr(table, column) for table in tables}
    absent = [file for file, part in parts.items() if part is None]
    if len(absent) == len(parts):
        return None
    if absent:
        present = next(file for file in parts if file not in absent)
        raise InputError(
            f"shards differ: '{present}' has {column}, '{absent[0]}' has none; they must have the "
            f"same columns"
        )
    return np.concatenate(list(parts.values()))


def unique_ids(tables: Sequence[Table]) -> tuple[str, ...]:
    """The rows' ids. Raises InputError when one is there twice."""
    seen: dict[str, Path] = {}
    for table in tables:
        named = table.ids or [f"{table.file.name}#{row}" for row in range(len(table.labels))]
        for name in named:
            if name in seen:
                raise InputError(f"{table.file}: {ID} '{name}' is in '{seen[name]}' already")
            seen[name] = table.file
    return tuple(seen)


def _opened(file: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> InputError:
    return InputError(f"'{file}' is not a whole parquet file: {first_line(error)}")


def _holds_plain_bytes(file: Path, kind: Any) -> bool:
    """Whether images are bytes (True) or a struct with bytes (False); raises when neither."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
        if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
            return False
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    raise InputError(
        f"{file}: column '{IMAGE}' is of type {kind}; it must hold the bytes of images, or structs "
        f"with a field 'bytes'"
    )


def _is_integer(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _whole_numbers(file: Path, table: Any, column: str) -> Integers:
    cells = table.column(column)
    if not _is_integer(cells.type):
        raise InputError(f"{file}: column '{column}' is of type {cells.type}; integers are needed")
    if cells.null_count:
        raise InputError(f"{file}: column '{column}' has {cells.null_count} missing values")
    values = cells.to_numpy().astype(np.int64)
    if len(values) and values.min() < 0:
        row = int(values.argmin())
        raise InputError(f"{file} row {row}: {column} {values[row]} is negative")
    return np.asarray(values)


def _class_names(schema: Any) -> tuple[str, ...] | None:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[LABEL]["names"]))
    except (KeyError, TypeError, ValueError):
        return None
