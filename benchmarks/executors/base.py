"""What an executor is, how one is found by name, and how a single task is done in any process."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Protocol, TypeVar
from urllib.parse import parse_qsl

from pydantic import ValidationError

from advens.errors import InputError, InputWarning, failure, first_line, nearest
from advens.registry import Info, Registry, one_line
from advens.trust import trusting


class Task(Protocol):
    """Something to do on a device: a small picklable value. What it returns must be picklable, too.

    A task that writes files names their folder as ``directory``.
    """

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


EXECUTORS: Registry[Callable[..., Executor]] = Registry(
    "executor", package="advens.benchmarks.executors", group="advens.executors"
)
E = TypeVar("E", bound=Callable[..., Any])


def executor(name: str) -> Callable[[E], E]:
    """Register what makes an executor from ``device`` and, where the user says how many, ``workers``.

    Further fields of a dataclass are options, which are given as text: ``NAME?OPTION=VALUE``. An executor
    with an attribute ``elsewhere`` works on other machines: its device is not looked for on this one. One
    with an attribute ``package`` is refused where that cannot be imported.
    """

    def decorate(make: E) -> E:
        EXECUTORS.register(Info(name, summary=one_line(make.__doc__)), make)
        return make

    return decorate


def create_executor(name: str = "local", *, device: str = "cpu", workers: int | None = None) -> Executor:
    """The executor of a name, which may hold options: ``ray?gpus=0.5&cpus=2``.

    Args:
        device: as torch names it; ``auto`` picks a GPU where there is one.
        workers: how many; by default what the executor thinks best.

    Raises:
        InputError: an unknown executor or option, a value that does not fit, a device that is not there.
    """
    if workers is not None and workers < 1:
        raise InputError(f"workers = {workers}: at least one is needed")
    name, _, query = name.partition("?")
    make = EXECUTORS.get(name)
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = set(getattr(make, "__dataclass_fields__", ())) - {"device", "workers", "elsewhere", "package"}
    for option in options:
        if option not in known:
            hint = nearest(option, known) or ("" if known else "; it has none")
            raise InputError(f"executor '{name}' has no option '{option}'{hint}")
    if not getattr(make, "elsewhere", False):
        device = resolve_device(device)
    try:
        made = make(device=device, **({} if workers is None else {"workers": workers}), **options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"executor '{name}': {where} = {first['input']!r}: {first['msg']}") from None
    if (package := getattr(make, "package", "")) and find_spec(package) is None:  # before a run is begun
        raise InputError(f"executor '{name}' needs {package.replace('ray', 'Ray')}; install advens[{name}]")
    return made


def resolve_device(device: str) -> str:
    """``auto`` to the best device here. Raises InputError for one that is not there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        for each in device.split(","):  # several devices for the surrogates of one attack
            torch.empty(1, device=each)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device '{device}' is not available: {first_line(error)}") from None
    return device


def attempt(task: Task, device: str) -> Any:
    """Do one task; a failure of the work is returned as a `RunError`, bad input is raised."""
    try:
        return task.do(device)
    except InputError:
        raise
    except Exception as error:  # a model or a plug-in is at fault: its cell fails, others go on
        return failure(error)
    finally:
        give_back()


def give_back() -> None:
    """Hand freed memory back to the system.

    A search works on fewer and fewer samples; glibc would keep the holes that their tensors leave.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


Answer = tuple[Any, list[str]]
"""What comes of a task in another process, bad input included, and the texts of its `InputWarning`s."""


def attempt_elsewhere(task: Task, device: str, names: frozenset[str]) -> Answer:
    """`attempt` in another process, in which the same names are trusted as here."""
    with trusting(*names), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", InputWarning)
        try:
            outcome = attempt(task, device)
        except InputError as error:
            outcome = InputError(str(error))  # a plain one: it travels between processes
    return outcome, [str(each.message) for each in found if issubclass(each.category, InputWarning)]


def received(answer: Answer) -> Any:
    """What came of a task in another process, whose warnings are given here again. Raises its InputError."""
    outcome, texts = answer
    for text in texts:
        warnings.warn(text, InputWarning, stacklevel=2)
    if isinstance(outcome, InputError):
        raise outcome
    return outcome
