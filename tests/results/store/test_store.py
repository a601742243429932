"""A run directory: found again, read as one table, written by one process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from advens.errors import InputError, RunError
from advens.results.store import RunStore, read_json, schema
from advens.results.store.files import CorruptFile


def test_samples_come_back_as_one_table(run, drawn):
    frame = drawn({("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.7}, {"digits:vit": 0.5, "b": 1}, n=7)
    store = run(frame)
    found = store.read_samples()
    keys = ["attack", "target", "sample_id"]
    pd.testing.assert_frame_equal(
        found.astype({c: str for c in found.columns if found[c].dtype == "category"})
        .sort_values(keys).reset_index(drop=True),
        frame.sort_values(keys).reset_index(drop=True),
        check_dtype=False,
    )
    assert str(found["target_label"].dtype) == "Int64"
    assert store.cells() == ["cwa-cnns-0", "pgd-cnns-0"]
    assert ("pgd-cnns-0", "digits-vit") in store.evaluated()
    assert list(store.read_samples(["linf"]).columns) == ["linf"]
    assert set(store.read_samples(["attack"], cells={"pgd-cnns-0"})["attack"]) == {"pgd"}


def test_cells_come_back_as_one_table(run, drawn):
    found = run(drawn({("pgd", "cnns"): 0.5}, {"b": 1}, n=7)).read_cells()
    assert found.loc[0, "cell"] == "pgd-cnns-0"
    assert found.loc[0, "samples"] == 7
    assert found.loc[0, "surrogate_digests"] == ["ab"]


def test_an_empty_store_has_columns(tmp_path):
    store = RunStore(tmp_path)
    for frame, column in ((store.read_samples(), "success"), (store.read_cells(), "eps")):
        assert frame.empty
        assert column in frame
    assert store.cells() == []


def test_a_damaged_file_among_many_is_named(run, drawn):
    store = run(drawn({("pgd", "cnns"): 0.5}, {"a": 1, "b": 1, "c": 1}, n=50))
    path = store.samples_path("pgd-cnns-0", "b")
    column = pq.ParquetFile(path).metadata.row_group(0).column(6)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1  # the last byte of a page
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=re.escape(str(path))):
        store.read_samples()


def test_a_stranger_among_the_samples_is_an_error(run, drawn):
    store = run(drawn({("pgd", "cnns"): 0.5}, {"a": 1}, n=5))
    pd.DataFrame({"x": [1]}).to_parquet(store.samples / "stranger.parquet")
    with pytest.raises(RunError, match="stranger"):
        store.read_samples()


def test_samples_among_the_examples_are_an_error(run, drawn):
    """Sealed and sound, and of another kind."""
    store = run(drawn({("pgd", "cnns"): 0.5}, {"a": 1}, n=5))
    shutil.copy(store.samples_path("pgd-cnns-0", "a"), store.examples / "stranger.parquet")
    with pytest.raises(RunError, match="stranger"):
        store.read_cells()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".a", "a b"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError):
        RunStore(tmp_path).samples_path("c0", name)
    with pytest.raises(InputError):
        RunStore(tmp_path).examples_path(name)


def test_open_wants_a_run(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        RunStore.open(tmp_path / "none")
    with pytest.raises(InputError, match="holds no run"):
        RunStore.open(tmp_path)


def test_any_of_its_files_makes_a_run(tmp_path):
    for name in ("suite", "samples", "examples"):
        folder = tmp_path / f"with-{name}"
        (folder / name).mkdir(parents=True)
        if name == "suite":
            (folder / "suite.toml").write_text("")
        assert RunStore.open(str(folder)).directory == folder
        assert repr(RunStore(folder)) == f"RunStore('{folder}')"
    (tmp_path / "empty").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "suite.toml").write_text("")
    for folder, hint in ((tmp_path / "empty", ""), (tmp_path, "; give one of the runs in it: b, with-suite")):
        with pytest.raises(InputError) as error:
            RunStore.open(folder)
        assert str(error.value) == f"{folder} holds no run (neither suite.toml nor samples/){hint}"


def test_where_files_lie(tmp_path):
    store = RunStore(tmp_path)
    assert store.examples_path("c0") == tmp_path / "examples" / "c0.parquet"
    assert store.samples_path("c0", "vit-at.v2=1") == tmp_path / "samples" / "c0.vit-at.v2=1.parquet"
    assert store.matrix == tmp_path / "matrix.parquet"
    for call in (lambda: store.examples_path("c.0"), lambda: store.samples_path("c.0", "t")):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == "cell 'c.0' cannot be part of a file name"
    with pytest.raises(InputError, match="target key 'a/b' cannot be part of a file name"):
        store.samples_path("c0", "a/b")


def test_a_key_with_dots_is_found_again(tmp_path):
    store = RunStore(tmp_path)
    store.samples.mkdir()
    store.samples_path("c0", "vit.v2.1").write_text("")
    (store.samples / "c0.x.parquet.12.tmp").write_text("")
    assert store.evaluated() == {("c0", "vit.v2.1")}


def test_what_killed_runs_left_is_counted(tmp_path):
    store = RunStore(tmp_path)
    assert store.clean() == 0
    for folder in (store.directory, store.examples, store.samples):
        folder.mkdir(exist_ok=True)
        (folder / "x.tmp").write_text("")
        (folder / "x.parquet").write_text("")
    assert store.clean() == 3
    assert len(list(tmp_path.rglob("x.parquet"))) == 3


def test_nulls_where_none_may_be_are_a_run_error(run, drawn):
    import pyarrow as pa

    store = run(drawn({("pgd", "cnns"): 0.5}, {"a": 1}, n=5))
    path = store.samples_path("pgd-cnns-0", "a")
    table = pq.read_table(path)
    index = table.schema.get_field_index("linf")
    field = pa.field("linf", pa.float64(), nullable=True, metadata=table.schema.field("linf").metadata)
    pq.write_table(table.set_column(index, field, pa.array([None] * 5, pa.float64())), path)
    with pytest.raises(RunError) as error:
        store.read_samples(["attack", "linf"])
    assert str(error.value) == f"{store.samples}: column 'linf' holds nulls"
    assert len(store.read_samples(["attack", "l2"])) == 5


OTHER = """
import sys
from advens.errors import InputError
from advens.results.store import RunStore
try:
    with RunStore(sys.argv[1]).lock():
        print("got it")
