"""The executor ``submitit``: the same tasks as Slurm jobs.

A job does several tasks one after the other and keeps what came of each in a file. A job that is preempted or
reaches its time limit is queued again and goes on there; of one that ends in any other way the task at hand
fails, and the tasks after it are given to another job.
"""

from __future__ import annotations

import pickle
import secrets
import shutil
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from advens.benchmarks.executors.base import (
    Answer,
    Outcomes,
    T,
    attempt_elsewhere,
    executor,
    received,
    resolve_device,
)
from advens.benchmarks.executors.folders import look, marked
from advens.cache import cache_root
from advens.errors import InputError, RunError, first_line
from advens.fields import Count, Positive
from advens.files import write_bytes
from advens.trust import trusted

EVERY = 2.0
"""Seconds after which jobs are looked at again."""
JOBS = 4
"""Jobs for each worker when nobody says how many tasks a job does: the last ones end nearly together."""
STARTS = 3
"""Jobs that may be lost one after the other before they have begun."""


@executor("submitit")
@dataclass(frozen=True)
class Submitit:
    """Slurm jobs, through submitit.

    Args:
        device: as jobs see it; ``auto`` is ``cuda`` where ``gpus`` is given.
        workers: jobs at once.
        cluster: ``slurm``, or ``local`` for processes on this machine; by default Slurm where there is one.
        tasks: that a job does; by default every worker gets about four jobs.
        minutes: time limit of a job.
        cpus: of a job, which computes with so many threads.
        gpus: of a job, with ``device = "cuda"``; one by default.
        memory: GiB of a job.
        partition, account, qos, constraint: as Slurm knows them.
    """

    elsewhere: ClassVar[bool] = True
    package: ClassVar[str] = "submitit"
    device: str = "cpu"
    workers: Count = 8
    cluster: Literal["slurm", "local"] | None = None
    tasks: Count | None = None
    minutes: Count = 240
    cpus: Count = 1
    gpus: Count | None = None
    memory: Positive | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None

    def __post_init__(self) -> None:
        if self.device == "auto":
            object.__setattr__(self, "device", "cuda" if self.gpus else "cpu")

    def execute(self, tasks: Sequence[T]) -> Outcomes[T]:
        """See `advens.benchmarks.executors.Executor`."""
        if not tasks:
            return
        folder = cache_root("submitit") / secrets.token_hex(8)
        queue = self.queue(folder)
        size = self.tasks or -(-len(tasks) // (JOBS * self.workers))
        left = deque(tasks[at : at + size] for at in range(0, len(tasks), size))
        running: dict[Any, tuple[Group, Sequence[T]]] = {}
        unbegun, lost = 0, False
        with marked(tasks) as marks:
            try:
                while left or running:
                    while left and len(running) < self.workers:
                        given = left.popleft()
                        kept = folder / f"{secrets.token_hex(8)}.kept"
                        group = Group(tuple(given), self.device, self.cpus, trusted(), marks, kept)
                        running[_submitted(queue, group)] = group, given
                    ended = [job for job in running if job.done()]
                    if not ended:
                        time.sleep(EVERY)
                    for job in ended:
                        group, given = running.pop(job)
                        failed = job.exception() is not None
                        answers = group.answers() if failed else job.result()
                        outcomes = [received(answer) for answer in answers or ()]
                        if len(outcomes) < len(given):
                            lost, log = True, job.paths.stderr
                            unbegun = unbegun + 1 if answers is None else 0
                            if unbegun == STARTS:
                                raise RunError(f"{STARTS} jobs were lost as they began; see {log}")
                            if rest := given[len(outcomes) + 1 :]:
                                left.appendleft(rest)
                            outcomes.append(RunError(f"its job {job.job_id} ended with it; see {log}"))
                        yield from zip(given, outcomes, strict=False)
            finally:
                for job in running:
                    job.cancel(check=False)
                if not lost:
                    shutil.rmtree(folder, ignore_errors=True)

    def queue(self, folder: Path) -> Any:
        """An executor of submitit. Raises InputError without submitit, or when there is no Slurm."""
        try:
            import submitit
        except ImportError as error:
            raise InputError("executor 'submitit' needs submitit; install advens[submitit]") from error
        settings = {
            "name": "advens", "timeout_min": self.minutes, "cpus_per_task": self.cpus,
            "gpus_per_node": (self.gpus or 1) if self.device.startswith("cuda") else None,
            "mem_gb": self.memory,
            "slurm_partition": self.partition, "slurm_account": self.account, "slurm_qos": self.qos,
            "slurm_constraint": self.constraint,
        }  # fmt: skip
        try:
            queue = submitit.AutoExecutor(folder, cluster=self.cluster)
            queue.update_parameters(**{name: value for name, value in settings.items() if value is not None})
        except (RuntimeError, ValueError, OSError) as error:
            raise InputError(f"submitit cannot be used: {first_line(error)}") from None
        return queue


def _submitted(queue: Any, group: Group) -> Any:
    """A job of submitit's. Raises InputError when Slurm does not take it."""
    try:
        return queue.submit(group)
    except (RuntimeError, OSError) as error:  # FailedJobError of submitit is a RuntimeError
        raise InputError(f"no job can be submitted: {first_line(error)}") from None


@dataclass(frozen=True)
class Group:
    """What a job does.

    Args:
        tasks: one after the other.
        device, cpus: see `Submitit`.
        names: what is trusted.
        marks: see `look`.
        kept: a file for the answers so far: they outlast the job.
    """

    tasks: tuple[Any, ...]
    device: str
    cpus: int
    names: frozenset[str]
    marks: Mapping[str, str]
    kept: Path

    def __call__(self) -> list[Answer]:
        """Does the tasks that were not done yet."""
        import platform

        import torch

        torch.set_num_threads(self.cpus)
        answers = self.answers() or []
        self._keep(answers)
        try:
            look(self.marks, f"node {platform.node()}")
            device = resolve_device(self.device)
        except InputError as error:
            return [*answers, (error, [])]
        for task in self.tasks[len(answers) :]:
            answers.append(attempt_elsewhere(task, device, self.names))
            self._keep(answers)
        return answers

    def checkpoint(self) -> Any:
        """What submitit queues when the job is preempted or reaches its time limit: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def answers(self) -> list[Answer] | None:
        """What is known so far; None before the job has begun."""
        with suppress(OSError):
            found: list[Answer] = pickle.loads(self.kept.read_bytes())
            return found
        return None

    def _keep(self, answers: list[Answer]) -> None:
        write_bytes(self.kept, pickle.dumps(answers))
