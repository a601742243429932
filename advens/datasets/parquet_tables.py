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

ID, TARGET, HEIGHT, WIDTH = "sample_id", "target_label", "height", "width"


@dataclass(frozen=True, eq=False)
class Table:
    """The small columns of one shard.

    Args:
        file: the shard.
        image: the column that holds the images.
        group_rows: how many rows every row group has.
        labels: (n,) int64.
        targets: (n,) int64 or None.
        sizes: (n, 2) height and width, or None; only where images may be raw pixels.
        ids: n names or None.
        class_names: from Hugging Face's metadata, or None.
    """

    file: Path
    image: str
    group_rows: tuple[int, ...]
    labels: Integers
    targets: Integers | None
    sizes: Integers | None
    ids: tuple[str, ...] | None
    class_names: tuple[str, ...] | None


def read_table(file: Path, image: str | None = None, label: str | None = None) -> Table:
    """Read and check the columns of a shard.

    Args:
        image, label: names of the two columns; by default ``image`` and ``label``, or the only
            column that Hugging Face's metadata declares to be an image, and to be a class.

    Raises:
        InputError: see `parquet.load`.
    """
    with _opened(file) as shard:
        schema = shard.schema_arrow
        features = _features(schema)
        image = _column(file, "image", image, "Image", schema.names, features)
        label = _column(file, "label", label, "ClassLabel", schema.names, features)
        raw = _holds_plain_bytes(file, image, schema.field(image).type) and all(
            column in schema.names and _is_integer(schema.field(column).type)
            for column in (HEIGHT, WIDTH)
        )
        columns = [label, *(c for c in (ID, TARGET) if c in schema.names)]
        columns += [HEIGHT, WIDTH] if raw else []
        try:
            table = shard.read(columns=columns, use_threads=False)
        except (OSError, ValueError) as error:
            raise _damaged(file, error) from error
        groups = tuple(
            shard.metadata.row_group(i).num_rows for i in range(shard.metadata.num_row_groups)
        )
    labels = _whole_numbers(file, table, label)
    names = _class_names(features, label)
    if names is not None and len(labels) and labels.max() >= len(names):
        row = int(labels.argmax())
        raise InputError(
            f"{file} row {row}: {label} {labels[row]} is beyond the {len(names)} classes that the file names"
        )
    return Table(
        file,
        image,
        groups,
        labels,
        _whole_numbers(file, table, TARGET) if TARGET in columns else None,
        np.stack([_whole_numbers(file, table, c) for c in (HEIGHT, WIDTH)], 1) if raw else None,
        tuple(map(str, table.column(ID).to_pylist())) if ID in columns else None,
        names,
    )


def read_images(file: Path, group: int, column: str) -> Any:
    """The image cells of one row group: a pyarrow array of bytes.

    Without pyarrow's threads: the process may be a forked worker.
    """
    with _opened(file) as shard:
        try:
            cells = shard.read_row_group(group, columns=[column], use_threads=False).column(column)
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


def _column(
    file: Path,
    role: str,
    given: str | None,
    kind: str,
    present: Sequence[str],
    features: dict[str, Any],
) -> str:
    """The column of a role: the one given, the one called so, or the only one declared a ``kind``."""
    wanted = given or role
    if wanted in present:
        return wanted
    declared = [name for name in present if _is(features.get(name), kind)]
    if given is None and len(declared) == 1:
        return declared[0]
    hint = (
        f"; add ?{role}={declared[0]}" if declared and given is None else nearest(wanted, present)
    )
    if len(declared) > 1 and given is None:
        hint += f" (or {', '.join(declared[1:])})"
    raise InputError(f"{file} has no column '{wanted}'{hint}")


def _is(feature: object, kind: str) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == kind


def _holds_plain_bytes(file: Path, column: str, kind: Any) -> bool:
    """Whether images are bytes (True) or a struct with bytes (False); raises when neither."""
    import pyarrow as pa

    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        inner = kind.field("bytes").type
        if pa.types.is_binary(inner) or pa.types.is_large_binary(inner):
            return False
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    raise InputError(
        f"{file}: column '{column}' is of type {kind}; it must hold the bytes of images, or structs "
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


def _features(schema: Any) -> dict[str, Any]:
    """What Hugging Face's metadata says of the columns; nothing where there is none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(features: dict[str, Any], label: str) -> tuple[str, ...] | None:
    feature = features.get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    return tuple(map(str, names)) if isinstance(names, list) and names else None
