"""One look at a run's folders, the index beside them, and files with the rows of several pairs."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from advens.errors import InputError
from advens.results.store import RunStore, listing, read_table
from advens.results.store.files import CorruptFile


@pytest.fixture
def single(run, drawn):
    """Two cells and three targets, a file for each pair."""
    return run(drawn({("pgd", "cnns"): 0.5, ("cwa", "cnns"): 0.7}, {"a": 1, "b": 1, "c.1": 1}, n=7))


@pytest.fixture
def grouped(single):
    """The same rows in two files, the pairs of both cells in each."""

    def make(*keys: tuple[str, ...]) -> RunStore:
        rows = {
            (piece.cell, piece.key): single.read_rows(piece) for piece in single.listing().ordered()
        }  # fmt: skip
        for path in single.samples.iterdir():
            path.unlink()
        for group in keys:
            single.write_samples({pair: table for pair, table in rows.items() if pair[1] in group})
        for pair, table in rows.items():
            if not any(pair[1] in group for group in keys):
                single.write_samples({pair: table})
        return single

    return make


def test_rows_are_the_same_in_any_files(single, grouped):
    before = single.read_samples()
    some = single.read_samples(["target", "linf"], {"pgd-cnns-0"}, {"target": ["a", "c.1"]})
    for keys in ([("a", "b")], [("c.1",), ("a", "b")]):
        store = grouped(*keys)
        pd.testing.assert_frame_equal(store.read_samples(), before)
        pd.testing.assert_frame_equal(
            store.read_samples(["target", "linf"], {"pgd-cnns-0"}, {"target": ["a", "c.1"]}), some
        )
    assert len(list(store.samples.iterdir())) == 2
    assert len(store.evaluated()) == 6
    assert len(some) == 14


def test_a_pair_in_two_files_counts_once(single, grouped):
    before = single.read_samples()
    store = grouped(("a", "b"))
    piece = store.listing().rows["pgd-cnns-0"]["a"]
    store.write_samples({("pgd-cnns-0", "a"): store.read_rows(piece)})
    assert len(list(store.samples.iterdir())) == 4
    pd.testing.assert_frame_equal(store.read_samples(), before)


def test_the_same_pairs_make_the_same_bytes(single):
    there = single.listing().rows["pgd-cnns-0"]
    rows = {("pgd-cnns-0", key): single.read_rows(piece) for key, piece in there.items()}
    path = single.write_samples(rows)
    before = path.read_bytes()
    assert single.write_samples(dict(reversed(rows.items()))) == path
    assert path.read_bytes() == before
    one = single.samples_path("pgd-cnns-0", "a")
    before = one.read_bytes()
    piece = next(p for p in single.listing().files[path.name] if p.key == "a")
    assert single.write_samples({("pgd-cnns-0", "a"): single.read_rows(piece)}) == one
    assert one.read_bytes() == before  # a group of one is the file that there always was


def test_rows_of_a_cell_are_removed_and_those_beside_it_stay(single, grouped):
    frame = single.read_samples()
    store = grouped(("a", "b"))
    for path in (store.samples_path("gone", "a"), store.samples_path("pgd-cnns-0", "d")):
        path.write_bytes(b"half")
    (store.samples / "group-0.parquet").write_bytes(b"half")
    store.drop({"pgd-cnns-0"}, store.listing())
    assert store.listing().damaged == ("gone.a.parquet",)  # another suite's, or not readable just now
    store.drop({"gone"}, store.listing())
    left = store.read_samples()
    assert set(left["cell"]) == {"cwa-cnns-0"}
    assert left.astype(str).equals(frame[frame["cell"] == "cwa-cnns-0"].astype(str).reset_index(drop=True))
    assert store.evaluated() == {("cwa-cnns-0", key) for key in ("a", "b", "c.1")}


@pytest.mark.parametrize(
    "pairs",
    [
        None, "x", [], [["pgd-cnns-0", "a", 14]], [["pgd-cnns-0", "a", 7], ["pgd-cnns-0", "a", 7]],
        [["pgd-cnns-0", "a", 21], ["pgd-cnns-0", "b", -7]], [["pgd-cnns-0", "a"]],
    ],
    ids=str,
)  # fmt: skip
def test_a_group_that_does_not_say_its_pairs_is_damaged(single, grouped, pairs):
    from advens.results.store import schema, write_table

    store = grouped(("a", "b"))
    path = next(store.samples.glob("group-*"))
    table = read_table(path)
    told = {k: v for k, v in table.schema.metadata.items() if k not in (schema.PAIRS, schema.ROWS)}
    table = table.slice(0, 14 if pairs == [] else 28).replace_schema_metadata(told)
    write_table(path, table if pairs is None else schema.with_metadata(table, pairs=pairs))
    assert store.listing().damaged == (path.name,)
    assert store.evaluated() == {("pgd-cnns-0", "c.1"), ("cwa-cnns-0", "c.1")}
    with pytest.raises(CorruptFile, match=path.name):
        store.read_samples()


@pytest.fixture
def counted(monkeypatch):
    """The files whose footers are read, and an index even for a few."""
    read, real = [], listing.read_metadata

    def reading(path, kind):
        read.append(path.name)
        return real(path, kind)

    monkeypatch.setattr(listing, "read_metadata", reading)
    monkeypatch.setattr(listing, "NEW", 1)
    return read


def test_footers_are_read_once(grouped, counted):
    store = grouped(("a", "b"))
    counted.clear()
    (store.directory / listing.INDEX).unlink()
    found = store.listing()
    assert len(counted) == 5
    counted.clear()
    assert store.listing() == found
    assert not counted
    store.listing(index=False)  # as verification does
    assert len(counted) == 5


@pytest.mark.parametrize("how", ["changed", "truncated", "removed", "new"])
def test_an_index_is_not_believed_about_files_that_changed(grouped, counted, how):
    store = grouped(("a", "b"))
    before = store.listing()
    path = store.samples_path("pgd-cnns-0", "c.1")
    content = path.read_bytes()
    if how == "changed":
        path.write_bytes(content[:-4] + b"PAR2")
    elif how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "removed":
        path.unlink()
    else:
        store.samples_path("pgd-cnns-0", "d").write_bytes(content)
    assert store.listing() == store.listing(index=False)
    assert store.listing() != before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda kept: kept.clear(),
        lambda kept: kept.update(version=99),
        lambda kept: kept.update(samples=[]),
        lambda kept: [entry.pop() for entry in kept["samples"].values()],
        lambda kept: [entry.__setitem__(2, "x") for entry in kept["samples"].values()],
        lambda kept: [entry.__setitem__(2, 7) for entry in kept["samples"].values()],
        lambda kept: [entry.__setitem__(2, [[1, 2]]) for entry in kept["samples"].values()],
        lambda kept: [entry.__setitem__(2, None) for entry in kept["examples"].values()],
    ],
)  # fmt: skip
def test_a_damaged_index_costs_only_time(grouped, counted, spoil):
    store = grouped(("a", "b"))
    before, index = store.listing(), store.directory / listing.INDEX
    kept = json.loads(index.read_text())
    spoil(kept)
    index.write_text(json.dumps(kept))
    assert store.listing() == before
    for text in ("{", "[" * 100_000, "null", ""):
        index.write_text(text)
        assert store.listing() == before


def test_an_index_that_cannot_be_written_is_none(grouped, counted, monkeypatch):
    store = grouped(("a", "b"))

    def refuse(path, *parts):
        raise InputError(f"cannot write {path}")

    monkeypatch.setattr(listing, "write_bytes", refuse)
    (store.directory / listing.INDEX).unlink(missing_ok=True)
    assert len(store.listing().images) == 2
    assert not (store.directory / listing.INDEX).exists()


def test_small_runs_have_no_index(single):
    single.listing()
    assert not (single.directory / listing.INDEX).exists()


def test_rows_of_some_cells_cost_the_footers_of_no_others(grouped, counted):
    store = grouped(("a",))  # a file of both cells, and four of one pair each
    counted.clear()
    store.read_samples(["target"], {"pgd-cnns-0"})
    assert sorted(counted)[1:] == ["pgd-cnns-0.b.parquet", "pgd-cnns-0.c.1.parquet"]
    assert sorted(counted)[0].startswith("group-")


def test_one_file_for_every_target(grouped, counted):
    store = grouped(("a",))
    counted.clear()
    pieces = store.a_piece_of_each()
    assert [(piece.cell, piece.key) for piece in pieces] == [("cwa-cnns-0", key) for key in ("a", "b", "c.1")]
    assert not any(name.startswith("pgd") for name in counted)
    store.path("samples", pieces[1].file).write_bytes(b"not a table")
    with pytest.raises(CorruptFile):
        store.a_piece_of_each()
