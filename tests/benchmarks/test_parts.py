"""Several processes share a run: nothing is done twice or lost, and the matrix has the same bytes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advens.benchmarks.parts import Part, shares_of
from advens.benchmarks.plan import make_plan
from advens.datasets import load_data
from advens.errors import InputError
from advens.results.store import RunStore, lock
from tests.benchmarks.test_interruptions import SLOW, cells, until

ROUNDS: dict[str, Any] = {
    "data": "digits:test?limit=40", "shard": 20, "threat__eps": 0.02, "goal": "robustness", "sanity": False,
    "surrogates": {"each": ["toys:comb?seed=1&gap=0.05", "toys:centroid?seed=1"]},
    "targets": ["toys:comb?seed=1&gap=0.05", "toys:centroid?seed=1"],
    "attacks": [{"name": "pgd-ce+fgsm", "steps": 2, "until": 0.03, "round_attack": "pgd-ce"}],
}  # fmt: skip
"""Sequences, and rounds of which the stored rows say how many there are."""


@pytest.fixture
def parted(process: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """``parted(path, "--part", "1/2")``: a part in a process of its own, whose claims die after seconds."""
    before = "from advens.results.store import lock; lock.BEAT, lock.DEAD = 0.3, 6.0"
    return lambda *arguments: process("run", *arguments, before=before)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims show life at once, so that nobody waits for long."""
    monkeypatch.setattr(lock, "BEAT", 0.05)


def test_four_parts_two_of_which_are_killed(advens, parted, suite, tmp_path, times, images):
    path, out = suite(**SLOW), tmp_path / "out"
    advens("run", path, "--out", tmp_path / "plain").done()
    parts = [parted(path, "--out", out, "--part", f"{number}/4") for number in range(1, 5)]
    until(lambda: len(cells(out)) >= 2)
    for child in parts[:2]:
        child.send_signal(signal.SIGKILL)
    kept = times(out, "examples")
    crafted = 0
    for child in parts[2:]:
        said, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        crafted += int(said.partition(": ")[2].partition(" cells")[0])
    # the others went on with what those that were killed had left, and did nothing again
    assert len(cells(out)) == 12
    assert kept.items() <= times(out, "examples").items()
    assert crafted <= 12
    assert not (out / "matrix.parquet").exists()
    there = times(out)
    assert "nothing to do" in advens("run", path, "--out", out).done().out
    assert there.items() <= times(out).items()
    assert (out / "matrix.parquet").read_bytes() == (tmp_path / "plain" / "matrix.parquet").read_bytes()
    assert images(out) == images(tmp_path / "plain")
    assert not list(out.glob("claims"))
    advens("verify", out).done()


@pytest.mark.parametrize("text", ["3/2", "0/2", "1", "a/b", "-1/2", "1/2/3", "1 /2", "½/2"])
def test_a_part_that_is_none(advens, suite, tmp_path, text):
    advens("run", suite(), "--out", tmp_path / "out", "--part", text).refused(f"--part {text}: write I/N")
    assert not (tmp_path / "out").exists()