except InputError as error:
    print(error)
"""


def other(directory) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", OTHER, str(directory)], env=environment, check=True,
        capture_output=True, text=True,
    ).stdout.strip()


def test_a_second_process_is_told_who_is_there(tmp_path):
    with RunStore(tmp_path).lock():
        said = other(tmp_path)
    assert said.startswith(f"{tmp_path} is in use by process {os.getpid()} on ")
    assert other(tmp_path) == "got it"


def test_the_lock_is_freed_by_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), RunStore(tmp_path).lock():
        raise ZeroDivisionError
    with RunStore(tmp_path).lock():
        pass


def test_leftovers_of_killed_runs_go_with_the_lock(run, drawn):
    store = run(drawn({("pgd", "cnns"): 0.5}, {"a": 1}, n=5))
    leftovers = [store.samples / "c.a.parquet.12-ab.tmp", store.directory / "matrix.parquet.1.tmp"]
    for path in leftovers:
        path.write_bytes(b"half")
    assert len(store.read_samples()) == 5
    with store.lock():
        assert not any(path.exists() for path in leftovers)
    assert len(store.read_samples()) == 5


def test_a_file_is_no_run(tmp_path):
    (tmp_path / "out").write_text("")
    for make in (RunStore, RunStore.open):
        with pytest.raises(InputError, match="out is a file; a run needs a directory"):
            make(tmp_path / "out")


@pytest.mark.parametrize("address", ["s3://bucket/run", Path("s3://bucket/run"), "gs://run"])
def test_an_address_is_no_run(address):
    with pytest.raises(InputError, match="is an address; a run needs a directory of a file system"):
        RunStore(address)
    assert RunStore("runs/a:b").directory == Path("runs/a:b")


LISTING = """
import sys
from advens.results.store import RunStore, is_whole, read_json
store = RunStore(sys.argv[1])
cells = store.cells()
assert all(is_whole(store.examples_path(cell), "examples") for cell in cells), cells
assert all(is_whole(store.samples_path(*pair), "samples") for pair in store.evaluated())
assert read_json(store.directory / "plan.json") == {"cells": {}}
print(len(cells), sorted({"pandas", "torch", "pyarrow.dataset", "scipy", "rich"} & set(sys.modules)))
"""


def test_files_are_listed_and_notes_read_without_pandas(run, drawn):
    store = run(drawn({("pgd", "cnns"): 0.5}, {"a": 1}, n=5))
    (store.directory / "plan.json").write_text('{"cells": {}}')
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        [sys.executable, "-c", LISTING, str(store.directory)], env=environment, check=True,
        capture_output=True, text=True,
    ).stdout
    assert said.strip() == "1 []"


def test_a_damaged_note_is_bad_input(tmp_path):
    path = tmp_path / "plan.json"
    for text in ("{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError, match=r"plan\.json is damaged; delete it"):
            read_json(path)
    with pytest.raises(InputError, match="cannot read"):
        read_json(tmp_path / "none.json")


def test_what_was_written_before_the_samples_is_not_current(run, drawn):
    store = run(drawn({("pgd", "cnns"): 0.5}, {"a": 1}, n=5))
    path = store.directory / "matrix.parquet"
    path.write_text("")
    assert store.current(path)
    for below in (store.samples_path("pgd-cnns-0", "a"), store.examples_path("pgd-cnns-0")):
        before, later = below.stat().st_mtime_ns, path.stat().st_mtime_ns + 10**9
        os.utime(below, ns=(later, later))
        assert not store.current(path)
        os.utime(below, ns=(before, before))


def test_fields_of_a_description_that_hold_something_else():
    """Whole numbers are those of 64 bits; truth values are no numbers."""
    lacking = set(schema.misfits({}))
    assert lacking == set(schema._CELL_TYPES)
    assert schema.misfits([]) == list(schema.CELL_FIELDS)
    for value, fits in (
        (0, True), (2**63 - 1, True), (1 - 2**63, True), (2**63, False), (2**64, False), (-(2**64), False),
        (True, False), (1.0, False), ("1", False), (None, False),
    ):  # fmt: skip
        assert ("seed" not in schema.misfits({"seed": value})) is fits, value
        assert ("silent_images" not in schema.misfits({"silent_images": value})) is (fits or value is None)
