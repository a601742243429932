"""A run directory: found again, read as one table, written by one process."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from advens.errors import InputError, RunError
from advens.results.files import CorruptFile
from advens.results.store import RunStore


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
    data = bytearray(path.read_bytes())
    data[len(data) // 6] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=re.escape(str(path))):
        store.read_samples()


def test_a_stranger_among_the_samples_is_an_error(run, drawn):
    store = run(drawn({("pgd", "cnns"): 0.5}, {"a": 1}, n=5))
    pd.DataFrame({"x": [1]}).to_parquet(store.samples / "stranger.parquet")
    with pytest.raises(RunError, match="stranger"):
        store.read_samples()


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
