"""Boards are declared once, sealed, read with every byte checked, and follow from the rows below them."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pyarrow.parquet as pq
import pytest

from advens.errors import InputError, RunError
from advens.results.boards import (
    BOARDS,
    Board,
    Column,
    board_mismatches,
    declare,
    read_board,
    write_board,
)
from advens.results.boards.board import to_table
from advens.results.boards.leaderboard import leaderboard
from advens.results.boards.matrix import transfer_matrix
from advens.results.boards.rows import Rows, load
from advens.results.columns import INT, REAL, TEXT, Layout
from advens.results.store import CorruptFile, write_table

TARGETS = {"digits:resnet": 0.9, "digits:vit": 0.7, "digits:vit-at": 0.3}
WHITE = {"cnns": ["digits:resnet"]}


@pytest.fixture
def store(run, drawn):
    return run(drawn({("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.9}, TARGETS, WHITE, n=40))


@pytest.fixture
def attacked(run, rows):
    """A run of white-box attacks, one of which noted something."""
    frame = rows([
        {"attack": "pma", "surrogates": "digits:vit", "target": "digits:vit", "sample_id": str(i),
         "adv_pred": 2 if i < 4 else 1, "cell": "pma-0"}
        for i in range(10)
    ])
    return run(
        frame, "attacked", goal="robustness", after="", notes=["flat"], surrogate_specs=["digits:vit"]
    )


def test_boards_are_found_by_name():
    assert {"matrix", "leaderboard", "robustness"} <= set(BOARDS.names())
    with pytest.raises(InputError, match="did you mean 'matrix'"):
        read_board("anywhere", "matrx")


@pytest.mark.parametrize("name", ["matrix", "leaderboard"])
def test_what_is_written_is_read_back_with_what_is_said_of_it(store, name):
    made = write_board(store.directory, name, suite_digest="d1")
    found = read_board(store.directory, name)
    pd.testing.assert_frame_equal(found, made, check_dtype=False)
    assert found.attrs == made.attrs
    assert list(found.attrs) == list(made.attrs), "json keeps the order"
    file = pq.read_schema(store.directory / f"{name}.parquet")
    assert file.metadata[b"advens.suite_digest"] == b"d1"
    assert file.metadata[b"advens.denominator"] == b"target"
    assert board_mismatches(store.directory, name) == []


def test_values_are_those_of_the_functions(store):
    rows = Rows(store.directory)
    pd.testing.assert_frame_equal(write_board(rows, "matrix"), transfer_matrix(rows.samples))
    pd.testing.assert_frame_equal(
        write_board(rows, "leaderboard"), leaderboard(*load([store.directory]))
    )


def test_robustness_is_a_board(attacked):
    made = write_board(attacked.directory, "robustness")
    assert made["robust_accuracy"].tolist() == [0.6]
    found = read_board(attacked.directory, "robustness")
    pd.testing.assert_frame_equal(found, made, check_dtype=False)
    assert found.attrs == {"notes": ["digits:vit, pma: flat"]}
    assert board_mismatches(attacked.directory, "robustness") == []


def test_a_randomized_target_is_named_in_the_file(run, rows):
    store = run(rows([{"sample_id": str(i), "member": i % 2, "weight": 0.5} for i in range(4)]))
    write_board(store.directory, "matrix")
    assert read_board(store.directory, "matrix").attrs["randomized"] == ["digits:vit"]


def test_every_column_says_what_it_is():
    for name in BOARDS.names():
        for column in BOARDS.get(name).columns:
            assert column.meaning, (name, column.name)
        assert BOARDS.info(name).summary


def test_a_board_that_is_not_there_is_bad_input(store):
    with pytest.raises(InputError, match=r"holds no matrix\.parquet; make it with 'advens run' and --out"):
        read_board(store.directory, "matrix")
    assert board_mismatches(store.directory, "matrix") == ["matrix.parquet is missing"]


def test_an_empty_directory_has_no_boards(tmp_path):
    for name in ("matrix", "leaderboard", "robustness"):
        assert board_mismatches(tmp_path, name) == []
        with pytest.raises(InputError, match="no finished samples"):
            write_board(tmp_path, name)


def test_a_board_that_the_run_does_not_make_is_a_mismatch(store, attacked):
    write_board(attacked.directory, "robustness")
    (store.directory / "robustness.parquet").write_bytes(
        (attacked.directory / "robustness.parquet").read_bytes()
    )
    assert board_mismatches(store.directory, "robustness") == [
        "robustness.parquet: no board of this kind follows from what is stored here"
    ]


def test_damaged_samples_are_said(store):
    write_board(store.directory, "matrix")
    path = store.samples_path("pgd-cnns-0", "digits-vit")
    path.write_bytes(path.read_bytes()[:-30])
    (said,) = board_mismatches(store.directory, "matrix")
    assert "digits-vit.parquet is corrupt" in said


def test_a_file_of_an_older_version_is_said_in_one_line(store):
    read = write_board(store.directory, "matrix")
    read.to_parquet(store.directory / "matrix.parquet")
    with pytest.raises(CorruptFile) as error:
        read_board(store.directory, "matrix")
    assert str(error.value) == (
        f"{store.matrix} is corrupt: not sealed, as by older versions, or its bytes are not those that were "
        f"written; make it again with 'advens run' and --out {store.directory}"
    )
    assert "\n" not in str(error.value)


def test_rounding_is_no_mismatch_and_more_is(store):
    frame = write_board(store.directory, "leaderboard")
    for factor, count in ((1 + 1e-12, 0), (1 + 1e-6, 1)):
        changed = frame.assign(mean_asr=frame["mean_asr"] * factor)
        kept = {key: value for key, value in frame.attrs.items() if value is not None}
        write_table(store.leaderboard, to_table("leaderboard", changed, **kept))
        assert len(board_mismatches(store.directory, "leaderboard")) == count


def test_notes_are_compared_too(store):
    frame = write_board(store.directory, "leaderboard")
    kept = frame.attrs | {"notes": ["all is well"]}
    write_table(store.leaderboard, to_table("leaderboard", frame, **kept))
    assert board_mismatches(store.directory, "leaderboard") == [
        "leaderboard.parquet is not what the samples and cells give: its entry 'notes' is another"
    ]
    table = to_table("leaderboard", frame, denominator="target", notes="{")
    write_table(store.leaderboard, table)
    with pytest.raises(CorruptFile, match="its metadata cannot be read"):
        read_board(store.directory, "leaderboard")


def test_one_line_adds_a_column(store, monkeypatch):
    old = BOARDS.get("matrix")
    new = replace(
        old, columns=(*old.columns, Column("twice", REAL, "twice the rate", "fraction", nullable=True)),
        compute=lambda rows: old.compute(rows).assign(twice=lambda frame: 2 * frame["asr"]),
    )  # fmt: skip
    monkeypatch.setitem(BOARDS.entries, "matrix", (new, BOARDS.info("matrix")))
    write_board(store.directory, "matrix")
    field = pq.read_schema(store.directory / "matrix.parquet").field("twice")
    assert field.metadata == {b"description": b"twice the rate", b"unit": b"fraction"}
    found = read_board(store.directory, "matrix")
    assert found["twice"].tolist() == (2 * found["asr"]).tolist()
    monkeypatch.undo()
    with pytest.raises(RunError, match="its columns are not those of matrix"):
        read_board(store.directory, "matrix")


def test_patterns_declare_columns_whose_names_depend_on_the_suite():
    layout = Layout("x", (
        Column("name", TEXT, "a name"), Column("* low", REAL, "lower end"),
        Column("open *", REAL, "a rate", header="*"), Column("seed", INT, "a seed", optional=True),
    ))  # fmt: skip
    assert layout.names == ["name"]
    assert not layout.fixed
    assert layout.column("open pgd").title("open pgd") == "pgd"
    assert layout.column("open pgd low").name == "* low", "the first that matches"
    assert layout.unknown(["open pgd", "open ", "shut"]) == ["open ", "shut"]
    assert layout.fits(layout.schema(["name", "open pgd", "open pgd low"]))
    assert layout.fits(layout.schema(["open pgd", "name", "seed"]))
    assert not layout.fits(layout.schema(["open pgd"]))
    assert json.dumps(layout.missing([])) == '["name"]'


def test_declaring_makes_a_board_known(store):
    """By its name, with its summary; its file is written and read as the declaration says."""
    board = Board(
        "sizes", "images of every target", (Column("target", TEXT, "model"), Column("n", INT, "images")),
        lambda rows: rows.samples.groupby("target", observed=True).size().rename("n").reset_index(),
    )  # fmt: skip
    assert "sizes" not in BOARDS
    assert declare(board) is board
    try:
        assert BOARDS.get("sizes") is board
        assert BOARDS.info("sizes").name == "sizes"
        assert BOARDS.info("sizes").summary == "images of every target"
        write_board(store.directory, "sizes")
        assert read_board(store.directory, "sizes")["n"].tolist() == [80, 80, 80]
    finally:
        del BOARDS.entries["sizes"]
