"""The executor ``local``: this process, or several worker processes with one GPU each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children, get_context, parent_process
from typing import Any

from pydantic.dataclasses import dataclass

from advens.benchmarks.executors.base import (
    Answer,
    Outcomes,
    T,
    Task,
    attempt,
    attempt_elsewhere,
    executor,
)
from advens.benchmarks.executors.workers import Loss, on_workers
from advens.fields import Count
from advens.trust import trusted


@executor("local")
@dataclass(frozen=True)
class Local:
    """This process, or several worker processes on this machine."""

    device: str = "cpu"
    workers: Count = 1

    def execute(self, tasks: Sequence[T]) -> Outcomes[T]:
        """See `advens.benchmarks.executors.Executor`."""
        workers = min(self.workers, len(tasks))
        if workers > 1:
            threads = max(1, (os.cpu_count() or 1) // workers)
            start = partial(_Process, self.device, threads)
            yield from on_workers(tasks, lambda: workers, start)
            return
        for task in tasks:
            yield task, attempt(task, self.device)


class _Process:
    """A worker process, as a pool of one: a pool of several does not say which task its lost process had."""

    def __init__(self, device: str, threads: int, number: int) -> None:
        self.device, self.names = device_of_worker(device, number), trusted()
        self.children: set[Any] = set()
        self.pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_start, initargs=(threads,)
        )

    def begin(self) -> Future[Any]:
        before = set(active_children())
        begun = self.pool.submit(os.getpid)
        self.children = set(active_children()) - before
        return begun

    def submit(self, task: Task) -> Future[Answer] | None:
        try:
            return self.pool.submit(attempt_elsewhere, task, self.device, self.names)
        except BrokenProcessPool:
            return None

    def lost(self, error: BaseException) -> Loss | None:
        if not isinstance(error, BrokenProcessPool):
            return None
        return Loss("its worker process died, perhaps out of memory; the same command tries again", most=1)

    def stop(self) -> None:
        for child in self.children:
            child.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)


def _start(threads: int) -> None:
    """A worker leaves Ctrl-C to its parent, and ends when its parent does, however that ends."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def device_of_worker(device: str, worker: int) -> str:
    """``cuda`` becomes one of the machine's GPUs for each worker; anything else stays."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{worker % max(1, torch.cuda.device_count())}"
