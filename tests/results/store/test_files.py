"""A file is there whole or not at all, and every one of its bytes is vouched for."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advens.errors import InputError, RunError
from advens.results.store import files, schema
from advens.results.store.files import CorruptFile, is_whole, read_cell, read_table, write_examples


@pytest.fixture
def table(rows):
    return schema.to_table(
        "samples", rows([{"sample_id": str(i), "adv_pred": i % 3} for i in range(20)]),
        suite_digest="d" * 64,
    )


@pytest.fixture
def path(tmp_path, table):
    path = tmp_path / "samples" / "c0.vit.parquet"
    files.write_table(path, table)
    return path


def test_reads_back_what_was_written(path, table):
    found = read_table(path, "samples")
    assert found.equals(table)
    assert found.schema.metadata[b"advens.suite_digest"] == b"d" * 64
    assert found.schema.field("linf").metadata[b"unit"] == b"intensity in [0, 1]"
    assert is_whole(path, "samples")
    assert os.listdir(path.parent) == [path.name]


def test_the_contract_columns_come_first():
    names = schema.SCHEMAS["samples"].names
    assert ", ".join(names) == (
        "suite, attack, attack_params, surrogates, seed, target, sample_id, label, target_label, "
        "clean_pred, adv_pred, clean_correct, success, linf, l2, cell, white_box, "
        "member, weight, target_family, l1"
    )


def test_same_table_same_bytes(path, table, tmp_path):
    files.write_table(tmp_path / "again.parquet", table)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_other_parquet_readers_are_not_disturbed_by_the_seal(path, table):
    assert pq.read_table(path, page_checksum_verification=True).equals(table)
    assert len(pd.read_parquet(path)) == 20


def test_every_flipped_byte_is_found(path):
    sound = path.read_bytes()
    for place in [*range(0, len(sound), 29), *range(len(sound) - 12, len(sound))]:
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x10]) + sound[place + 1 :])
        with pytest.raises(CorruptFile, match=r"c0\.vit\.parquet is corrupt"):
            read_table(path)


@pytest.mark.parametrize("kept", [0, 3, 50, 0.5, 0.99, -1])
def test_truncation_is_found(path, kept):
    sound = path.read_bytes()
    path.write_bytes(sound[: int(kept * len(sound)) if isinstance(kept, float) else kept])
    with pytest.raises(CorruptFile, match="corrupt"):
        read_table(path)
    assert not is_whole(path)


def test_another_kind_or_version_is_refused(path, tmp_path, table, monkeypatch):
    with pytest.raises(CorruptFile, match="holds samples, not examples"):
        read_table(path, "examples")
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), foreign)
    assert not is_whole(foreign)
    with pytest.raises(CorruptFile):
        read_table(foreign)
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 99)
    with pytest.raises(CorruptFile, match="schema version 1, not 99"):
        read_table(path)


def test_missing_file_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        read_table(tmp_path / "none.parquet")
    assert not is_whole(tmp_path / "none.parquet")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_nothing_is_visible_when_killed_before_the_rename(path, table, monkeypatch, call):
    before = path.read_bytes()

    def killed(*_):
        raise Killed

    monkeypatch.setattr(os, call, killed)
    with pytest.raises(Killed):
        files.write_table(path, table.slice(0, 3))
    with pytest.raises(Killed):
        files.write_table(path.with_name("new.parquet"), table)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_disk_is_one_line(path, table, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError) as error:
        files.write_table(path.with_name("new.parquet"), table)
    assert str(error.value) == f"cannot write {path.parent}/new.parquet: {os.strerror(number)}"
    assert os.listdir(path.parent) == [path.name]


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path, table):
    (tmp_path / "run").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        files.write_table(tmp_path / "run" / "x.parquet", table)


def test_cell_comes_back_from_the_footer(tmp_path: Path, about, examples):
    path, cell = tmp_path / "c0.parquet", about(eps="8/255", attack="ä|b")
    write_examples(path, examples("c0", ["a", "b"]), cell, suite_digest="x")
    assert read_cell(path) == cell
    found = read_table(path, "examples")
    assert found["sha256"][0].as_py() == hashlib.sha256(found["image"][0].as_py()).hexdigest()
    with pytest.raises(RunError, match="lacks seed"):
        write_examples(path, examples("c0", ["a"]), {k: v for k, v in cell.items() if k != "seed"})


def test_wrong_columns_and_nulls_are_refused(rows):
    frame = rows([{}])
    with pytest.raises(RunError, match=r"missing columns \['cell'\]"):
        schema.to_table("samples", frame.drop(columns="cell"))
    with pytest.raises(RunError, match=r"unknown columns \['more'\]"):
        schema.to_table("samples", frame.assign(more=1))
    with pytest.raises(RunError, match="'suite' of samples holds 1 nulls"):
        schema.to_table("samples", frame.assign(suite=None))
    with pytest.raises(RunError, match="column 'label'"):
        schema.to_table("samples", frame.assign(label="cat"))


def said_of(path: Path, kind: str | None = None) -> str:
    """Why a file is not taken, without its name and what to do."""
    with pytest.raises(CorruptFile) as error:
        read_table(path, kind)
    assert error.value.path == path
    before, after = f"{path} is corrupt: ", "; delete it and run the suite again"
    assert str(error.value).startswith(before)
    assert str(error.value).endswith(after)
    return str(error.value).removeprefix(before).removesuffix(after)


def resealed(path: Path, table: pa.Table) -> Path:
    """A file with any metadata, sealed as ours are, rows not noted."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, write_page_checksum=True)
    path.write_bytes(b"".join(files._sealed(memoryview(sink.getvalue()))))
    return path


