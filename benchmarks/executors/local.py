"""The executor ``local``: this process, or several worker processes with one GPU each."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, current_process, get_context, parent_process

from advens.benchmarks.executors.base import (
    Answer,
    Outcomes,
    T,
    Task,
    attempt,
    attempt_elsewhere,
    executor,
    received,
)
from advens.errors import RunError
from advens.trust import trusted


@executor("local")
@dataclass(frozen=True)
class Local:
    """This process, or several worker processes on this machine."""

    device: str = "cpu"
    workers: int = 1

    def execute(self, tasks: Sequence[T]) -> Outcomes[T]:
        """See `advens.benchmarks.executors.Executor`."""
        workers = min(self.workers, len(tasks))
        if workers > 1:
            yield from self._processes(tasks, workers)
            return
        for task in tasks:
            yield task, attempt(task, self.device)

    def _processes(self, tasks: Sequence[T], workers: int) -> Outcomes[T]:
        threads = max(1, (os.cpu_count() or 1) // workers)
        pool = ProcessPoolExecutor(
            workers, mp_context=get_context("spawn"), initializer=_start, initargs=(threads,)
        )
        others = set(active_children())
        try:
            # neighbours in the list share models: hand them out in order
            futures = {
                pool.submit(_in_worker, task, self.device, trusted()): task for task in tasks
            }
            for future in as_completed(futures):
                yield futures[future], received(future.result())
        except BrokenProcessPool:
            raise RunError(
                "a worker process died, perhaps out of memory; finished cells are kept, "
                "the same command goes on"
            ) from None
        except BaseException:  # interrupted or bad input: cells at hand are not waited for
            for child in set(active_children()) - others:
                child.terminate()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


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


def _in_worker(task: Task, device: str, names: frozenset[str]) -> Answer:
    number = current_process().name.rpartition("-")[2]  # SpawnProcess-1, -2, ...
    return attempt_elsewhere(task, device_of_worker(device, int(number)), names)


def device_of_worker(device: str, worker: int) -> str:
    """``cuda`` becomes one of the machine's GPUs for each worker; anything else stays."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{worker % max(1, torch.cuda.device_count())}"
