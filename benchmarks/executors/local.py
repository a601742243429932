"""Executors: who does the tasks. Results do not depend on it.

A task is a small picklable value with ``do(device)``. ``local`` does tasks in this process, or in
several worker processes, one GPU each; ``ray`` hands them to a Ray cluster.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing import active_children, current_process, get_context, parent_process
from pathlib import Path
from typing import Protocol, TypeVar

from advens.errors import InputError, InputWarning, RunError, first_line, nearest
from advens.trust import trusted, trusting

EXECUTORS = ("local", "ray")
PROCESS_SETTINGS = (
    "GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_",
)  # fmt: skip
"""Environment variables that the command line sets, see `advens.cli`."""


class Task(Protocol):
    """Something to do on a device; gives back a number of images."""

    @property
    def title(self) -> str: ...
    def do(self, device: str) -> int: ...


T = TypeVar("T", bound=Task)
Answer = tuple["int | RunError", list[str]]
"""What comes of a task in another process, and the texts of its `InputWarning`s."""
Outcomes = Generator[tuple[T, "int | RunError"], None, None]


def execute(tasks: Sequence[T], executor: str, workers: int, device: str) -> Outcomes[T]:
    """Do all tasks; yield each with its image count, or the `RunError` it failed with.

    Close it when it is left early: workers end then.

    Raises:
        InputError: from a task, or when the executor is not there. Tasks already done stay done.
    """
    if executor not in EXECUTORS:
        raise InputError(f"unknown executor '{executor}'{nearest(executor, EXECUTORS)}")
    if not tasks:
        return
    if executor == "ray":
        yield from _ray(tasks, device)
    elif workers > 1:
        yield from _processes(tasks, min(workers, len(tasks)), device)
    else:
        for task in tasks:
            yield task, attempt(task, device)


def attempt(task: Task, device: str) -> int | RunError:
    """Do one task; a failure of the work is a value, bad input is raised."""
    try:
        return task.do(device)
    except InputError:
        raise
    except RunError as error:
        return RunError(str(error))  # a plain one: it travels between processes
    except Exception as error:  # a model or a plug-in is at fault: its cell fails, others go on
        at = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(at.filename).name}:{at.lineno}"
        return RunError(f"{type(error).__name__}: {first_line(error)} ({place})")
    finally:
        give_back()


def give_back() -> None:
    """Hand freed memory back to the system.

    A search works on fewer and fewer samples; glibc would keep the holes that their tensors leave.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _processes(tasks: Sequence[T], workers: int, device: str) -> Outcomes[T]:
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start, initargs=(threads,)
    )
    others = set(active_children())
    try:
        # neighbours in the list share models: hand them out in order
        futures = {pool.submit(_in_worker, task, device, trusted()): task for task in tasks}
        for future in as_completed(futures):
            yield futures[future], _repeated(future.result())
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
    threading.Thread(target=_outlive_nobody, daemon=True).start()
    torch.set_num_threads(threads)


def _outlive_nobody() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_worker(task: Task, device: str, names: frozenset[str]) -> Answer:
    number = current_process().name.rpartition("-")[2]  # SpawnProcess-1, -2, ...
    return _trustingly(task, device_of_worker(device, int(number)), names)


def _trustingly(task: Task, device: str, names: frozenset[str]) -> Answer:
    """`attempt` in another process, where these names are trusted as they are here."""
    with trusting(*names), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", InputWarning)
        outcome = attempt(task, device)
    return outcome, [str(each.message) for each in found if issubclass(each.category, InputWarning)]


def _repeated(answer: Answer) -> int | RunError:
    """What came of a task in another process, whose warnings are given here again."""
    outcome, texts = answer
    for text in texts:
        warnings.warn(text, InputWarning, stacklevel=2)
    return outcome


def device_of_worker(device: str, worker: int) -> str:
    """``cuda`` becomes one of the machine's GPUs for each worker; anything else stays."""
    if device != "cuda":
        return device
    import torch

    return f"cuda:{worker % max(1, torch.cuda.device_count())}"


def _inherited() -> dict[str, str]:
    """The variables that the command line sets for torch, which a Ray worker does not inherit."""
    return {name: os.environ[name] for name in PROCESS_SETTINGS if name in os.environ}


def _ray(tasks: Sequence[T], device: str) -> Outcomes[T]:
    try:
        import ray
    except ImportError as error:
        raise InputError("executor 'ray' needs Ray; install advens[ray]") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    gpus = 1 if device.startswith("cuda") else 0
    remote = ray.remote(
        num_cpus=1, num_gpus=gpus, max_retries=3, runtime_env={"env_vars": _inherited()}
    )(_trustingly)  # fmt: skip
    pending = {remote.remote(task, device, trusted()): task for task in tasks}
    try:
        while pending:
            (done,), _ = ray.wait(list(pending), num_returns=1)
            task = pending.pop(done)
            try:
                yield task, _repeated(ray.get(done))
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise error.cause from None  # Ray's own text is a traceback
                raise RunError(f"{task.title}: {first_line(error.cause)}") from None
    finally:
        for left in pending:
            ray.cancel(left, force=False)
