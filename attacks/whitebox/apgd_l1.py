"""Auto-PGD's rule in l_1, row by row: sparse steps, in balls that shrink to eps."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from advens.attacks.whitebox.margins import note_nearest
from advens.attacks.whitebox.oracle import RowLoss, RowOracle
from advens.attacks.whitebox.rows import Rows, per_row
from advens.threat import project_l1, sparse_signs


def stages(steps: int) -> list[tuple[int, int]]:
    """The parts of a run: the steps of each, and the radius of its ball in eps.

    As published, 30 % of the steps are in 3 eps and 30 % in 2 eps, both rounded up, and the others in eps. So
    few steps that none would be left are divided more evenly.
    """
    part = min(-(-3 * steps // 10), (steps - 1) // 2)
    return [(count, radius) for count, radius in ((part, 3), (part, 2), (steps - 2 * part, 1)) if count]


def memory(rows: Rows) -> dict[str, Tensor]:
    """What is remembered of rows that have just joined."""
    x, zeros = rows.x, torch.zeros_like(rows.x[:, 0, 0, 0])
    lowest = torch.full_like(zeros, -torch.inf)
    return {
        "x": x.clone(), "alpha": zeros,
        "sparsity": torch.ones_like(rows.t), "support": torch.zeros_like(rows.t),
        "best_x": x.clone(), "best_g": torch.zeros_like(x), "best": lowest,
        "near_x": x.clone(), "near": lowest,
    }  # fmt: skip


def advance(
    oracle: RowOracle, rows: Rows, at: Tensor, steps: int, loss: Callable[[Rows], RowLoss]
) -> None:
    """The gradient at the point at hand, the checkpoint if it is one, and the next point.

    Args:
        at: (N,) steps of its run that each row has behind it.
        steps: of a run.
        loss: of some rows.
    """
    memory = rows.memory
    radius, begins, ends, due = torch.tensor(_plan(steps), device=at.device)[at].unbind(1)
    inside, (begins, ends, due) = radius == 1, (flag > 0 for flag in (begins, ends, due))
    reach = radius.to(rows.x.dtype) * oracle.threat.radius
    if bool(begins.any()):
        _begin(oracle, rows, at, begins, reach)
    answer = oracle.gradient(memory["x"], rows, loss(rows))
    if bool(inside.any()):
        note_nearest(rows, answer.logits[inside], inside)
    _note_best(rows, answer.loss.to(reach.dtype), answer.gradient)
    g = _adapted(rows, answer.gradient, due, reach)
    step = per_row(memory["alpha"], g) * sparse_signs(g, memory["sparsity"])
    memory["x"] = project_l1(memory["x"] + step, rows.x, reach)
    if bool(ends.any()):
        ended = rows.pick(ends)
        logits = oracle.logits(ended.memory["x"], ended)
        last = torch.full_like(reach, -torch.inf)
        last[ends] = loss(ended)(logits).to(reach.dtype)
        _note_best(rows, last, memory["best_g"])
        if bool((ends & inside).any()):
            note_nearest(rows, logits[inside[ends]], ends & inside)


def _begin(oracle: RowOracle, rows: Rows, at: Tensor, where: Tensor, reach: Tensor) -> None:
    """A stage begins in some rows: at a normal point in the first, else at the best one of the stage before.

    Both are projected on the stage's ball.
    """
    fresh, memory = rows.pick(where), rows.memory
    noise = oracle.normals(fresh, tuple(rows.x.shape[1:]), "apgd").to(rows.x.dtype)
    first = (at[where] == 0).view(-1, 1, 1, 1)
    start = torch.where(first, fresh.x + noise, fresh.memory["best_x"])
    memory["x"][where] = project_l1(start, fresh.x, reach[where])
    support = _support(memory["x"], rows.x)
    rows.keep("support", where, support)
    rows.keep("sparsity", where, _fewer(support))
    rows.keep("alpha", where, reach)
    memory["best"] = memory["best"].masked_fill(where, -torch.inf)


def _note_best(rows: Rows, loss: Tensor, g: Tensor) -> None:
    """Keep the point at hand and its gradient where its loss (N,) is the highest of the stage."""
    better = loss > rows.memory["best"]
    rows.keep("best", better, loss)
    rows.keep("best_x", better, rows.memory["x"])
    rows.keep("best_g", better, g)


def _adapted(rows: Rows, g: Tensor, due: Tensor, reach: Tensor) -> Tensor:
    """Sparsity and step size follow the best point at checkpoints; the gradient (N, C, H, W) to go on with.

    The next steps change two thirds as many pixels as the best point does. When it has become sparser by
    5 %, the search goes on from it with the longest step; else the step is divided by 1.5, down to a tenth.
    """
    memory = rows.memory
    support = _support(memory["best_x"], rows.x)
    sparser = due & (20 * support < 19 * memory["support"])
    shorter = torch.maximum(memory["alpha"] / 1.5, reach / 10)
    rows.keep("alpha", due, torch.where(sparser, reach, shorter))
    rows.keep("sparsity", due, _fewer(support))
    rows.keep("support", due, support)
    rows.keep("x", sparser, memory["best_x"])
    return torch.where(sparser.view(-1, 1, 1, 1), memory["best_g"], g)


def _support(x_adv: Tensor, x: Tensor) -> Tensor:
    """How many pixel values differ, (N,)."""
    return (x_adv != x).flatten(1).sum(1)


def _fewer(support: Tensor) -> Tensor:
    """Two thirds of so many, rounded up, and at least one."""
    return ((2 * support + 2) // 3).clamp_min(1)


@lru_cache(maxsize=64)
def _plan(steps: int) -> list[tuple[int, bool, bool, bool]]:
    """For each point of a run: its radius in eps, whether a stage begins or ends here, and whether to adapt.

    Checkpoints are 4 % of a stage's steps apart.
    """
    return [
        (radius, j == 0, j == count - 1, j > 0 and j % max(1, int(0.04 * count)) == 0)
        for count, radius in stages(steps)
        for j in range(count)
    ]