def test_shares_are_neighbours_and_keep_sequences_together(made):
    suite = made(**ROUNDS | {"shard": 5})
    plan = make_plan(suite, load_data(suite.source), held_out=False)
    every = (*plan.cells, *plan.rounds)
    shares = shares_of(every, 4)
    assert [shares[cell.key] for cell in plan.cells if not cell.after] == [i // 4 + 1 for i in range(16)]
    assert all(shares[cell.key] == shares[cell.after] for cell in every if cell.after)
    assert set(shares_of(every, 50).values()) < set(range(1, 51))
    with pytest.raises(InputError):
        Part.parse("2/1")


def test_a_part_alone_does_everything(advens, suite, tmp_path, rows):
    """Sequences and rounds, whose number follows from what is found, too."""
    path = suite(**ROUNDS)
    advens("run", path, "--out", tmp_path / "plain").done()
    said = advens("run", path, "--out", tmp_path / "out", "--part", "2/3").done()
    assert "part 2/3: " in said.out
    assert "0 left" in advens("status", tmp_path / "out").done().out
    again = advens("run", path, "--out", tmp_path / "out", "--part", "3/3").done()
    assert "part 3/3: 0 cells crafted, 0 evaluations" in again.out
    assert "nothing to do" in advens("run", path, "--out", tmp_path / "out").done().out
    assert rows(tmp_path / "out").equals(rows(tmp_path / "plain"))
    assert (tmp_path / "out" / "robustness.parquet").is_file()
    assert len(cells(tmp_path / "out")) > 8, "rounds"


def test_trainings_are_not_done_in_parts(advens, tmp_path):
    said = advens("run", "digits-defenses", "--out", tmp_path / "out", "--part", "1/2")
    said.refused("digits-defenses", 'goal = "defense"', "run it without --part")
    assert not (tmp_path / "out").exists()


def test_parts_and_plain_runs_keep_out_of_each_others_way(advens, suite, tmp_path):
    path, out = suite(), tmp_path / "out"
    with RunStore(out).share():
        advens("run", path, "--out", out).refused("in use by process", str(os.getpid()))
        advens("run", path, "--out", out, "--part", "1/2").done()
    with RunStore(out).lock():
        advens("run", path, "--out", out, "--part", "1/2").refused("in use by process", str(os.getpid()))


def left_by(store: RunStore, name: str, moved: float = 0.0) -> Path:
    """The claim of a process that died, whose clock was so many seconds ahead."""
    path = store.directory / "claims" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("1 on elsewhere 0 000000007\n")
    at = path.stat().st_mtime + moved
    os.utime(path, (at, at))
    return path


@pytest.mark.parametrize("moved", [0.0, -1e6, 1e6])
def test_what_a_dead_process_claimed_is_taken_over(advens, suite, made, tmp_path, monkeypatch, moved):
    monkeypatch.setattr(lock, "DEAD", 0.6)
    store, plan = RunStore(tmp_path / "out"), make_plan(made(), load_data("digits:test?limit=20"))
    claims = [left_by(store, plan.cells[0].key, moved), left_by(store, "of-another-suite", moved)]
    said = advens("run", suite(), "--out", store.directory, "--part", "1/2").done()
    assert "part 1/2: 4 cells crafted, 12 evaluations" in said.out
    assert not any(map(Path.exists, claims))


@pytest.mark.usefixtures("hasty")
def test_what_another_is_at_is_left_to_it(advens, suite, made, tmp_path):
    store, plan = RunStore(tmp_path / "out"), make_plan(made(), load_data("digits:test?limit=20"))
    cell = plan.cells[1].key
    with store.claim(cell) as mine, store.claim(cell) as again:
        assert (mine, again) == (True, False)
        said = advens("run", suite(), "--out", store.directory, "--part", "1/2").done()
        assert "part 1/2: 3 cells crafted, 9 evaluations" in said.out
        assert "4 cells and evaluations are left to other parts" in said.out
    assert not store.claims()
    said = advens("run", suite(), "--out", store.directory, "--part", "2/2").done()
    assert "part 2/2: 1 cells crafted, 3 evaluations" in said.out


def test_a_claim_that_ends_is_looked_after(advens, suite, made, tmp_path):
    """A cell is given up by its part, before it is known whether that is alive: it is done here."""
    store, plan = RunStore(tmp_path / "out"), make_plan(made(), load_data("digits:test?limit=20"))
    ended = threading.Timer(1.0, Path.unlink, [left_by(store, plan.cells[0].key)])
    ended.start()
    said = advens("run", suite(), "--out", store.directory, "--part", "1/1").done()
    ended.join()
    assert "part 1/1: 4 cells crafted, 12 evaluations" in said.out


def test_a_claim_that_was_taken_over_is_not_removed(tmp_path):
    store = RunStore(tmp_path)
    with store.claim("x"):
        (path,) = store.claims()
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_failures_are_left_to_their_parts(advens, suite, tmp_path):
    flag = tmp_path / "flag"
    flag.touch()
    path, out = suite(
        attacks=[{"name": "mifgsm"}],
        surrogates={"a": [f"toys:fragile?flag={flag}&seed=1"], "b": ["toys:centroid?seed=2"]},
    ), tmp_path / "out"
    said = advens("run", path, "--out", out, "--part", "1/2")
    said.failed("2 cells failed")
    assert "part 1/2: 2 cells crafted, 6 evaluations" in said.out
    said = advens("run", path, "--out", out, "--part", "2/2").done()
    assert "part 2/2: 0 cells crafted, 0 evaluations" in said.out
    assert "8 cells and evaluations are left to other parts, or failed there" in said.out
    advens("run", path, "--out", out, "--part", "1/2").failed("2 cells failed")
    flag.unlink()
    assert "part 1/2: 2 cells crafted" in advens("run", path, "--out", out, "--part", "1/2").done().out
    assert "failed       0" in advens("status", out).out


def test_rows_of_images_that_are_lost_go_before_the_images_return(advens, suite, tmp_path, rows):
    path, out = suite(), tmp_path / "out"
    advens("run", path, "--out", out).done()
    before, lost = rows(out), sorted((out / "examples").iterdir())[0]
    lost.write_bytes(lost.read_bytes()[:-5])
    said = advens("run", path, "--out", out, "--part", "1/1").done()
    assert "part 1/1: 1 cells crafted, 3 evaluations" in said.out
    assert not (out / "matrix.parquet").exists()
    assert rows(out).equals(before)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_claim_that_cannot_be_created_is_one_line(advens, suite, tmp_path, monkeypatch, code):
    path, out, real = suite(attacks=[{"name": "mifgsm"}]), tmp_path / "out", os.open

    def full(name: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_EXCL and "claims" in str(name):
            raise OSError(code, os.strerror(code))
        return real(name, flags, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        advens("run", path, "--out", out, "--part", "1/2").refused("cannot write", os.strerror(code))
    assert not cells(out)
    advens("run", path, "--out", out).done()
    advens("verify", out).done()


def test_work_goes_on_under_a_claim_that_cannot_be_written(advens, suite, tmp_path, monkeypatch):
    path, out, asked, real = suite(attacks=[{"name": "mifgsm"}]), tmp_path / "out", [], os.pwrite

    def full(descriptor: int, content: bytes, at: int) -> int:
        if "claims" not in os.readlink(f"/proc/self/fd/{descriptor}"):
            return real(descriptor, content, at)
        asked.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        advens("run", path, "--out", out, "--part", "1/1").done()
    assert asked
    assert len(cells(out)) == 2
    advens("run", path, "--out", out).done()
    advens("verify", out).done()
