"""Jobs of submitit, as processes of this machine: rows are those of a local run, whatever jobs end early."""

from __future__ import annotations

import sys
from typing import ClassVar

import pytest

from advens.benchmarks.executors import create_executor
from advens.benchmarks.executors.submitit import Group, Submitit
from advens.errors import InputError, RunError
from tests.benchmarks.test_executors import same
from tests.benchmarks.test_interruptions import cells


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("advens.benchmarks.executors.submitit.EVERY", 0.05)


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="submitit is not installed")


def jobs(tmp_path):
    return list((tmp_path / "cache").glob("submitit/*"))


class Job:
    """A job that is done, in this process; without a group one that was lost."""

    job_id = "7"

    def __init__(self, paths, group=None) -> None:
        self.paths, self.group = paths, group

    def done(self):
        return True

    def exception(self):
        return None if self.group else RuntimeError("lost")

    def result(self):
        return self.group()

    def cancel(self, check):
        pass


@pytest.fixture
def here(tmp_path, monkeypatch, submitit):
    """Jobs are done in this process, or lost: ``here.lost = True``."""

    class Queue:
        lost = False
        groups: ClassVar = []

        def submit(self, group):
            self.groups.append(group)
            return Job(submitit.core.utils.JobPaths(tmp_path, "7"), None if self.lost else group)

    found = Queue()
    monkeypatch.setattr(Submitit, "queue", lambda self, folder: found)
    return found


def test_a_run_of_jobs(advens, suite, tmp_path, rows, images, here):
    one, two = tmp_path / "one", tmp_path / "two"
    advens("run", suite(), "--out", one).done()
    said = advens("run", suite(), "--out", two, "--executor", "submitit?tasks=3").done()
    assert "4 cells crafted, 12 evaluations" in said.out
    assert max(len(group.tasks) for group in here.groups) == 3
    same(one, two, rows, images)
    assert (one / "matrix.parquet").read_bytes() == (two / "matrix.parquet").read_bytes()


def test_a_job_that_dies(advens, suite, tmp_path, submitit):
    """The cell it had fails; those before it are kept, and those after it are another job's."""
    sets = {"a": ["toys:centroid?seed=1"], "bad": ["toys:mortal?seed=1"], "c": ["toys:centroid?seed=2"]}
    data, attacks = "digits:test?limit=10", [{"name": "fgsm"}]
    path, out = suite(attacks=attacks, surrogates=sets, data=data), tmp_path / "out"
    how = "submitit?cluster=local&tasks=9"
    said = advens("run", path, "--out", out, "--executor", how, "--no-report", "--device", "cpu")
    said.failed("1 cells failed")
    (told,) = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert "fgsm on bad" in told
    assert "its job" in told
    assert len(cells(out)) == 2
    assert len(jobs(tmp_path)) == 1


def test_bad_input_is_one_line(advens, suite, tmp_path, here):
    path = suite(targets=["toys:silent?seed=4"], attacks=[{"name": "fgsm"}])
    said = advens("run", path, "--out", tmp_path / "out", "--executor", "submitit")
    said.refused("toys:silent?seed=4", "NaN")


class Noted:
    """A task that leaves a line, and may stop its job as a signal does."""

    title = "noted"

    def __init__(self, path, name, stops=False) -> None:
        self.path, self.name, self.stops = path, name, stops

    def do(self, device: str) -> str:
        with self.path.open("a") as file:
            file.write(f"{self.name}\n")
        if self.stops:
            raise SystemExit(144)
        return self.name


def test_a_job_that_is_queued_again_goes_on(tmp_path, submitit):
    done = tmp_path / "done"
    tasks = (Noted(done, "a"), Noted(done, "b", stops=True), Noted(done, "c"))
    group = Group(tasks, "cpu", 1, frozenset(), {}, tmp_path / "kept")
    assert group.answers() is None
    with pytest.raises(SystemExit):
        group()
    assert group.answers() == [("a", [])]
    tasks[1].stops = False
    again = group.checkpoint().function
    assert again() == [(name, []) for name in "abc"]
    assert done.read_text().split() == ["a", "b", "b", "c"]


def test_jobs_that_never_begin(tmp_path, here):
    """They end the run instead of failing its cells one by one."""
    here.lost = True
    tasks = [Noted(tmp_path / "done", name) for name in "abcdefgh"]
    found = []
    with pytest.raises(RunError, match=r"3 jobs were lost as they began; see .*7_0_log\.err"):
        found.extend(create_executor("submitit?tasks=1").execute(tasks))
    assert len(found) == 2


def test_a_folder_that_a_job_does_not_see(tmp_path, monkeypatch, submitit):
    monkeypatch.setattr("advens.benchmarks.executors.folders.PATIENCE", 0)
    marks = {str(tmp_path / "out" / "seen-0.tmp"): "token"}
    group = Group((Noted(tmp_path / "done", "a"),), "cpu", 1, frozenset(), marks, tmp_path / "kept")
    ((error, _),) = group()
    assert isinstance(error, InputError)
    assert f"does not see {tmp_path / 'out'}" in str(error)
    assert not (tmp_path / "done").exists()


def test_what_slurm_is_asked_for(tmp_path, submitit):
    how = create_executor("submitit?cluster=local&minutes=30&cpus=2&memory=8&partition=long", device="cuda")
    assert how.device == "cuda"
    asked = how.queue(tmp_path / "jobs").parameters
    wanted = {"timeout_min": 30, "cpus_per_task": 2, "gpus_per_node": 1, "mem_gb": 8.0}
    assert wanted.items() <= asked.items()
    assert create_executor("submitit?gpus=2", device="auto").device == "cuda"
    assert create_executor("submitit", device="auto").device == "cpu"


@pytest.mark.parametrize(("given", "words"), [
    ("submitit?cluster=pbs", ["executor 'submitit': cluster = 'pbs'"]),
    ("submitit?cpu=2", ["executor 'submitit' has no option 'cpu'", "did you mean 'cpus'"]),
    ("submitit?minutes=0", ["minutes = '0'"]),
])  # fmt: skip
def test_options_that_cannot_be(advens, suite, tmp_path, given, words):
    advens("run", suite(), "--out", tmp_path / "out", "--executor", given).refused(*words)


def test_without_slurm(advens, suite, tmp_path, monkeypatch, submitit):
    monkeypatch.setenv("PATH", str(tmp_path))
    said = advens("run", suite(), "--out", tmp_path / "out", "--executor", "submitit?cluster=slurm")
    said.refused("submitit cannot be used", "srun")


def test_without_submitit(advens, suite, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    said = advens("run", suite(), "--out", tmp_path / "out", "--executor", "submitit")
    said.refused("'submitit' needs submitit", "advens[submitit]")
    assert not (tmp_path / "out").exists()
