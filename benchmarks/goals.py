"""What a suite of attacks is run for: ``transfer`` or ``robustness``.

A goal says how the images of a cell are crafted, which passes are then possible, and which boards a run
makes. Nothing else in the harness asks which goal a suite has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from advens.attacks.running import AttackResult
from advens.attacks.whitebox.adaptive import seen_by
from advens.attacks.whitebox.checks import inspect
from advens.attacks.whitebox.engine import WhiteBox, search
from advens.attacks.whitebox.oracle import RowOracle
from advens.attacks.whitebox.tracing import RowTrace
from advens.benchmarks.cells import Cell
from advens.benchmarks.worker_cache import WorkerCache
from advens.classifier import Classifier, borrowed
from advens.datasets import Batch

INSPECTED = 64
"""Images of the first shard that the checks look at."""
LATE = 0.1
"""The last part of the iterations, in which few samples should still break."""


@dataclass(frozen=True)
class Work:
    """What a cell is crafted with.

    Args:
        cell: the cell.
        attack: its attack.
        models: its surrogates, on the device.
        batch: the clean images and labels of its shard.
        target: wanted classes (N,), or None when untargeted.
        size: images at once.
        trace: whether to note what happens at every step.
        before: images (N, 3, H, W) uint8 of the cell whose unbroken samples are attacked, if there is one.
        cache: of this process.
    """

    cell: Cell
    attack: Any
    models: Sequence[Classifier]
    batch: Batch
    target: Tensor | None
    size: int
    trace: bool
    before: Tensor | None
    cache: WorkerCache


@dataclass(frozen=True)
class Crafted:
    """What came of it.

    Args:
        x_adv: adversarial images (N, 3, H, W), float, in [0, 1].
        passes: forward and backward passes per sample, the mean over samples.
        silent: steps in which a sample had no gradient (N,); None where an attack does not count them.
        trace: observations by name, when asked for; NaN where there is none.
        recorded: the iterations that the trace is of, when it is not all of them.
        about: what the description of the cell says beside.
    """

    x_adv: Tensor
    passes: tuple[float, float]
    silent: Tensor | None = None
    trace: dict[str, Tensor] | None = None
    recorded: tuple[int, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


class Goal(Protocol):
    """What any suite is run for.

    Attributes:
        name: the value of ``goal`` in a suite.
        boards: the tables of a run's directory, those that others are computed from first.
        given: tables beside them that are measured, not computed from others.
        shown: the board that is printed in the end.
    """

    @property
    def name(self) -> str: ...
    @property
    def boards(self) -> tuple[str, ...]: ...
    @property
    def given(self) -> tuple[str, ...]: ...
    @property
    def shown(self) -> str: ...


@dataclass(frozen=True)
class AttackGoal:
    """The goal of a suite of attacks.

    Args:
        name, boards, shown, given: see `Goal`.
        held_out: whether every set of surrogates must leave a target held out.
        sequences: whether ``a+b`` is a sequence of attacks, in which ``b`` takes what withstood ``a``.
        exact: whether a cell spends exactly the passes of its attack's formula; else at most those.
        craft: how the images of a cell are made.
    """

    name: str
    boards: tuple[str, ...]
    shown: str
    held_out: bool
    sequences: bool
    exact: bool
    craft: Callable[[Work], Crafted]
    given: tuple[str, ...] = ()

    def stages(self, name: str, norm: str = "linf") -> list[tuple[str, dict[str, Any]]]:
        """The attacks that an attack's name in a suite stands for, with their options in a sequence."""
        return named_stages(name, norm) if self.sequences else [(name, {})]

    def possible(self, spent: tuple[float | None, float | None], cell: Cell, members: int) -> bool:
        """Whether a cell can have spent these forward and backward passes per sample.

        Args:
            members: of all its models; white-box attacks on randomized ensembles count each member's passes.
        """
        attack = cell.build()
        if self.exact:
            return spent == tuple(attack.passes(len(cell.specs)))
        return spent[1] is not None and 0 <= spent[1] <= attack.passes(members).backward + 1e-6


def named_stages(name: str, norm: str = "linf") -> list[tuple[str, dict[str, Any]]]:
    """``a+b``, or the name of a published sequence, as single attacks with their options in it."""
    from advens.attacks.whitebox.cascade import SEQUENCES, members

    parts: list[dict[str, dict[str, Any]]] = [
        members(part, norm) if part in SEQUENCES else {part: {}} for part in name.split("+")
    ]
    return [stage for part in parts for stage in part.items()]