def test_every_reason_is_said(path, table, tmp_path, monkeypatch):
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    assert said_of(path) == "truncated"
    path.write_bytes(sound[:20] + sound[21:])
    assert said_of(path) == "its bytes are not those that were written"
    foreign = resealed(tmp_path / "a.parquet", pa.table({"a": [1]}))
    assert said_of(foreign) == "holds ?, not a table of a run"
    assert said_of(foreign, "samples") == "holds ?, not samples"
    assert said_of(resealed(foreign, table)) == "the number of rows is not that written"
    few = table.drop_columns(["linf"])
    assert said_of(resealed(foreign, few)) == "its columns are not those of samples in this version"
    typed = table.set_column(7, "label", table["label"].cast(pa.int32()))
    assert said_of(resealed(foreign, typed)) == "its columns are not those of samples in this version"
    unknown = {k: v for k, v in table.schema.metadata.items() if k != schema.VERSION}
    assert said_of(resealed(foreign, table.replace_schema_metadata(unknown))).startswith("schema version ?")
    path.write_bytes(sound)
    assert read_table(path, "samples").equals(table)
    assert is_whole(path)
    assert not is_whole(path, "matrix")


def test_a_shortened_table_is_found_by_its_footer(path, table):
    """Rows are counted in the metadata: a table cut by another program says so."""
    rows = {schema.ROWS: b"19"}
    resealed(path, table.replace_schema_metadata({**table.schema.metadata, **rows}))
    assert said_of(path) == "the number of rows is not that written"
    assert not is_whole(path)
    rows = {schema.ROWS: b"20"}
    resealed(path, table.replace_schema_metadata({**table.schema.metadata, **rows}))
    assert read_table(path).num_rows == 20


def test_older_files_lack_only_nullable_columns_at_the_end():
    names = schema.SCHEMAS["samples"].names
    nullable = [field.name for field in schema.SCHEMAS["samples"] if field.nullable]
    whole = schema.SCHEMAS["samples"]
    assert schema.SAMPLES.fits(whole)
    for count in range(len(names)):
        part = pa.schema([whole.field(k) for k in range(count)])
        assert schema.SAMPLES.fits(part) == all(name in nullable for name in names[count:])
    swapped = pa.schema([whole.field(k) for k in (1, 0, *range(2, len(names)))])
    assert not schema.SAMPLES.fits(swapped)


