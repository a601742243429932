"""Workers that are lost, late, or more than before: every task has one outcome."""

from __future__ import annotations

from concurrent.futures import Future

import pytest

from advens.benchmarks.executors import workers
from advens.benchmarks.executors.workers import Loss, on_workers
from advens.errors import InputError, RunError


class Dead(Exception):
    """What the futures of a lost worker hold."""


class Job:
    """A task; ``kills`` of the workers that get it are lost."""

    def __init__(self, title: str, kills: int = 0, outcome: object = None) -> None:
        self.title, self.kills, self.outcome = title, kills, outcome or title

    def do(self, device: str) -> object:
        return self.outcome


class Hand:
    """A worker in this process: what it was given is done when somebody waits."""

    def __init__(self, number: int, log: list, begins: object = None) -> None:
        self.number, self.log, self.begins = number, log, begins
        self.given: list[tuple[Future, Job]] = []
        self.alive, self.stopped = True, False
        log.append(self)

    def begin(self) -> Future:
        found: Future = Future()
        if isinstance(self.begins, Dead):
            found.set_exception(self.begins)
        else:
            found.set_result(self.begins)
        return found

    def submit(self, task: Job) -> Future | None:
        if not self.alive:
            return None
        self.given.append((Future(), task))
        return self.given[-1][0]

    def work(self) -> None:
        """Does the first task."""
        if not self.given or self.stopped:
            return
        future, task = self.given.pop(0)
        if task.kills and self.alive:
            task.kills -= 1
            self.alive = False
            for each in (future, *(left for left, _ in self.given)):
                each.set_exception(Dead())
            self.given.clear()
        elif isinstance(task.outcome, Exception) and not isinstance(task.outcome, (RunError, InputError)):
            future.set_exception(task.outcome)
        else:
            future.set_result((task.do("cpu"), []))

    def lost(self, error: BaseException) -> Loss | None:
        return Loss("gone", 2) if isinstance(error, Dead) else None

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def hands(monkeypatch):
    """All workers that were started; they work whenever somebody waits for them."""
    log: list[Hand] = []
    real = workers.wait

    def wait(futures, **how):
        for hand in list(log):
            hand.work()
        return real(futures, timeout=0, return_when=how["return_when"])

    monkeypatch.setattr(workers, "wait", wait)
    monkeypatch.setattr(workers.time, "sleep", lambda seconds: None)
    return log


def outcomes(hands, jobs, size=lambda: 2, begins=lambda: None):
    made = on_workers(jobs, size, lambda number: Hand(number, hands, begins()))
    return {job.title: str(outcome) for job, outcome in made}


def test_every_task_is_done_once_and_in_order(hands):
    jobs = [Job(str(i)) for i in range(9)]
    done = list(on_workers(jobs, lambda: 3, lambda number: Hand(number, hands)))
    assert sorted(job.title for job, _ in done) == [job.title for job in jobs]
    assert {job.title for job, _ in done[:3]} == {"0", "1", "2"}
    assert [hand.number for hand in hands] == [0, 1, 2]
    assert all(hand.stopped for hand in hands)


def test_no_more_workers_than_tasks(hands):
    assert outcomes(hands, [Job("a")], lambda: 5) == {"a": "a"}
    assert len(hands) == 1


def test_what_a_lost_worker_had_waiting_is_done_by_another(hands):
    """Only the task at hand counts the loss, and fails when it has cost as many workers as it may."""
    jobs = [Job("once", kills=1), Job("always", kills=9), *(Job(str(i)) for i in range(6))]
    found = outcomes(hands, jobs)
    assert found.pop("always") == "gone"
    assert found == {name: name for name in ("once", *map(str, range(6)))}
    assert len(hands) == 2 + 1 + 2
    assert {hand.number for hand in hands} == {0, 1}
    assert jobs[1].kills == 7


def test_workers_that_come_later_are_used(hands):
    sizes = iter([1, 1, 1, 3])
    found = outcomes(hands, [Job(str(i)) for i in range(12)], lambda: next(sizes, 3))
    assert len(found) == 12
    assert len(hands) == 3


def test_no_workers_for_a_while(hands):
    sizes = iter([0, 0, 0])
    assert outcomes(hands, [Job("a"), Job("b")], lambda: next(sizes, 1)) == {"a": "a", "b": "b"}


def test_the_last_tasks_wait_for_whoever_is_free(hands):
    """No worker has two of the last tasks while another has none."""
    jobs = [Job("a"), Job("b"), Job("c")]
    made = on_workers(jobs, lambda: 3, lambda number: Hand(number, hands))
    next(made)
    assert [len(hand.given) for hand in hands] == [0, 0, 0]
    made.close()


def test_workers_that_never_begin(hands):
    with pytest.raises(RunError, match="3 workers were lost as they began: gone"):
        outcomes(hands, [Job("a")], begins=Dead)
    assert all(hand.stopped for hand in hands)


def test_workers_that_cannot_work(hands):
    with pytest.raises(InputError, match="node 7 does not see"):
        outcomes(hands, [Job("a")], begins=lambda: InputError("node 7 does not see"))


def test_errors_of_tasks(hands):
    jobs = [Job("a", outcome=RunError("broke")), Job("b", outcome=ValueError("not to be pickled")), Job("c")]
    assert outcomes(hands, jobs) == {"a": "broke", "b": "not to be pickled", "c": "c"}
    with pytest.raises(InputError, match="no such thing"):
        outcomes(hands, [Job("d"), Job("e", outcome=InputError("no such thing"))])
    assert all(hand.stopped for hand in hands)


def test_an_idle_worker_that_is_lost_costs_no_task_anything(hands):
    jobs = [Job(str(i)) for i in range(4)]
    made = on_workers(jobs, lambda: 1, lambda number: Hand(number, hands))
    found = [next(made)]
    hands[0].alive = False  # what it was given is still answered; then it takes no more
    found += list(made)
    assert sorted(job.title for job, _ in found) == ["0", "1", "2", "3"]
    assert all(outcome == job.title for job, outcome in found)
