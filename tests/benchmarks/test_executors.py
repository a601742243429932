"""Who does the work changes nothing: this process, several, or Ray."""

from __future__ import annotations

import pickle
import sys
import types

import pandas as pd
import pytest

from advens.benchmarks.executors import create_executor
from advens.benchmarks.executors.base import attempt
from advens.benchmarks.executors.local import device_of_worker
from advens.errors import InputError, RunError
from advens.results.store import CorruptFile, RunStore


def same(one, two, rows, images) -> None:
    assert images(one) == images(two)
    pd.testing.assert_frame_equal(rows(one).astype(object), rows(two).astype(object))


def test_two_workers(advens, suite, tmp_path, rows, images):
    one, two = tmp_path / "one", tmp_path / "two"
    attacks = [{"name": "pgd"}, {"name": "admix"}]
    advens("run", suite(attacks=attacks), "--out", one).done()
    said = advens("run", suite(attacks=attacks), "--out", two, "--workers", 2).done()
    assert "4 cells crafted, 12 evaluations" in said.out
    same(one, two, rows, images)


def test_bad_input_in_workers(advens, suite, tmp_path):
    """It crosses the border between processes as what it is, and as one line."""
    path, out = suite(targets=["toys:silent?seed=4"], attacks=[{"name": "fgsm"}]), tmp_path / "out"
    advens("run", path, "--out", out).refused("NaN")
    assert len(RunStore(out).cells()) == 2
    advens("run", path, "--out", out, "--workers", 2).refused("toys:silent?seed=4", "NaN")


def test_failures_travel_between_processes(tmp_path):
    """Also those of a kind that pickle cannot make again."""
    damaged = CorruptFile(tmp_path / "x.parquet", "truncated")
    for raised, words in ((damaged, "x.parquet is corrupt: truncated"), (KeyError("a"), "KeyError")):
        outcome = pickle.loads(pickle.dumps(attempt(Loud(raised), "cpu")))
        assert isinstance(outcome, RunError)
        assert words in str(outcome)
    assert attempt(Loud(7), "cpu") == 7
    with pytest.raises(InputError):
        attempt(Loud(InputError("no")), "cpu")


def test_a_worker_that_dies(advens, suite, tmp_path):
    path = suite(surrogates__pair=["toys:mortal?seed=1"])
    said = advens("run", path, "--out", tmp_path / "out", "--workers", 2)
    said.failed("worker")


def test_unknown_executor(advens, suite, tmp_path):
    said = advens("run", suite(), "--out", tmp_path / "out", "--executor", "rai")
    said.refused("unknown executor 'rai'", "'ray'")


def test_workers_share_the_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of_worker("cuda", 7) == "cuda:1"
    assert device_of_worker("cuda:0", 7) == "cuda:0"
    assert device_of_worker("cpu", 7) == "cpu"


def test_without_ray(advens, suite, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = advens("run", suite(), "--out", tmp_path / "out", "--executor", "ray")
    said.refused("'ray' needs Ray", "advens[ray]")


class Loud:
    """A task with an outcome of its own."""

    cell = None

    def __init__(self, outcome) -> None:
        self.outcome, self.title = outcome, "loud"

    def do(self, device: str) -> int:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def stand_in() -> types.ModuleType:
    """As much of Ray as the executor uses, in this process."""
    ray = types.ModuleType("ray")

    class RayTaskError(Exception):
        def __init__(self, cause) -> None:
            super().__init__(f"ray::attempt()\n  Traceback of many lines\n{cause}")
            self.cause = cause

        def as_instanceof_cause(self):
            return type("RayTaskError(x)", (RayTaskError, type(self.cause)), {})(self.cause)

    class Remote:
        def __init__(self, function) -> None:
            self.function = function

        def remote(self, *arguments):
            return Reference(lambda: self.function(*arguments))

    class Reference:
        def __init__(self, do) -> None:
            self.do = do

    def get(reference):
        try:
            return reference.do()
        except Exception as error:
            raise RayTaskError(error) from None

    ray.exceptions = types.SimpleNamespace(RayTaskError=RayTaskError)
    ray.is_initialized = lambda: True
    ray.remote = lambda **options: Remote
    ray.wait = lambda references, num_returns: (references[-1:], references[:-1])
    ray.get, ray.cancelled = get, []
    ray.cancel = lambda reference, force: ray.cancelled.append(reference)
    return ray


def test_ray_in_any_order(monkeypatch, advens, suite, tmp_path, rows, images):
    monkeypatch.setitem(sys.modules, "ray", stand_in())
    one, two = tmp_path / "one", tmp_path / "two"
    advens("run", suite(), "--out", one).done()
    advens("run", suite(), "--out", two, "--executor", "ray").done()
    same(one, two, rows, images)


def test_ray_errors_are_one_line(monkeypatch):
    ray = stand_in()
    monkeypatch.setitem(sys.modules, "ray", ray)
    tasks = [Loud(3), Loud(InputError("no such thing")), Loud(RunError("broke")), Loud(4)]
    outcomes = create_executor("ray").execute(tasks)
    assert next(outcomes)[1] == 4
    assert str(next(outcomes)[1]) == "broke"
    with pytest.raises(InputError) as caught:
        next(outcomes)
    assert str(caught.value) == "no such thing"
    assert len(ray.cancelled) == 1


def test_ray_itself(advens, suite, tmp_path, rows, images):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    try:
        one, two = tmp_path / "one", tmp_path / "two"
        advens("run", suite(), "--out", one).done()
        advens("run", suite(), "--out", two, "--executor", "ray").done()
        same(one, two, rows, images)
        silent = suite("s.toml", targets=["toys:silent?seed=4"])
        advens("run", silent, "--out", two, "--executor", "ray").refused("NaN")
    finally:
        ray.shutdown()
