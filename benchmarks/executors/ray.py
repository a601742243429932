"""The executor ``ray``: the same tasks on a Ray cluster.

Workers are actors, which keep models and data in memory from one task to the next. They are started wherever
the cluster has room, on nodes that join later, too, and what is lost with a node is done by the others.
"""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, ClassVar

from pydantic.dataclasses import dataclass

from advens.benchmarks.executors.base import (
    Answer,
    Outcomes,
    T,
    Task,
    attempt_elsewhere,
    executor,
    resolve_device,
)
from advens.benchmarks.executors.folders import look, marked
from advens.benchmarks.executors.workers import Loss, on_workers
from advens.errors import InputError, RunError, first_line
from advens.fields import Count, NonNegative, Positive, Share
from advens.trust import trusted

SETTINGS = (
    "ADVENS_CACHE", "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
)  # fmt: skip
"""Environment variables of the command (see `advens.cli`) that a Ray worker does not inherit."""
CRASHES, NODES = 3, 10
"""How many workers a task may lose: those that die by themselves, and those that are lost with their node."""
REFRESH = 5.0
"""Seconds after which the nodes of the cluster are looked up again."""
CHECK = 120.0
"""Seconds that a node has for starting a process which looks for the folder of the run."""


@executor("ray")
@dataclass(frozen=True)
class Ray:
    """A Ray cluster: the one that is connected or found, or one that is started on this machine.

    Args:
        device: as workers see it; ``auto`` is ``cuda`` where a node has GPUs.
        workers: how many; by default as many as the cluster has room for.
        address: of the cluster; by default ``RAY_ADDRESS``, or a cluster that runs on this machine.
        cpus: of a worker, which computes with so many threads.
        gpus: the share of a GPU and of its memory that a worker takes.
        gpu_memory: GiB of GPU memory of a worker; ``gpus`` follows from the smallest GPU of the cluster.
        wait: seconds to wait for a node that has what a worker needs.
    """

    elsewhere: ClassVar[bool] = True
    package: ClassVar[str] = "ray"
    device: str = "cpu"
    workers: Count | None = None
    address: str | None = None
    cpus: Count = 1
    gpus: Share = 1.0
    gpu_memory: Positive | None = None
    wait: NonNegative = 120.0

    def __post_init__(self) -> None:
        if self.device == "auto":
            found = connected(self.address).cluster_resources().get("GPU", 0)
            object.__setattr__(self, "device", "cuda" if found else "cpu")

    def execute(self, tasks: Sequence[T]) -> Outcomes[T]:
        """See `advens.benchmarks.executors.Executor`."""
        if not tasks:
            return
        ray = connected(self.address)
        with marked(tasks) as marks:
            cluster = Cluster(ray, self, marks)
            cluster.check()
            yield from on_workers(tasks, cluster.size, cluster.start)


def connected(address: str | None) -> Any:
    """Ray, connected to a cluster. Raises InputError without Ray, or when there is no cluster."""
    try:
        import ray
    except ImportError as error:
        raise InputError("executor 'ray' needs Ray; install advens[ray]") from error
    if not ray.is_initialized():
        # Ray would print what it logs about lost workers to stdout, among our tables
        with suppress(AttributeError):
            ray._private.worker._worker_logs_enabled = False
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(f"cannot connect to a Ray cluster: {first_line(error)}") from None
    return ray


def room(nodes: Sequence[Mapping[str, Any]], cpus: int, share: float) -> int:
    """How many workers the nodes of a cluster have room for.

    Args:
        nodes: as ``ray.nodes()`` describes them.
        cpus: of a worker.
        share: of a GPU that a worker takes; 0 for none.
    """
    found = 0
    for node in nodes:
        has = node["Resources"] if node["Alive"] else {}
        fits = int(has.get("CPU", 0)) // cpus
        found += min(fits, int(has.get("GPU", 0)) * int(1 / share + 1e-6)) if share else fits
    return found


