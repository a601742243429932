"""Executors: who does the tasks. Results do not depend on it.

``local`` does tasks in this process or in several worker processes, ``ray`` hands them to a Ray cluster,
``submitit`` to Slurm as jobs. A third-party package adds one through the entry-point group
``advens.executors``.
"""

from advens.benchmarks.executors.base import (
    EXECUTORS,
    Executor,
    Outcomes,
    Task,
    create_executor,
    executor,
)

__all__ = ["EXECUTORS", "Executor", "Outcomes", "Task", "create_executor", "executor"]
