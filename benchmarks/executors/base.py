"""What an executor is, how one is found by name, and how a single task is done in any process."""

from __future__ import annotations

import ctypes
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from advens.errors import InputError, InputWarning, RunError, first_line
from advens.registry import Info, Registry, one_line
from advens.trust import trusting


class Task(Protocol):
    """Something to do on a device: a small picklable value. What it returns must be picklable, too."""

    @property
    def title(self) -> str: ...
    def do(self, device: str) -> Any: ...


T = TypeVar("T", bound=Task)
Outcomes = Generator[tuple[T, Any], None, None]
"""Every task with what it returned, or with the `RunError` that it failed with."""


class Executor(Protocol):
    """Does tasks on a device, in any order.

    Attributes:
        device: as torch names it; environments record it.
    """

    @property
    def device(self) -> str: ...

    def execute(self, tasks: Sequence[T]) -> Outcomes[T]:
        """Do all tasks; yield each with its outcome as soon as it is known.

        Close it when it is left early: workers end then.

        Raises:
            InputError: from a task, or when the executor cannot be used. Tasks already done stay done.
        """
        ...


EXECUTORS: Registry[Callable[[str, int], Executor]] = Registry(
    "executor", package="advens.benchmarks.executors", group="advens.executors"
)
E = TypeVar("E", bound=Callable[[str, int], Executor])


def executor(name: str) -> Callable[[E], E]:
    """Register what makes an executor from a device and a number of workers."""

    def decorate(make: E) -> E:
        EXECUTORS.register(Info(name, summary=one_line(make.__doc__)), make)
        return make

    return decorate


def create_executor(name: str = "local", *, device: str = "cpu", workers: int = 1) -> Executor:
    """The executor of a name. Raises InputError for an unknown one or for no workers."""
    if workers < 1:
        raise InputError(f"workers = {workers}: at least one is needed")
    return EXECUTORS.get(name)(device, workers)


def attempt(task: Task, device: str) -> Any:
    """Do one task; a failure of the work is returned as a `RunError`, bad input is raised."""
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


Answer = tuple[Any, list[str]]
"""What comes of a task in another process, and the texts of its `InputWarning`s."""


def attempt_elsewhere(task: Task, device: str, names: frozenset[str]) -> Answer:
    """`attempt` in another process, in which the same names are trusted as here."""
    with trusting(*names), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", InputWarning)
        outcome = attempt(task, device)
    return outcome, [str(each.message) for each in found if issubclass(each.category, InputWarning)]


def received(answer: Answer) -> Any:
    """What came of a task in another process, whose warnings are given here again."""
    outcome, texts = answer
    for text in texts:
        warnings.warn(text, InputWarning, stacklevel=2)
    return outcome
