"""Killed, interrupted, crowded, full, damaged: finished cells stay and the same command goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from advens.benchmarks import runner
from advens.results.store import RunStore

SLOW = {
    "data": "digits:test?limit=12",
    "shard": 2,
    "surrogates__pair": ["toys:slow?seed=1&seconds=0.1", "toys:centroid?seed=2"],
    "targets": ["toys:centroid?seed=3"],
}
"""Twelve cells of about 0.2 s each."""


def until(there, seconds: float = 60.0) -> None:
    """Waits until something is there."""
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def cells(out: Path) -> set[str]:
    return {path.name for path in out.glob("examples/*.parquet")}


def whole(out: Path) -> None:
    """Nothing half-written is there under a final name."""
    from advens.results.store import read_table

    for folder in ("examples", "samples"):
        for path in out.glob(f"{folder}/*.parquet"):
            read_table(path, folder)


def test_killed_in_the_middle(advens, process, suite, tmp_path, times):
    flag, out = tmp_path / "flag", tmp_path / "out"
    flag.touch()
    path = suite(**SLOW | {"surrogates__pair": [f"toys:stuck?flag={flag}&most=8", "toys:centroid?seed=2"]})
    child = process("run", path, "--out", out)
    until(lambda: len(cells(out)) >= 3)

    # a second run in the same directory is refused, and does no harm to the first
    said = advens("run", path, "--out", out).refused(str(out), "in use by process", str(child.pid))
    assert "\n" not in said
    assert child.poll() is None

    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = times(out, "examples")
    assert 3 <= len(kept) < 12
    whole(out)
    (out / "examples" / "x.parquet.1-ab.tmp").write_bytes(b"half")
    (out / "suite.toml.1-ab.tmp").write_bytes(b"half")
    status = advens("status", out).done().out
    assert f"{len(kept)} of 12 crafted, {12 - len(kept)} left" in status
    flag.unlink()

    said = advens("run", path, "--out", out).done()
    assert f"{12 - len(kept)} cells crafted, 12 evaluations" in said.out
    assert kept.items() < times(out, "examples").items()
    assert not list(out.rglob("*.tmp"))
    advens("verify", out).done()


def interrupted(child: subprocess.Popen[str], seconds: float) -> str:
    """Sends Ctrl-C; what is said on stderr, in so many seconds at most."""
    started = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert time.monotonic() - started < seconds
    assert child.returncode == 130
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("advens: interrupted; finished cells are kept")
    return err


def test_control_c(advens, process, suite, tmp_path, times):
    path, out = suite(**SLOW), tmp_path / "out"
    advens("run", path, "--out", out, "--attacks", "difgsm").done()
    assert (out / "matrix.parquet").is_file()
    child = process("run", path, "--out", out)
    until(lambda: len(cells(out)) >= 8)
    interrupted(child, 5)
    kept = times(out, "examples")
    assert 8 <= len(kept) < 12
    whole(out)
    advens("verify", out).unfinished()  # what is there is true, though it is not all
    advens("run", path, "--out", out).done()
    assert kept.items() < times(out, "examples").items()


def children(pid: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(status.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(process, suite, tmp_path, how):
    """Ctrl-C does not wait for the cells at hand (30 s each), and nobody outlives a killed run."""
    path = suite(**SLOW | {
        "surrogates__pair": [f"toys:slow?seed=1&seconds=30&mark={tmp_path}/mark"],
        "targets": ["toys:centroid?seed=3"],
    })  # fmt: skip
    out = tmp_path / "out"
    child = process("run", path, "--out", out, "--workers", 2)
    until(lambda: (tmp_path / "mark").is_file())
    workers = children(child.pid)
    assert len(workers) >= 2
    if how == signal.SIGINT:
        interrupted(child, 8)
    else:
        child.kill()
        child.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 10)


@pytest.mark.parametrize("folder", ["examples", "samples"])
@pytest.mark.parametrize("length", [0, 100, -1])
def test_truncated_files_are_done_again(advens, suite, tmp_path, images, folder, length):
    path, out = suite(attacks=[{"name": "mifgsm"}]), tmp_path / "out"
    advens("run", path, "--out", out).done()
    before, file = images(out), sorted((out / folder).iterdir())[0]
    file.write_bytes(file.read_bytes()[:length])
    status = advens("status", out).done().out
    assert ("1 of 2 crafted, 1 left" if folder == "examples" else "5 of 6 done") in status
    said = advens("run", path, "--out", out).done()
    again = {"examples": "1 cells crafted, 3 evaluations", "samples": "0 cells crafted, 1 eval"}
    assert again[folder] in said.out
    assert images(out) == before
    advens("verify", out).done()


@pytest.mark.parametrize("name", ["matrix", "leaderboard"])
def test_summaries_are_made_again(advens, suite, tmp_path, name):
    path, out = suite(attacks=[{"name": "mifgsm"}]), tmp_path / "out"
    advens("run", path, "--out", out).done()
    file = out / f"{name}.parquet"
    before = file.read_bytes()
    for spoil in (file.unlink, lambda: file.write_bytes(before[:-5])):
        spoil()
        advens("run", path, "--out", out).done()
        assert file.read_bytes() == before


def test_killed_before_the_summary(advens, suite, tmp_path, monkeypatch):
    """All cells are there, but what was summarised is what there was before them."""
    path, out = suite(), tmp_path / "out"
    advens("run", path, "--out", out, "--attacks", "mifgsm").done()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "write_board", _interrupted)
        assert advens("run", path, "--out", out).code == 130
    advens("verify", out).unfinished()
    advens("run", path, "--out", out).done()
    assert "difgsm" in advens("leaderboard", out, "--format", "csv").done().out
    from advens.results.store import read_table

    board = read_table(out / "leaderboard.parquet", "leaderboard")
    assert set(board.column("attack").to_pylist()) == {"mifgsm", "difgsm"}
    advens("verify", out).done()


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_output_folder_that_cannot_be(advens, suite, tmp_path):
    (tmp_path / "file").write_text("x")
    advens("run", suite(), "--out", tmp_path / "file" / "out").refused("file", "Not a directory")
    advens("run", suite(), "--out", tmp_path / "file").refused(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("at", ["examples", "samples", "suite.toml", "leaderboard"])
def test_a_disk_that_is_full(advens, suite, tmp_path, monkeypatch, code, at):
    path, out = suite(attacks=[{"name": "mifgsm"}]), tmp_path / "out"
    real, seen = os.fsync, []

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if at in name and name.endswith(".tmp"):
            seen.append(name)
            if len(seen) == (2 if at in ("examples", "samples") else 1):
                raise OSError(code, os.strerror(code))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        said = advens("run", path, "--out", out)
    said.refused("cannot write", at, os.strerror(code))
    assert not list(out.rglob("*.tmp"))
    whole(out)
    assert len(cells(out)) == {"suite.toml": 0, "examples": 1}.get(at, 2)
    advens("run", path, "--out", out).done()
    advens("verify", out).done()


def test_a_folder_that_fills_between_write_and_rename(advens, suite, tmp_path, monkeypatch):
    path, out = suite(), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _no_space)
        advens("run", path, "--out", out).refused("No space left on device")
    assert [item.name for item in out.iterdir() if item.is_file()] == [".lock"]
    advens("run", path, "--out", out).done()


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", ["plan.json", "suite.toml"])
def test_a_damaged_description(advens, suite, tmp_path, name):
    path, out = suite(attacks=[{"name": "mifgsm"}]), tmp_path / "out"
    advens("run", path, "--out", out).done()
    (out / name).write_bytes((out / name).read_bytes()[:-9])
    for command in (["run", path, "--out", out], ["evaluate", out, "--targets", "digits:resnet"]):
        advens(*command).refused(name)


def test_the_lock_is_free_after_a_failure(advens, suite, tmp_path):
    bad = suite("bad.toml", targets=["toys:silent?seed=3"])
    advens("run", bad, "--out", tmp_path / "out").refused("NaN")
    with RunStore(tmp_path / "out").lock():
        pass