def test_columns_of_few_values_are_dictionaries_and_the_others_compressed(tmp_path, about, examples):
    path = tmp_path / "c0.parquet"
    write_examples(path, examples("c0", [f"{i}" for i in range(40)]), about())
    row_group = pq.ParquetFile(path).metadata.row_group(0)
    columns = [row_group.column(k) for k in range(row_group.num_columns)]
    packed = {c.path_in_schema for c in columns if c.compression == "ZSTD"}
    assert packed == {"sample_id", "image", "linf", "l2", "sha256", "l1", "difference"}
    listed = {c.path_in_schema for c in columns if any("DICTIONARY" in e for e in c.encodings)}
    assert listed == {c.path_in_schema for c in columns} - packed
    assert all(c.statistics is None for c in columns)


def test_flags_are_neither(path, table):
    row_group = pq.ParquetFile(path).metadata.row_group(0)
    column = row_group.column(table.schema.get_field_index("success"))
    assert (column.compression, "PLAIN" in column.encodings) == ("UNCOMPRESSED", True)
    assert not any("DICTIONARY" in e for e in column.encodings)


def test_the_folder_is_synced_where_it_can_be(path, table, monkeypatch):
    fsync = os.fsync

    def written(number: int) -> list[bool]:
        """Which of the synced are folders; the sync of a folder fails with this number."""
        synced: list[bool] = []

        def watched(descriptor):
            synced.append(stat.S_ISDIR(os.fstat(descriptor).st_mode))
            if synced[-1] and number:
                raise OSError(number, "no")
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", watched)
        files.write_table(path, table)
        return synced

    for number in (0, errno.EINVAL, errno.ENOTSUP):
        assert written(number) == [False, True]
    with pytest.raises(InputError, match="cannot write"):
        written(errno.EIO)


def test_bytes_are_written_in_parts_into_new_folders(tmp_path):
    path = tmp_path / "a" / "b" / "x.json"
    files.write_bytes(path, b"one ", memoryview(b"two"))
    files.write_bytes(path, b"three ", b"four")
    assert path.read_bytes() == b"three four"
    assert os.listdir(path.parent) == ["x.json"]


def test_errors_without_a_reason_say_themselves(tmp_path):
    with pytest.raises(InputError) as error, files.os_errors("open", tmp_path):
        raise OSError("odd")
    assert str(error.value) == f"cannot open {tmp_path}: odd"


def test_a_cell_without_a_description_is_corrupt(tmp_path, path):
    for metadata in ({}, {schema.CELL: b"{"}):
        with pytest.raises(CorruptFile, match="no description of its cell"):
            files.cell_of(path, metadata)
    missing = tmp_path / "none.parquet"
    with pytest.raises(InputError) as error:
        files.read_metadata(missing)
    assert str(error.value) == f"cannot read {missing}: no such file"


def test_a_description_lacks_what_is_named(tmp_path, about, examples):
    cell = {k: v for k, v in about().items() if k not in ("seed", "eps")}
    with pytest.raises(RunError) as error:
        write_examples(tmp_path / "c.parquet", examples("c", ["a"]), cell)
    assert str(error.value) == "the description of a cell lacks seed, eps"


def test_metadata_is_json_but_for_text_and_left_out_when_there_is_none(table):
    entries = schema.with_metadata(table, b={"y": 1, "x": [2]}, a="plain", none=None).schema.metadata
    assert entries[b"advens.a"] == b"plain"
    assert entries[b"advens.b"] == b'{"x": [2], "y": 1}'
    assert b"advens.none" not in entries
    assert entries[b"advens.suite_digest"] == b"d" * 64, "what was there stays"
