"""The executor ``ray``: the same tasks on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from advens.benchmarks.executors.base import Outcomes, T, attempt_elsewhere, executor, received
from advens.errors import InputError, RunError, first_line
from advens.trust import trusted

PROCESS_SETTINGS = (
    "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_",
)  # fmt: skip
"""Environment variables that the command line sets (see `advens.cli`) and a Ray worker does not inherit."""


@executor("ray")
@dataclass(frozen=True)
class Ray:
    """A Ray cluster: the one that is connected, or one that is started on this machine."""

    device: str = "cpu"
    workers: int = 1

    def execute(self, tasks: Sequence[T]) -> Outcomes[T]:
        """See `advens.benchmarks.executors.Executor`; the cluster decides on the number of workers."""
        if not tasks:
            return
        try:
            import ray
        except ImportError as error:
            raise InputError("executor 'ray' needs Ray; install advens[ray]") from error
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        settings = {name: os.environ[name] for name in PROCESS_SETTINGS if name in os.environ}
        remote = ray.remote(
            num_cpus=1, num_gpus=1 if self.device.startswith("cuda") else 0, max_retries=3,
            runtime_env={"env_vars": settings},
        )(attempt_elsewhere)  # fmt: skip
        pending = {remote.remote(task, self.device, trusted()): task for task in tasks}
        try:
            while pending:
                (done,), _ = ray.wait(list(pending), num_returns=1)
                task = pending.pop(done)
                try:
                    yield task, received(ray.get(done))
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, InputError):
                        raise error.cause from None  # Ray's own text is a traceback
                    raise RunError(f"{task.title}: {first_line(error.cause)}") from None
        finally:
            for left in pending:
                ray.cancel(left, force=False)
