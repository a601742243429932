"""Who does the work changes nothing: this process, several, or Ray."""

from __future__ import annotations

import pickle
import sys

import pandas as pd
import pytest

from advens.benchmarks.environment import device_name
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
    """The cell it had fails; the run goes on with a new worker."""
    sets = {"bad": ["toys:mortal?seed=1"], "good": ["toys:centroid?seed=2"]}
    path, out = suite(attacks=[{"name": "mifgsm"}], surrogates=sets), tmp_path / "out"
    said = advens("run", path, "--out", out, "--workers", 2)
    said.failed("2 cells failed")
    told = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert len(told) == 2
    assert all("on bad" in line and "its worker process died" in line for line in told), told
    assert "2 of 4 crafted, 2 left\nevaluations  6 of 12 done\nfailed       2" in advens("status", out).out
    assert len(RunStore(out).evaluated()) == 6


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_workers_that_cannot_be(advens, suite, tmp_path, given):
    advens("run", suite(), "--out", tmp_path / "out", "--workers", given).refused("--workers", given)


@pytest.mark.parametrize(("given", "words"), [
    ("ray?gpus=2", ["executor 'ray': gpus = '2'", "above 0 and at most 1"]),
    ("ray?gpu=1", ["executor 'ray' has no option 'gpu'", "did you mean 'gpus'"]),
    ("ray?device=cuda", ["has no option 'device'"]),
    ("local?cpus=2", ["executor 'local' has no option 'cpus'; it has none"]),
])  # fmt: skip
def test_options_that_cannot_be(advens, suite, tmp_path, given, words):
    advens("run", suite(), "--out", tmp_path / "out", "--executor", given).refused(*words)


@pytest.mark.parametrize("command", ["run", "craft", "robustness"])
def test_object_stores_are_refused(advens, suite, tmp_path, monkeypatch, command):
    """Nothing is crafted into a folder that is named like one."""
    given = {"run": [suite()], "craft": ["fgsm", "--surrogates", "digits:cnn", "--data", "digits:test"],
             "robustness": ["--models", "digits:cnn", "--data", "digits:test"]}  # fmt: skip
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    advens(command, *given[command], "--out", "s3://bucket/run").refused("s3:/bucket/run is an address")
    assert set(tmp_path.iterdir()) == before


def test_unknown_executor(advens, suite, tmp_path):
    said = advens("run", suite(), "--out", tmp_path / "out", "--executor", "rai")
    said.refused("unknown executor 'rai'", "'ray'")


def test_workers_share_the_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert device_of_worker("cuda", 7) == "cuda:1"
    assert device_of_worker("cuda:0", 7) == "cuda:0"
    assert device_of_worker("cpu", 7) == "cpu"


def test_a_gpu_of_another_machine(monkeypatch):
    """What a run depended on names the device, and asks nobody here for the product."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_name("cuda") == "cuda"


def test_without_ray(advens, suite, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    said = advens("run", suite(), "--out", tmp_path / "out", "--executor", "ray")
    said.refused("'ray' needs Ray", "advens[ray]")
    assert not (tmp_path / "out").exists()


class Loud:
    """A task with an outcome of its own."""

    cell = None

    def __init__(self, outcome) -> None:
        self.outcome, self.title = outcome, "loud"

    def do(self, device: str) -> int:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome
