"""Runs a white-box attack: broken samples leave at once and others take their place.

Rows of one batch may be at different iterations, so the device stays full until the queue is empty.
"""

from __future__ import annotations

import gc
from typing import Any, Protocol

import torch
from torch import Tensor

from advens.attacks.interfaces import Job, Passes
from advens.attacks.running import Runnable, out_of_memory
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.rows import Rows
from advens.attacks.whitebox.tracing import RowTrace
from advens.errors import RunError
from advens.threat import Threat

REFILL = 0.125
"""Part of a batch that must be free before others join: few samples alone are slow to start."""


class RowAttack(Protocol):
    """An attack that takes every row one iteration further, wherever the row is."""

    @property
    def threat(self) -> Threat:
        """The ball."""
        ...

    @property
    def iterations(self) -> int:
        """Iterations of a sample that is never broken."""
        ...

    def begin(self, oracle: RowOracle, rows: Rows) -> None:
        """Fill the memory of fresh rows (``rows.t`` is 0)."""
        ...

    def advance(self, oracle: RowOracle, rows: Rows) -> None:
        """One iteration of every row; ``rows.t`` is counted by the caller."""
        ...

    def last(self, rows: Rows) -> Tensor:
        """The images (N, C, H, W) to give back for rows that still stand."""
        ...

    def observed(self, rows: Rows) -> dict[str, Tensor]:
        """What a trace notes of an iteration, (N,) each; not finite where there is nothing to note."""
        ...


def search(
    attack: RowAttack, oracle: RowOracle, places: Tensor, *, batch: int, stop: bool = True,
    trace: RowTrace | None = None,
) -> None:  # fmt: skip
    """Attack some samples of a shard; what is found stands in the oracle.

    An attack with ``rounds`` is several, each with an oracle of its own, on what withstood those before.

    Args:
        places: samples of the shard to attack, (M,).
        batch: rows at once; halved when memory runs out.
        stop: whether a broken sample leaves. Without, every sample takes all iterations.
        trace: where to note what happens.
    """
    rounds = _rounds(attack, oracle)
    if trace is not None:
        trace.begin(sum(inner.iterations for inner, _ in rounds))
    for inner, view in rounds:
        standing = places[oracle.correct[places] > 0] if stop else places
        _search(inner, view, standing, batch, stop, trace)
        if trace is not None:
            trace.after(inner.iterations)


def _rounds(attack: RowAttack, oracle: RowOracle) -> list[tuple[RowAttack, RowOracle]]:
    """The attacks that an attack consists of, each with its oracle; itself, unless it has ``rounds``."""
    if (rounds := getattr(attack, "rounds", None)) is None:
        return [(attack, oracle)]
    return [each for inner, view in rounds(oracle) for each in _rounds(inner, view)]


def _search(
    attack: RowAttack, oracle: RowOracle, places: Tensor, batch: int, stop: bool, trace: RowTrace | None
) -> None:
    """`search` by one attack."""
    waiting, spent = places, (oracle.forwards.clone(), oracle.backwards.clone())
    rows = oracle.rows(places[:0])
    while len(waiting) or len(rows):
        free = batch - len(rows)
        fresh = waiting[:0]
        try:
            if len(waiting) and (free >= REFILL * batch or not len(rows)):
                fresh, waiting = waiting[:free], waiting[free:]
                begun = oracle.rows(fresh)
                attack.begin(oracle, begun)
                rows, fresh = rows.joined(_still(oracle, begun, stop)), fresh[:0]
                if not len(rows):
                    continue
            t = rows.t
            attack.advance(oracle, rows)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if batch == 1:
                raise RunError("out of memory with a single image") from error
            again = torch.cat([rows.place, fresh])
            oracle.forget(again, *spent)
            batch, waiting = (batch + 1) // 2, torch.cat([again, waiting])
            rows = oracle.rows(places[:0])
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        if trace is not None:
            broken = {"broken": 1 - oracle.correct[rows.place]}
            trace.note(t, rows.place, broken | attack.observed(rows))
        rows.t = rows.t + 1
        done = rows.t >= attack.iterations
        if bool(done.any()):
            ended = rows.pick(done)
            standing = oracle.correct[ended.place] > 0
            untouched = standing & (oracle.broken_at[ended.place] < 0)
            oracle.x_adv[ended.place[untouched]] = attack.last(ended)[untouched]
            rows = rows.pick(~done)
        rows = _still(oracle, rows, stop)
    oracle.check()


def _still(oracle: RowOracle, rows: Rows, stop: bool) -> Rows:
    """The rows that go on."""
    alive = oracle.correct[rows.place] > 0
    return rows if not stop or bool(alive.all()) else rows.pick(alive)


class WhiteBox(Runnable):
    """An attack that goes row by row, with the methods of `RowAttack`: a base of frozen parts.

    The result holds the images on which the models fail, and the attack's last ones elsewhere. In `__call__`,
    `run` and `craft` no sample leaves early and nothing is rounded, so the passes are those of the formula;
    broken samples leave in `search`.
    """

    eot: int = 1
    """Passes averaged at each point; a field of the attacks that can average."""

    @property
    def random_start(self) -> bool:
        """Whether another seed makes another run, so that it is worth repeating; of an attack that runs
        another one, whether that does."""
        return bool(getattr(getattr(self, "attack", None), "random_start", True))

    def observed(self, rows: Rows) -> dict[str, Tensor]:
        """Nothing but which samples are broken, which every trace has."""
        return {}

    def craft(self: Any, job: Job) -> tuple[Tensor, Passes]:
        """The attack on some rows of a shard."""
        n = len(job.x)
        oracle = RowOracle(
            job.models, self.threat, job.x, job.y, job.target, seed=job.draws.seed,
            eot=self.eot, first=job.draws.rows.start or 0,
        )  # fmt: skip
        trace = None if job.trace is None else RowTrace(n)
        places = torch.arange(n, device=job.x.device)
        search(self, oracle, places, batch=max(1, n), stop=False, trace=trace)
        if trace is not None and job.trace is not None:
            job.trace.recorded = trace.at
            job.trace.steps |= {name: list(values) for name, values in trace.filled().items()}
        spent = Passes(*(int(c.max()) if n else 0 for c in (oracle.forwards, oracle.backwards)))
        return oracle.x_adv, spent
