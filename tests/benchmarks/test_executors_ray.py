"""A Ray cluster of three nodes on this machine: its rows are those of a local run, whatever is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from advens.benchmarks.executors.folders import look, marked
from advens.benchmarks.executors.ray import connected, room
from advens.errors import InputError
from tests.benchmarks.test_interruptions import SLOW, cells, until, whole

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
ray = pytest.importorskip("ray")


class Nodes:
    """A head that does no work, and nodes of one CPU that come and go."""

    def __init__(self) -> None:
        self.cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.found: list[Any] = []
        self.need(2)
        connected(self.cluster.address)

    def need(self, count: int) -> None:
        """Add nodes until there are so many."""
        while len(self.found) < count:
            self.found.append(self.cluster.add_node(num_cpus=1, object_store_memory=10**8))

    def kill(self) -> None:
        """The raylet of one node is killed, and its worker with it."""
        self.cluster.remove_node(self.found.pop(0), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    ray.shutdown()
    made.cluster.shutdown()


def boards(out: Path) -> dict[str, Any]:
    """The bytes of every board; of the leaderboard its rows without the measured time."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in sorted(out.glob("*.parquet"))}
    timed = pd.read_parquet(out / "leaderboard.parquet").drop(columns="seconds_per_image")
    return found | {"leaderboard.parquet": timed.astype(object).to_json(double_precision=15)}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Path], dict[str, Any]]:
    """The boards of a suite file as this process makes them, once for files of the same content."""
    made: dict[str, dict[str, Any]] = {}

    def make(advens: Any, path: Path) -> dict[str, Any]:
        if path.read_text() not in made:
            out = tmp_path_factory.mktemp("local") / "out"
            advens("run", path, "--out", out, "--no-report").done()
            made[path.read_text()] = boards(out)
        return made[path.read_text()]

    return make


def test_a_node_is_lost_and_another_joins(process, advens, suite, tmp_path, nodes, local, monkeypatch):
    """The folder of the run is relative; raylets were started elsewhere."""
    path = suite(**SLOW)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    out = tmp_path / "runs" / "it"
    child = process("run", path, "--out", "runs/it", "--executor", "ray", "--no-report")
    until(lambda: len(cells(out)) >= 2, 300)
    nodes.kill()
    lost = len(cells(out))
    nodes.need(3)
    said, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    assert lost < 12
    assert "12 cells crafted, 12 evaluations" in said
    assert "raylet" not in said + err
    assert boards(out) == local(advens, path)
    assert not list(out.rglob("*.tmp"))


def test_tasks_that_kill_their_worker(advens, suite, tmp_path, nodes):
    """Their cells fail, and the others are done."""
    sets = {"bad": ["toys:mortal?seed=1"], "good": ["toys:centroid?seed=2"]}
    data, attacks = "digits:test?limit=10", [{"name": "mifgsm"}]
    path, out = suite(attacks=attacks, surrogates=sets, data=data), tmp_path / "out"
    said = advens("run", path, "--out", out, "--executor", "ray", "--workers", 1)
    said.failed("1 cells failed")
    (told,) = [line for line in said.err.splitlines() if line.startswith("failed: ")]
    assert "mifgsm on bad" in told
    assert "3 worker processes died while they worked on it" in told
    assert len(cells(out)) == 1


def test_bad_input_is_one_line(advens, suite, tmp_path, nodes):
    path = suite(targets=["toys:silent?seed=4"], attacks=[{"name": "fgsm"}], data="digits:test?limit=10")
    said = advens("run", path, "--out", tmp_path / "out", "--executor", "ray", "--workers", 1)
    said.refused("toys:silent?seed=4", "NaN")


def test_a_node_that_does_not_see_the_folder(advens, suite, tmp_path, nodes, monkeypatch):
    """As if the folder of that name were another one there: what a node looks for is not in it."""
    monkeypatch.setattr("advens.benchmarks.executors.ray.marked", lambda tasks: nullcontext({
        str(tmp_path / "out" / "seen-0.tmp"): "token"
    }))  # fmt: skip
    said = advens("run", suite(), "--out", tmp_path / "out", "--executor", "ray")
    said.refused("node ", f"does not see {tmp_path / 'out'}", "all machines share")
    assert not cells(tmp_path / "out")


def test_the_driver_is_lost(advens, process, suite, tmp_path, nodes, local, monkeypatch):
    """Its workers end, nothing is half-written, and the same command does the rest."""
    path, out = suite(**SLOW), tmp_path / "out"
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    child = process("run", path, "--out", out, "--executor", "ray", "--no-report")
    until(lambda: len(cells(out)) >= 3, 300)
    child.send_signal(signal.SIGKILL)
    child.wait()
    until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], 60)
    whole(out)
    kept = len(cells(out))
    assert 3 <= kept < 12
    said = advens("run", path, "--out", out, "--executor", "ray", "--workers", 1, "--no-report").done()
    assert f"{12 - kept} cells crafted, 12 evaluations" in said.out
    assert boards(out) == local(advens, path)


def test_what_no_node_has(advens, suite, tmp_path, nodes):
    few = suite(data="digits:test?limit=10")
    said = advens("run", few, "--out", tmp_path / "out", "--executor", "ray?cpus=9&wait=0")
    said.refused("no node of the Ray cluster has 9 CPUs")
    said = advens("run", few, "--out", tmp_path / "out", "--executor", "ray?wait=0", "--device", "cuda")
    said.refused("no node of the Ray cluster has 1 CPUs and 1 GPUs")


def test_room_on_nodes():
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 2.0}},
        {"Alive": True, "Resources": {"CPU": 64.0}},
        {"Alive": False, "Resources": {"CPU": 9.0, "GPU": 9.0}},
        {"Alive": True, "Resources": {"GPU": 1.0}},
    ]
    assert room(nodes, 1, 0) == 68
    assert room(nodes, 3, 0) == 22
    assert room(nodes, 1, 1) == 2
    assert room(nodes, 1, 1 / 3) == 4
    assert room(nodes, 1, 0.6) == 2
    assert room([], 1, 0) == 0


def test_folders_are_marked_while_tasks_are_done(tmp_path, monkeypatch):
    class Writing:
        directory = "runs/it"

    monkeypatch.chdir(tmp_path)
    with marked([Writing(), Writing(), object()]) as marks:
        ((path, _),) = marks.items()
        assert Path(path).parent == tmp_path / "runs" / "it"
        look(marks, "this one")
        monkeypatch.setattr("advens.benchmarks.executors.folders.PATIENCE", 0)
        for lost in (lambda: Path(path).write_text("other"), Path(path).unlink):
            lost()
            with pytest.raises(InputError, match=f"node 7 does not see {tmp_path}/runs/it"):
                look(marks, "node 7")
    assert not list(tmp_path.rglob("*.tmp"))