class Cluster:
    """The workers that a cluster has for a list of tasks."""

    def __init__(self, ray: Any, how: Ray, marks: Mapping[str, str]) -> None:
        self.ray, self.how, self.marks = ray, how, marks
        self.cuda = how.device.startswith("cuda")
        self.share = how.gpus if self.cuda else 0.0
        settings = {name: os.environ[name] for name in SETTINGS if name in os.environ}
        self.environment = {"runtime_env": {"env_vars": settings}} if settings else {}
        self.nodes: list[dict[str, Any]] = ray.nodes()
        self.asked = self.last_room = time.monotonic()
        self.began = False

    def check(self) -> None:
        """Whether every node sees the folders that tasks write into, and how large its GPUs are.

        Raises:
            InputError: naming a node that does not, or on which advens cannot be imported.
        """
        found = self._on_nodes(look_here, self.marks, self.how.gpu_memory is not None and self.cuda)
        for error in found:
            if isinstance(error, InputError):
                raise error
        sizes = [size for size in found if size]
        if self.how.gpu_memory is not None and sizes:
            self.share = min(1.0, self.how.gpu_memory * 2**30 / min(sizes))

    def size(self) -> int:
        """How many workers there may be now. Raises InputError or RunError when there is room for none."""
        now = time.monotonic()
        if now - self.asked >= REFRESH:
            self.nodes, self.asked = self.ray.nodes(), now
        most = room(self.nodes, self.how.cpus, self.share)
        if most:
            self.last_room, self.began = now, True
        elif now - self.last_room > self.how.wait:
            needs = f"{self.how.cpus} CPUs" + (f" and {self.share:.3g} GPUs" if self.share else "")
            kind = RunError if self.began else InputError
            raise kind(f"no node of the Ray cluster has {needs}, for {self.how.wait:.0f} s now")
        return self.how.workers or max(1, most)  # one that waits for room tells an autoscaler

    def start(self, number: int) -> Actor:
        """A worker, wherever there is room for one."""
        remote = self.ray.remote(
            num_cpus=self.how.cpus, num_gpus=self.share, max_restarts=0, **self.environment
        )(Host)
        where = Where(os.getcwd(), self.how.device, self.how.cpus, self.share, dict(self.marks))
        return Actor(self.ray, remote.remote(where))

    def _on_nodes(self, function: Any, *arguments: Any) -> list[Any]:
        """What a function returns on every node that has room for a worker; lost nodes are left out."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        remote = self.ray.remote(num_cpus=0, max_retries=0, **self.environment)(function)
        asked = {
            node["NodeName"]: remote.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
                num_gpus=0.001 if self.share else 0,
            ).remote(node["NodeName"], *arguments)
            for node in self.nodes if room([node], self.how.cpus, self.share)
        }  # fmt: skip
        found, errors = [], self.ray.exceptions
        for name, reference in asked.items():
            try:
                found.append(self.ray.get(reference, timeout=CHECK))
            except errors.RayTaskError as error:
                raise InputError(f"node {name} cannot do tasks: {_reason(error)}") from None
            except (errors.RayError, TimeoutError):
                continue  # lost; should it come back, its workers look again
        return found


def look_here(node: str, marks: Mapping[str, str], measure: bool) -> int | InputError:
    """On a node: bytes of its GPU where they are asked for; an InputError when it cannot do the tasks."""
    try:
        look(marks, f"node {node}")
        return gpu_bytes(node) if measure else 0
    except InputError as error:
        return error


def gpu_bytes(node: str) -> int:
    """Memory of the GPU of a worker. Raises InputError when torch cannot use one on this node."""
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"node {node} has no GPU that torch can use")
    return int(torch.cuda.get_device_properties(0).total_memory)


@dataclass(frozen=True)
class Where:
    """What a worker on another machine needs to know.

    Args:
        folder: the working directory of the command, to which paths in tasks may be relative.
        device, cpus, share: see `Ray`; ``share`` is 0 without a GPU.
        marks: see `look`.
    """

    folder: str
    device: str
    cpus: int
    share: float
    marks: dict[str, str]


class Host:
    """The actor of a worker."""

    def __init__(self, where: Where) -> None:
        self.where = where

    def begin(self) -> str | InputError:
        """Looks for folders and GPU. Returns the id of the node, or why it cannot do the tasks."""
        import ray
        import torch

        where, node = self.where, platform.node()
        with suppress(OSError):  # where it is not there, only absolute paths can be seen
            os.chdir(where.folder)
        torch.set_num_threads(where.cpus)
        try:
            look(where.marks, f"node {node}")
            if where.share:
                gpu_bytes(node)
                torch.cuda.set_per_process_memory_fraction(where.share)
            self.device = "cuda:0" if where.share else resolve_device(where.device)
        except InputError as error:
            return error
        return str(ray.get_runtime_context().get_node_id())

    def do(self, task: Task, names: frozenset[str]) -> Answer:
        """Does a task."""
        return attempt_elsewhere(task, self.device, names)


class Actor:
    """A worker of the cluster, seen from here."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self.ray, self.actor, self.names = ray, actor, trusted()
        self.node: Future[str | InputError] | None = None

    def begin(self) -> Future[str | InputError]:
        self.node = self.actor.begin.remote().future()
        return self.node

    def submit(self, task: Task) -> Future[Answer]:
        found: Future[Answer] = self.actor.do.remote(task, self.names).future()
        return found

    def lost(self, error: BaseException) -> Loss | None:
        errors = self.ray.exceptions
        if not isinstance(error, errors.RayActorError):
            return None
        if error.actor_init_failed:
            raise InputError(f"a Ray worker cannot start: {_reason(error)}")
        if isinstance(error, errors.ActorUnavailableError) or not self._node_is_there():
            return Loss(f"{NODES} nodes were lost while they worked on it", NODES)
        why = f"{CRASHES} worker processes died while they worked on it, perhaps out of memory"
        return Loss(why, CRASHES)

    def stop(self) -> None:
        with suppress(Exception):  # it may be gone
            self.ray.kill(self.actor)

    def _node_is_there(self) -> bool:
        if self.node is None or not self.node.done() or self.node.exception():
            return False
        return any(each["Alive"] for each in self.ray.nodes() if each["NodeID"] == self.node.result())


def _reason(error: BaseException) -> str:
    """The last line of an error of Ray's, whose first lines are a traceback."""
    return str(error).strip().splitlines()[-1].strip()
