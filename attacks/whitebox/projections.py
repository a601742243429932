"""The shortest way from a point to a hyperplane that does not leave the box [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

from advens.errors import InputError, nearest
from advens.threat import NORMS, TINY


def to_plane(x: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The step ``d`` (N, n), shortest in ``norm``, with ``<w, d> = -gap`` and ``x + d`` in [0, 1].

    In l_inf every coordinate goes as far as the others unless it meets the box; in l_2 as far as its
    weight says. So ``|d_i| = min(level, room_i)`` or ``min(level |w_i|, room_i)``, and the level is
    found by sorting the rooms: no search. Where the box does not reach the hyperplane, the step leads
    to the corner nearest to it. Coordinates that weigh less than 1e-12 of the heaviest stay.

    Args:
        x: points (N, n) in [0, 1].
        w: normals of the hyperplanes (N, n), each of any length.
        gap: (N,) ``<w, x> - b`` for the hyperplane ``<w, z> = b``: what is known without rounding.
        norm: ``"linf"`` or ``"l2"``.

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
    limit = room / size.masked_fill(size == 0, 1.0)
    step = torch.minimum(_level(size.square(), limit, length), limit) * size
    return ahead * torch.minimum(step, room)


def _level(weight: Tensor, limit: Tensor, total: Tensor) -> Tensor:
    """The level (N, 1) at which ``sum_i weight_i min(level, limit_i)`` is ``total`` (N,); else infinite."""
    limit, order = limit.sort(dim=1, stable=True)
    weight = weight.gather(1, order).double()
    full = weight * limit
    before = full.cumsum(1) - full  # of those that have met their limits, below each one's
    rest = weight.flip(1).cumsum(1).flip(1)  # weight of the others, this one with them
    at = (before + rest * limit < total[:, None]).sum(1, keepdim=True)
    inside = at.clamp_max(limit.shape[1] - 1)
    left = total[:, None].double() - before.gather(1, inside)
    level = left / rest.gather(1, inside).clamp_min(torch.finfo(torch.float64).tiny)
    met = limit.gather(1, (inside - 1).clamp_min(0)) * (inside > 0)
    return torch.maximum(level, met).masked_fill(at > inside, torch.inf).to(limit.dtype)
