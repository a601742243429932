"""Hyperplanes: which is the nearest, and the shortest way to one that does not leave the box [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advens.attacks.whitebox.oracle import Answer
from advens.errors import InputError, nearest
from advens.threat import NORMS, TINY, norms


def dual_norm(w: Tensor, norm: str) -> Tensor:
    """||w||_q, (N,), of the norm that is dual to ``norm``."""
    return norms(w, {"linf": "l1", "l2": "l2", "l1": "linf"}[norm]).flatten()


def nearest_plane(
    answers: Sequence[Answer], norm: str, guard: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest of the planes ``f + <w, d> = 0``: its w (N, C, H, W), f (N,) and distance (N,).

    Args:
        answers: f and its gradient w at the points, one for each plane.
        norm: of the distance |f| / ||w||_q.
        guard: is added to ||w||_q.
    """
    w, gap, _ = answers[0]
    least = gap.abs() / (dual_norm(w, norm) + guard)
    for answer in answers[1:]:
        distance = answer.loss.abs() / (dual_norm(answer.gradient, norm) + guard)
        nearer = distance < least
        w = torch.where(nearer.view(-1, 1, 1, 1), answer.gradient, w)
        gap = torch.where(nearer, answer.loss, gap)
        least = torch.where(nearer, distance, least)
    return w, gap, least


def to_plane(x: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The step ``d`` (N, n), shortest in ``norm``, with ``<w, d> = -gap`` and ``x + d`` in [0, 1].

    In l_inf every coordinate goes as far as the others unless it meets the box; in l_2 as far as its
    weight says. So ``|d_i| = min(level, room_i)`` or ``min(level |w_i|, room_i)``, and the level is
    found in a few steps of Newton. In l_1 the heaviest coordinates go as far as the box allows, one after
    the other, until the hyperplane is reached. Where the box does not reach the hyperplane, the step leads
    to the corner nearest to it. Coordinates that weigh less than 1e-12 of the heaviest stay.

    Args:
        x: points (N, n) in [0, 1].
        w: normals of the hyperplanes (N, n), each of any length.
        gap: (N,) ``<w, x> - b`` for the hyperplane ``<w, z> = b``: what is known without rounding.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.

    Source: Croce & Hein 2020 (FAB), section 2.1; their code searches the level by bisection.
    """
    if norm not in NORMS:
        raise InputError(f"unknown norm '{norm}'{nearest(norm, NORMS)}")
    scale = w.abs().amax(1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    w = w / scale
    size = torch.where(w.abs() > TINY, w.abs(), 0.0)
    ahead = -gap.sign()[:, None] * w.sign()
    room = torch.where(ahead > 0, 1 - x, x).clamp_min(0) * (size > 0)
    length = gap.abs() / scale.squeeze(1)
    if norm == "linf":
        return ahead * torch.minimum(_level(size, room, length), room)
    if norm == "l1":
        heaviest = size.argsort(dim=1, descending=True, stable=True)
        reach = (size * room).gather(1, heaviest).double()
        left = (length.double()[:, None] - reach.cumsum(1) + reach).clamp_min(0).to(w.dtype)
        left = torch.zeros_like(size).scatter(1, heaviest, left)
        return ahead * torch.minimum(left / size.masked_fill(size == 0, 1.0), room)
    limit = room / size.masked_fill(size == 0, 1.0)
    step = torch.minimum(_level(size.square(), limit, length), limit) * size
    return ahead * torch.minimum(step, room)


def _level(weight: Tensor, limit: Tensor, total: Tensor) -> Tensor:
    """The level (N, 1) at which ``sum_i weight_i min(level, limit_i)`` is ``total`` (N,); else infinite.

    The sum is concave and piecewise linear in the level: Newton's steps come from below and end at the
    root when no more limits are met.
    """
    kind, total = limit.dtype, total.double()[:, None]
    weight, limit = weight.double(), limit.double()
    full, tiny = weight * limit, torch.finfo(torch.float64).tiny
    met = torch.zeros_like(limit, dtype=torch.bool)
    while True:
        free = weight.masked_fill(met, 0).sum(1, keepdim=True).clamp_min(tiny)
        level = (total - full.masked_fill(~met, 0).sum(1, keepdim=True)) / free
        level = torch.maximum(level, limit.masked_fill(~met, 0).amax(1, keepdim=True))
        more = met | (limit < level)
        if torch.equal(more, met):
            reached = full.sum(1, keepdim=True) >= total
            return level.masked_fill(~reached, torch.inf).to(kind)
        met = more
