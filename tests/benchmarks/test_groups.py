"""Evaluations in groups: sized by time and bytes, longest first; rows are the same whatever the groups."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from itertools import product

import pytest

from advens.benchmarks import calibrate, groups, tasks
from advens.benchmarks.groups import grouped, pass_seconds
from advens.benchmarks.plan import make_plan
from advens.benchmarks.worker_cache import worker_cache
from advens.datasets import load_data
from advens.files import write_bytes
from advens.models import pool
from tests.benchmarks.conftest import TINY

SIZE = (32, 32)


@pytest.fixture
def some(made):
    """``some(n)``: so many cells of ten images each, by turns of two shards."""
    cells = make_plan(made(), load_data("digits:test?limit=20")).cells
    return lambda n: [replace(cells[i % 2], seed=i) for i in range(n)]


def covered(found) -> list[tuple[str, str]]:
    return sorted((cell.key, name) for group in found for cell, name in product(group.cells, group.targets))


@pytest.mark.parametrize(
    ("seconds", "count"),
    [(1e-9, 1), (0.01, 20), (0.5, 80), (100.0, 80)],
    ids=["little", "a cell takes 0.4 s", "a pair is long", "very long"],
)
def test_every_pair_once_in_groups_of_a_size(some, seconds, count):
    cells, targets = some(20), ("a", "b", "c", "d")
    times = dict.fromkeys(targets, seconds)
    found = grouped([(cell, targets) for cell in cells], times, SIZE)
    assert covered(found) == sorted((cell.key, name) for cell, name in product(cells, targets))
    assert len(found) == count
    for group in found:
        shards = [cell.shard for cell in group.cells]
        assert shards == sorted(shards)
        assert group.seconds == pytest.approx(10 * seconds * len(group.cells) * len(group.targets))


def test_images_fit_in_memory(some, monkeypatch):
    monkeypatch.setattr(groups, "BYTES", 3 * 10 * 3 * 32 * 32)
    found = grouped([(cell, ("a",)) for cell in some(7)], {"a": 1e-9}, SIZE)
    assert [len(group.cells) for group in found] == [3, 3, 1]


def test_the_longest_come_first_and_what_is_missing_is_kept_apart(some):
    one, two, three, four = some(4)
    pending = [(one, ("a",)), (two, ("b",)), (three, ("a",)), (four, ("a", "b"))]
    found = grouped(pending, {"a": 0.01, "b": 1.0}, SIZE)
    assert [(group.cells, group.targets) for group in found] == [
        ((two,), ("b",)), ((four,), ("b",)), ((one, three), ("a",)), ((four,), ("a",)),
    ]  # fmt: skip


def test_times_come_from_a_calibration(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path))
    names = ["digits:resnet", "digits:vit"]
    assert pass_seconds(names, SIZE, "cpu") == dict.fromkeys(names, 3 * 32 * 32 * groups.PASS)
    list(calibrate.calibrate(names[:1], SIZE, "cpu"))
    found = pass_seconds(names, SIZE, "cpu")
    assert found["digits:resnet"] == calibrate.known_times(names[:1], SIZE, "cpu")[0]["digits:resnet"].forward
    assert found["digits:vit"] == 3 * 32 * 32 * groups.PASS
    write_bytes(calibrate.calibration_path("cpu"), b"{")
    assert pass_seconds(names, None, "nowhere") == dict.fromkeys(names, 3 * 224 * 224 * groups.PASS)


def test_rows_do_not_depend_on_the_groups(advens, suite, tmp_path, monkeypatch, rows):
    path, files = suite(), {}
    for name, least in (("together", 10.0), ("alone", 0.0)):
        monkeypatch.setattr(groups, "LEAST", least)
        advens("run", path, "--out", tmp_path / name).done()
        samples = sorted((tmp_path / name / "samples").iterdir())
        files[name] = {each.name: each.read_bytes() for each in samples}
    assert len(files["alone"]) == 12
    assert files["together"] == files["alone"]
    one, two = ((tmp_path / name / "matrix.parquet").read_bytes() for name in files)
    assert one == two


def test_a_model_is_loaded_once_for_a_group(advens, suite, tmp_path, monkeypatch):
    """Also where only one fits in memory at a time; images are restored once."""
    path, out = suite(), tmp_path / "out"
    advens("run", path, "--out", out).done()
    for each in (out / "samples").iterdir():
        each.unlink()
    loaded, restored, real, stored = [], [], pool.find_model, tasks.stored_pixels
    monkeypatch.setattr(pool.ModelPool, "__init__", partialmethod(pool.ModelPool.__init__, budget=0))
    monkeypatch.setattr(pool, "find_model", lambda name: loaded.append(name) or real(name))
    monkeypatch.setattr(tasks, "stored_pixels", lambda *given: restored.append(given) or stored(*given))
    worker_cache.cache_clear()
    assert "0 cells crafted, 12 evaluations" in advens("run", path, "--out", out).done().out
    assert len(restored) == 4
    assert sorted(loaded[:3]) == TINY["targets"]


def test_what_a_lost_worker_leaves_is_done_one_by_one(advens, suite, tmp_path, monkeypatch):
    """One target takes its process with it: only its own evaluations fail."""
    monkeypatch.setattr(groups, "LEAST", 0.012)  # two tasks: three targets on one cell are 0.009 s
    targets = ["toys:centroid?seed=3", "toys:mortal?seed=1", "toys:centroid?seed=4"]
    path, out = suite(targets=targets, attacks=[{"name": "mifgsm"}]), tmp_path / "out"
    said = advens("run", path, "--out", out, "--workers", 2)
    said.failed("2 cells failed")
    assert "evaluations  4 of 6 done\nfailed       2" in advens("status", out).done().out
    assert all("toys:mortal" in line for line in said.err.splitlines() if line.startswith("failed: "))