def transfer_images(work: Work) -> Crafted:
    """The attack on all images of the shard, crafted on all surrogates."""
    result: AttackResult = work.attack.run(
        work.models, work.cache.images(work.batch.pixels), work.batch.labels, work.target,
        seed=work.cell.random_seed, micro_batch=work.size, trace=work.trace,
    )  # fmt: skip
    return Crafted(result.x_adv, result.passes, result.silent, result.trace, result.recorded)


def white_box_images(work: Work) -> Crafted:
    """The attack on one model, row by row: the worst image of every sample so far, broken samples leave."""
    (model,), batch, attack = work.models, work.batch, work.attack
    device = work.cache.device
    x, y = work.cache.images(batch.pixels), batch.labels.to(device)
    oracle = RowOracle(
        [model], attack.threat, x, y, None if work.target is None else work.target.to(device),
        seed=work.cell.random_seed, eot=getattr(attack, "eot", 1), eight_bit=True,
        first=work.cell.shard[0] if work.cell.round else 0,
    )  # fmt: skip
    with borrowed([model]):
        places = _unbroken(oracle, work)
        silent, trace, recorded = _attacked(oracle, places, work)
    n = len(batch.labels)
    spent = (float(oracle.forwards.sum()) / n, float(oracle.backwards.sum()) / n)
    about = {"stood": len(places), "notes": _notes(oracle, work)}
    return Crafted(oracle.x_adv, spent, silent, trace, recorded, about)


def _unbroken(oracle: RowOracle, work: Work) -> Tensor:
    """The samples to attack: right on the clean image, and on the worst image found before."""
    if work.before is not None:
        oracle.x_adv = work.cache.images(work.before)
    unbroken = []
    for part in torch.arange(len(oracle.x), device=oracle.x.device).split(work.size):
        oracle.correct[part] = oracle.accuracy(oracle.x_adv[part], oracle.rows(part))
        unbroken.append(part[oracle.correct[part] > 0])
    return torch.cat(unbroken)


def _attacked(
    oracle: RowOracle, places: Tensor, work: Work
) -> tuple[Tensor | None, dict[str, Tensor] | None, tuple[int, ...]]:
    """Attacks the samples at ``places``.

    Returns the steps each had no gradient in, where these are counted, and the trace with its iterations.
    """
    if isinstance(work.attack, WhiteBox):
        trace = RowTrace(len(oracle.x)) if work.trace else None
        search(work.attack, oracle, places, batch=work.size, trace=trace)  # type: ignore[arg-type]
        return (None, trace.filled(), trace.at) if trace is not None else (None, None, ())
    if not len(places):
        return None, None, ()
    target = None if oracle.target is None else oracle.target[places]
    result: AttackResult = work.attack.run(
        work.models, oracle.x[places], oracle.y[places], target, seed=work.cell.random_seed,
        micro_batch=work.size, trace=work.trace,
    )  # fmt: skip
    oracle.forwards[places] += result.passes.forward
    oracle.backwards[places] += result.passes.backward
    for part, images in zip(places.split(work.size), result.x_adv.split(work.size), strict=True):
        oracle.accuracy(images, oracle.rows(part))
    traced = {}
    for name, values in (result.trace or {}).items():
        traced[name] = values.new_full((len(values), len(oracle.x), *values.shape[2:]), torch.nan)
        traced[name][:, places.to(values.device)] = values
    return result.silent, traced, result.recorded


def _notes(oracle: RowOracle, work: Work) -> list[str]:
    """What a careful evaluator would say of this cell."""
    notes = []
    if work.cell.shard[0] == 0 and not work.cell.after:
        first = slice(INSPECTED)
        model = seen_by(work.attack, work.models[0])
        notes += inspect(model, oracle.x[first], oracle.y[first], work.attack.threat, eot=oracle.eot)
    steps = getattr(work.attack, "iterations", 0)
    broken = oracle.broken_at[oracle.broken_at >= 0]
    late = int((broken >= (1 - LATE) * steps).sum()) if steps >= 20 else 0
    if late >= 3 and late > 2 * LATE * len(broken):
        notes.append(
            f"{late} of {len(broken)} broken samples broke in the last tenth of the iterations; "
            "more iterations may break more"
        )
    return notes


TRANSFER = AttackGoal(
    "transfer", boards=("matrix", "leaderboard"), shown="matrix", held_out=True, sequences=False, exact=True,
    craft=transfer_images,
)  # fmt: skip
ROBUSTNESS = AttackGoal(
    "robustness", boards=("robustness",), shown="robustness", held_out=False, sequences=True, exact=False,
    craft=white_box_images, given=("sanity", "curves"),
)  # fmt: skip
ATTACK_GOALS = {goal.name: goal for goal in (TRANSFER, ROBUSTNESS)}
