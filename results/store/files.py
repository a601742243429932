"""One parquet file, written whole or not at all and read with every byte checked.

Page checksums cover the data pages only. A flipped byte in the footer would go unseen, and the
footer holds what a cell was. So a file is *sealed*: 40 bytes between its last page and its footer
hold a mark and the sha256 of all other bytes. Parquet finds the footer from the end of the file and
the pages by their offsets from its start, so every parquet reader skips the seal.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from advens.errors import InputError, RunError
from advens.files import os_errors, read_regular, write_bytes
from advens.results.columns import Layout
from advens.results.store import schema

if TYPE_CHECKING:
    import pandas as pd

_MARK = b"ADVSEAL1"
_SEAL = len(_MARK) + hashlib.sha256().digest_size
_TAIL = 1 << 15
_VARIED = ("sample_id", "sha256")  # strings that do not repeat


class CorruptFile(RunError):
    """A file of a run that is truncated, damaged, or not what its name says."""

    def __init__(self, path: Path, why: str, remedy: str = "delete it and run the suite again") -> None:
        super().__init__(f"{path} is corrupt: {why}; {remedy}")
        self.path, self.why = path, why


def write_table(path: Path, table: pa.Table) -> None:
    """Writes a table of a known kind atomically; the same table gives the same bytes.

    Temporary file in the same folder, fsync, rename, fsync of the folder. What is killed in between
    leaves at most a ``*.tmp`` that ``RunStore.clean`` removes.

    Raises:
        InputError: when the folder cannot be written (read-only, full, not a folder).
    """
    write_bytes(path, *_sealed(_encoded(table)))


def read_table(path: Path, kind: str | Layout | None = None) -> pa.Table:
    """Reads a file with all its bytes checked.

    Args:
        kind: what the file must hold: a name, or a layout whose columns are checked too, as those of
            samples and examples always are; None takes any kind.

    Raises:
        CorruptFile: truncated, damaged, or of another kind or schema version.
        InputError: when the file cannot be opened.
    """
    return read_sealed(path, kind)[0]


def read_sealed(path: Path, kind: str | Layout | None = None) -> tuple[pa.Table, str]:
    """A file as by `read_table`, and its seal: the SHA-256 of all its other bytes, in hex."""
    path = Path(path)
    with os_errors("read", path):
        data = path.read_bytes()
    seal = _check_seal(path, data)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        _check_schema(path, file.schema_arrow, file.metadata, kind)
        return file.read(), seal
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFile(path, _first_line(error)) from error


def seal_of(path: Path) -> str:
    """The seal of a file, with all bytes checked against it. Raises as ``read_table``."""
    with os_errors("read", path):
        data = path.read_bytes()
    return _check_seal(path, data)


def read_metadata(path: Path, kind: str | Layout | None = None) -> tuple[dict[bytes, bytes], int]:
    """File metadata and number of rows, from the footer alone. Raises as ``read_table``."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"cannot read {path}: no such file")
    try:
        footer = pq.read_metadata(pa.BufferReader(_end(path)))
        found = footer.schema.to_arrow_schema()
        _check_schema(path, found, footer, kind)
        return dict(found.metadata or {}), footer.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptFile(path, _first_line(error)) from error


