"""A file is there whole or not at all, and every one of its bytes is vouched for."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from advens.errors import InputError, RunError
from advens.results import files, schema
from advens.results.files import CorruptFile, is_whole, read_cell, read_table, write_examples


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
        "member, weight, target_family"
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
