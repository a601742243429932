"""Executors: who does the tasks. Results do not depend on it.

A task is a small picklable value with ``do(device)``. ``local`` does tasks in this process, or in
several worker processes, one GPU each; ``ray`` hands them to a Ray cluster.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Protocol, TypeVar

from advens.errors import InputError, RunError, nearest

EXECUTORS = ("local", "ray")


class Task(Protocol):
    """Something to do on a device; gives back a number of images."""

    @property
    def title(self) -> str: ...
    def do(self, device: str) -> int: ...


T = TypeVar("T", bound=Task)
Outcome = tuple[T, "int | RunError"]


def execute(tasks: Sequence[T], executor: str, workers: int, device: str) -> Iterator[Outcome[T]]:
    """Do all tasks; yield each with its image count, or the `RunError` it failed with.

    Raises:
        InputError: from a task, or when the executor is not there. Tasks already done stay done.
    """
    if executor not in EXECUTORS:
        raise InputError(f"unknown executor '{executor}'{nearest(executor, EXECUTORS)}")
    if not tasks:
        return iter(())
    if executor == "ray":
        return _ray(tasks, device)
    if workers > 1:
        return _processes(tasks, min(workers, len(tasks)), device)
    return ((task, attempt(task, device)) for task in tasks)


def attempt(task: Task, device: str) -> int | RunError:
    """Do one task; a failure of the work is a value, bad input is raised."""
    try:
        return task.do(device)
    except RunError as error:
        return error


def _processes(tasks: Sequence[T], workers: int, device: str) -> Iterator[Outcome[T]]:
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(threads,)
    )
    try:
        # neighbours in the list share models: hand them out in order
        futures = {pool.submit(_in_worker, task, device): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _in_worker(task: Task, device: str) -> int | RunError:
    return attempt(task, device_of_worker(device, os.getpid()))


def device_of_worker(device: str, worker: int) -> str:
    """``cuda`` becomes one of the machine's GPUs for each worker; anything else stays."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{worker % max(1, torch.cuda.device_count())}"


def _ray(tasks: Sequence[T], device: str) -> Iterator[Outcome[T]]:
    try:
        import ray
    except ImportError as error:
        raise InputError("executor 'ray' needs Ray; install advens[ray]") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = 1 if device.startswith("cuda") else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(attempt)
    pending = {remote.remote(task, device): task for task in tasks}
    try:
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(done)
            try:
                yield task, ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
    finally:
        for left in pending:
            ray.cancel(left, force=False)