def _end(path: Path) -> bytes:
    """The end of a file, with all of its footer: thousands are read so that a run starts."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        end = file.read()
        footer = int.from_bytes(end[-8:-4], "little") + 8
        if len(end) < min(footer, size):
            file.seek(size - min(footer, size))
            end = file.read()
    return end


def is_whole(path: Path, kind: str | Layout | None = None) -> bool:
    """Whether a file is there with a sound footer of the present schema version; cheap."""
    try:
        read_metadata(path, kind)
    except (RunError, InputError):
        return False
    return True


def read_json(path: Path) -> Any:
    """What a JSON file of a run holds, as a plan or a note of a failure. Raises InputError when damaged."""
    with os_errors("read", path):
        data = read_regular(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise InputError(f"{path} is damaged; delete it and run the suite again") from None


def write_examples(
    path: Path,
    rows: pd.DataFrame | pa.Table | Mapping[str, Any],
    cell: Mapping[str, Any],
    **metadata: object,
) -> None:
    """Writes the adversarial images of one cell, with what the cell was in the file's metadata.

    Args:
        rows: the columns of ``examples``; ``sha256`` may be left out.
        cell: all of ``schema.CELL_FIELDS``; more is kept.
        metadata: further file metadata (``suite_digest=...``).
    """
    missing = [name for name in schema.CELL_FIELDS if name not in cell]
    if missing:
        raise RunError(f"the description of a cell lacks {', '.join(missing)}")
    write_table(path, schema.to_table("examples", rows, **{**metadata, "cell": dict(cell)}))


def read_cell(path: Path) -> dict[str, Any]:
    """What the cell of an examples file was; from the footer alone. Raises as ``read_table``."""
    return cell_of(path, read_metadata(path, "examples")[0])


def cell_of(path: Path, metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """The cell in the file metadata of an examples file."""
    try:
        cell: dict[str, Any] = json.loads(metadata[schema.CELL])
    except (KeyError, ValueError, RecursionError) as error:
        raise CorruptFile(Path(path), "no description of its cell") from error
    wrong = schema.misfits(cell)
    if wrong:
        raise CorruptFile(Path(path), f"the description of its cell has no proper {', '.join(wrong)}")
    return cell


def _encoded(table: pa.Table) -> memoryview:
    rows = {schema.ROWS: str(table.num_rows).encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **rows})
    varied = {
        field.name for field in table.schema
        if field.name in _VARIED or pa.types.is_floating(field.type) or field.type == pa.binary()
    }
    # columns of few values are a dictionary and a few bits each: to unpack zstd for them too would
    # double the time in which thousands of small files are read
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, write_page_checksum=True, write_statistics=False,
        use_dictionary=[
            field.name for field in table.schema
            if field.name not in varied and not pa.types.is_boolean(field.type)
        ],
        compression={name: "zstd" if name in varied else "none" for name in table.column_names},
    )
    return memoryview(sink.getvalue())


def _sealed(data: memoryview) -> tuple[memoryview, bytes, memoryview]:
    pages, footer = _split(data)
    return pages, _MARK + _digest(pages, footer), footer


def _check_seal(path: Path, data: bytes) -> str:
    if len(data) < 12 + _SEAL or data[-4:] != b"PAR1":
        raise CorruptFile(path, "truncated")
    body, footer = _split(memoryview(data))
    if body[-_SEAL:][: len(_MARK)] != _MARK:
        why = "not sealed, as by older versions, or its bytes are not those that were written"
        raise CorruptFile(path, why)
    if body[-_SEAL:] != _MARK + _digest(body[:-_SEAL], footer):
        raise CorruptFile(path, "its bytes are not those that were written")
    return body[-_SEAL + len(_MARK) :].hex()


def _split(data: memoryview) -> tuple[memoryview, memoryview]:
    """Everything before the footer, and the footer with its length and magic."""
    start = max(0, len(data) - 8 - int.from_bytes(data[-8:-4], "little"))
    return data[:start], data[start:]


def _digest(*parts: memoryview) -> bytes:
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.digest()


def _check_schema(
    path: Path, found: pa.Schema, footer: pq.FileMetaData, kind: str | Layout | None
) -> None:
    entries = found.metadata or {}
    named = entries.get(schema.KIND, b"?").decode(errors="replace")
    version = entries.get(schema.VERSION, b"?").decode(errors="replace")
    wanted = kind.kind if isinstance(kind, Layout) else kind
    if schema.KIND not in entries or wanted not in (None, named):
        raise CorruptFile(path, f"holds {named}, not {wanted or 'a table of a run'}")
    if version != str(schema.SCHEMA_VERSION):
        raise CorruptFile(path, f"schema version {version}, not {schema.SCHEMA_VERSION}")
    layout = kind if isinstance(kind, Layout) else schema.LAYOUTS.get(named)
    usual = named in schema.SCHEMAS and found.equals(schema.SCHEMAS[named])  # at once
    if layout is not None and not usual and not layout.fits(found):
        raise CorruptFile(path, f"its columns are not those of {named} in this version")
    if entries.get(schema.ROWS) != str(footer.num_rows).encode():
        raise CorruptFile(path, "the number of rows is not that written")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
