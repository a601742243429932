"""Tasks on workers that may be lost: others do what one leaves, and a task that loses too many fails."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from advens.benchmarks.executors.base import Answer, Outcomes, T, Task, received
from advens.errors import InputError, RunError, first_line

AHEAD = 2
"""Tasks that a worker is given: one at hand, and one that it need not wait for."""
EVERY = 2.0
"""Seconds after which it is asked again how many workers there may be."""
STARTS = 3
"""Workers that may be lost one after the other before any of them has begun."""


@dataclass(frozen=True)
class Loss:
    """A worker was lost.

    Args:
        why: as it stands in the error of a task: ``its worker process died``.
        most: how often a task may lose a worker in this way; then it fails.
    """

    why: str
    most: int


class Worker(Protocol):
    """A process that does tasks one after the other."""

    def begin(self) -> Future[Any]:
        """Done when the worker takes tasks; an InputError that it returns ends everything."""
        ...

    def submit(self, task: Task) -> Future[Answer] | None:
        """Have a task done after those before it; None when the worker is known to be lost."""
        ...

    def lost(self, error: BaseException) -> Loss | None:
        """What the error of a future says of the worker: None when it works on."""
        ...

    def stop(self) -> None:
        """End the worker at once, whatever it does."""
        ...


@dataclass(eq=False)
class _Held(Generic[T]):
    """A worker, its number, and what it was given, in order; its beginning stands for no task."""

    worker: Worker
    number: int
    given: deque[tuple[Future[Any], T | None]] = field(default_factory=deque)

    @property
    def tasks(self) -> list[T]:
        return [task for _, task in self.given if task is not None]


def on_workers(tasks: Sequence[T], size: Callable[[], int], start: Callable[[int], Worker]) -> Outcomes[T]:
    """Do tasks on workers that are started as they are needed.

    Args:
        size: how many workers there may be, which may change; it is asked often.
        start: starts the worker of a number from 0; that of a lost one is given again.

    Raises:
        InputError: from a task, or from a worker as it begins.
        RunError: workers are lost before they begin.
    """
    queue: deque[T] = deque(tasks)
    held: list[_Held[T]] = []
    losses: Counter[int] = Counter()
    unbegun = 0
    try:
        while queue or any(each.tasks for each in held):
            _staff(queue, held, size(), start)
            _feed(queue, held)
            firsts = {each.given[0][0]: each for each in held if each.given}
            if not firsts:
                time.sleep(EVERY)
            done, _ = wait(firsts, timeout=EVERY, return_when=FIRST_COMPLETED)
            for future in done:
                each = firsts[future]
                _, task = each.given.popleft()
                error = future.exception()
                loss = each.worker.lost(error) if error else None
                if loss is not None:
                    held.remove(each)
                    each.worker.stop()
                    queue.extendleft(reversed(each.tasks))
                    if task is None:
                        unbegun += 1
                        if unbegun == STARTS:
                            raise RunError(f"{STARTS} workers were lost as they began: {loss.why}")
                        continue
                    losses[id(task)] += 1
                    if losses[id(task)] < loss.most:
                        queue.appendleft(task)
                        continue
                    outcome: Any = RunError(loss.why)
                elif error is not None:
                    outcome = RunError(first_line(getattr(error, "cause", None) or error))  # of Ray
                elif task is not None:
                    outcome = received(future.result())
                else:
                    outcome = future.result()
                if task is None:
                    if isinstance(outcome, (InputError, RunError)):
                        raise outcome
                    unbegun = 0
                    continue
                _feed(queue, held)  # before what listens takes its time
                yield task, outcome
    finally:
        for each in held:
            each.worker.stop()


def _staff(queue: deque[T], held: list[_Held[T]], most: int, start: Callable[[int], Worker]) -> None:
    """Start the workers that are missing: at most one for every task that is left."""
    left = len(queue) + sum(len(each.tasks) for each in held)
    while len(held) < min(most, left):
        number = min(set(range(len(held) + 1)) - {each.number for each in held})
        worker = start(number)
        held.append(_Held(worker, number))
        held[-1].given.append((worker.begin(), None))


def _feed(queue: deque[T], held: list[_Held[T]]) -> None:
    """Give the next tasks to workers that have begun: in order, for neighbours in the list share models.

    A second one is given while there are enough for all: the last tasks wait for whoever is free first.
    """
    begun = [each for each in held if not (each.given and each.given[0][1] is None)]
    for most in range(1, AHEAD + 1):
        for each in begun:
            if len(each.given) < most and len(queue) > (most - 1) * len(held):
                future = each.worker.submit(queue[0])
                if future is not None:
                    each.given.append((future, queue.popleft()))
                elif not each.given:
                    each.worker.stop()
                    held.remove(each)
        begun = [each for each in begun if each in held]
